"""What a power cut may do to the records, which are not fsynced, and what the next owner makes of it: no pause is lost."""

from __future__ import annotations

import shutil
from pathlib import Path

from host_world import opened

from torpor.model.sandbox import MachineState


async def test_a_paused_sandbox_whose_record_was_lost_is_there_again(home: Path) -> None:
    async with opened(home) as world:
        sandbox = await world.create("first", hostname="box", names={"KEY": "value"})
        await world.agent.pause(sandbox.id)
        await world.agent.idle()
        before = world.agent.get(sandbox.id).record
    shutil.rmtree(home / "sandboxes" / sandbox.id)
    async with opened(home) as world:
        (record,) = world.agent.records()
        assert (record.id, record.state, record.artefact_id) == (before.id, MachineState.PAUSED, before.artefact_id)
        assert (record.hostname, dict(record.names), record.network, record.shape) == ("box", {"KEY": "value"}, before.network, before.shape)
        await world.agent.idle()
        world.check()
        await world.agent.resume(sandbox.id)
        assert await world.text(sandbox.id) == "first"
        await world.clear()
        await world.agent.idle()
        world.check()


async def test_an_older_record_is_caught_up_with_the_last_pause(home: Path) -> None:
    async with opened(home) as world:
        sandbox = await world.create("first")
        await world.agent.pause(sandbox.id)
        await world.agent.get(sandbox.id)._gone_before()  # its VMM and run directory
        older = home.with_name(f"{home.name}-older")
        shutil.copytree(home / "sandboxes" / sandbox.id, older)
        await world.agent.resume(sandbox.id)
        await (await world.guest(sandbox.id)).remember("second")
        await world.agent.pause(sandbox.id)
        await world.agent.idle()
    shutil.rmtree(home / "sandboxes" / sandbox.id)
    shutil.move(older, home / "sandboxes" / sandbox.id)
    async with opened(home) as world:
        await world.agent.idle()
        world.check()
        await world.agent.resume(sandbox.id)
        assert await world.text(sandbox.id) == "second"
        await world.clear()
        await world.agent.idle()
        world.check()


async def test_what_was_killed_does_not_come_back(home: Path) -> None:
    async with opened(home) as world:
        sandbox = await world.create("first")
        await world.agent.pause(sandbox.id)
        await world.agent.kill(sandbox.id)
    async with opened(home) as world:
        assert list(world.agent.records()) == []
        await world.agent.idle()
        world.check()
