"""A machine that does not answer when a new owner comes: stopped, swapped out, or on a machine that has too much to do. It is neither killed nor forgotten,
nobody else waits for it, and it can be killed."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from host_world import World, opened

from torpor.model.sandbox import MachineState

SOON = {"adoption_patience": 0.1, "silence_pause": 0.01}


async def asleep_and_awake(home: Path) -> tuple[str, str, int]:
    """Two sandboxes of an owner that has gone; the first one's VMM is stopped."""
    async with opened(home) as world:
        first = (await world.create("kept")).id
        (pid,) = world.children()
        second = (await world.create("awake")).id
    os.kill(pid, signal.SIGSTOP)
    return first, second, pid


def state(world: World, sandbox_id: str) -> MachineState:
    return world.agent.get(sandbox_id).record.state


async def test_it_comes_back_when_it_answers(home: Path) -> None:
    first, second, pid = await asleep_and_awake(home)
    async with opened(home, **SOON) as world:
        assert await world.text(second) == "awake"
        assert state(world, first) is MachineState.LAUNCHING
        asking = asyncio.create_task(world.text(first))
        pausing = asyncio.create_task(world.agent.pause(first))
        await asyncio.wait({asking, pausing}, timeout=0.1)
        assert not asking.done() and not pausing.done()
        os.kill(pid, signal.SIGCONT)
        await pausing
        assert state(world, first) is MachineState.PAUSED
        await asyncio.gather(asking, return_exceptions=True)  # before the pause or after it
        await world.agent.resume(first)
        assert await world.text(first) == "kept"
        await world.agent.idle()
        world.check()
        await world.clear()


async def test_it_can_be_killed(home: Path) -> None:
    first, second, _ = await asleep_and_awake(home)
    async with opened(home, **SOON) as world:
        await world.agent.kill(first)
        assert [record.id for record in world.agent.records()] == [second]
        world.check()
        await world.clear()


async def test_it_outlives_owners_that_never_heard_of_it(home: Path) -> None:
    first, _, pid = await asleep_and_awake(home)
    for _ in range(2):
        async with opened(home, **SOON) as world:
            assert state(world, first) is MachineState.LAUNCHING
    os.kill(pid, signal.SIGCONT)
    async with opened(home) as world:
        assert await world.text(first) == "kept"
        world.check()
        await world.clear()


async def test_one_that_dies_in_its_silence_has_ended(home: Path) -> None:
    first, _, pid = await asleep_and_awake(home)
    async with opened(home, **SOON) as world:
        ended = asyncio.Event()
        world.agent.listen(lambda sandbox: ended.set() if sandbox.id == first and sandbox.record.state is MachineState.ENDED else None)
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(60):
            await ended.wait()
        world.check()
        await world.clear()
