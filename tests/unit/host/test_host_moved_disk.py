"""The owner dies after a machine went over to its new overlay, and before that was noted: the next one knows where the guest writes."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from host_world import World, children, opened

from torpor.host.agent import CreateSpec
from torpor.model.sandbox import MachineState
from torpor.testing.fake_vmm import FakeVmMachine


async def _die(home: Path, call: str, note: int) -> None:
    """In a process of its own: killed before the snapshot changes disks, or before the first `call` after that."""
    async with opened(home) as world:
        sandbox = await world.create("first")
        os.write(note, sandbox.id.encode())
        reached = call == "machine.swap_disk"

        def look(name: str) -> None:
            nonlocal reached
            if reached and name == call:
                os.kill(os.getpid(), signal.SIGKILL)
            reached = reached or name == "machine.swap_disk"

        world.steps.pass_by = look  # type: ignore[method-assign]
        await world.agent.snapshot(sandbox.id, "later")


def dead_owner(home: Path, call: str) -> str:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            asyncio.run(_die(home, call, write))
        finally:
            os._exit(77)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        sandbox_id = file.read(25).decode()
    _, status = os.waitpid(pid, 0)
    assert status == signal.SIGKILL
    return sandbox_id


def on_disk(home: Path, world: World, sandbox_id: str) -> list[bytes]:
    """What the fake guest has remembered on its disk, overlay first: the fake appends its text to the overlay it is on."""
    record = world.agent.get(sandbox_id).record
    overlays = [home / "sandboxes" / sandbox_id / record.running.run_dir / record.running.overlay] if record.running else []
    return [path.read_bytes()[-20:] for path in (*overlays, *(home / "store" / "disks" / f"{layer}.qcow2" for layer in record.disk.layers))]


@pytest.mark.parametrize("call", ["machine.swap_disk", "snapshots.hold", "records.write", "machine.resume"])
async def test_a_machine_is_taken_back_on_the_overlay_it_has(home: Path, call: str) -> None:
    sandbox_id = await asyncio.to_thread(dead_owner, home, call)
    async with opened(home) as world:
        await world.agent.idle()
        await (await world.guest(sandbox_id)).remember("second")
        texts = on_disk(home, world, sandbox_id)
        assert texts[0].endswith(b"second")
        artefact = await world.agent.pause(sandbox_id)
        await world.agent.get(sandbox_id)._gone_before()  # its VMM and run directory
        await world.agent.idle()
        world.check()
        assert any(b"first" in text for text in texts)
        moved = call != "machine.swap_disk"
        assert len(artefact.disk.layers) == (3 if moved else 2)  # the warm image's, and each that the machine was on
        assert on_disk(home, world, sandbox_id)[0].endswith(b"second")
        await world.agent.resume(sandbox_id)
        assert await world.text(sandbox_id) == "second"
        await world.clear()
        world.check()


@pytest.mark.parametrize("call", ["machine.swap_disk", "snapshots.hold", "records.write"])
async def test_a_dead_machine_leaves_the_overlay_it_had(home: Path, call: str) -> None:
    sandbox_id = await asyncio.to_thread(dead_owner, home, call)
    for pid in children(home):
        os.kill(pid, signal.SIGKILL)
    async with opened(home) as world:
        await world.agent.idle()
        world.check()
        record = world.agent.get(sandbox_id).record
        assert record.state is MachineState.ENDED
        assert any(b"first" in text for text in on_disk(home, world, sandbox_id))
        await world.agent.cold_boot(sandbox_id)
        assert (await world.agent.create(CreateSpec("tiny"))).record.state is MachineState.READY
        await world.clear()
        world.check()


async def test_a_machine_that_ends_while_it_is_taken_back_is_known_as_ended(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox_id = await asyncio.to_thread(dead_owner, home, "records.write")
    asked = FakeVmMachine.overlay

    async def overlay(machine: FakeVmMachine) -> str:
        machine.crash()
        await machine.wait()
        return await asked(machine)

    monkeypatch.setattr(FakeVmMachine, "overlay", overlay)
    async with opened(home, silence_pause=0.01) as world:
        assert world.agent.get(sandbox_id).record.state is MachineState.ENDED
        await world.agent.idle()
        world.check()
        await world.clear()
