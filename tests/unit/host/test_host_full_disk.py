"""The disk of a home fills up before any call of any port, in the middle of any operation: a typed error, nothing lost, nothing left, nothing in a callback."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from host_world import SHAPE, World, opened

from torpor.host import sandbox as sandboxes
from torpor.host.agent import CreateSpec
from torpor.host.sandbox import Sandbox
from torpor.model.errors import GuestLost, NoSpace, TorporError, VmmError
from torpor.model.sandbox import Condition, MachineState, NetworkMode
from torpor.ports.processes import ExitRecord
from torpor.ports.vmm import VmmEvent
from torpor.proc.children import write_exit_file

pytestmark = pytest.mark.root

MIB = 1 << 20


@dataclass
class SmallDisk:
    """A file system of 24 MiB that can be filled to the last byte."""

    path: Path
    fillers: list[Path] = field(default_factory=list)

    def fill(self) -> None:
        filler = self.path / f"filler-{len(self.fillers)}"
        self.fillers.append(filler)
        with filler.open("wb", buffering=0) as file:
            for size in (MIB, 4096):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue

    def make_room(self) -> None:
        for filler in self.fillers:
            filler.unlink()
        self.fillers.clear()


@pytest.fixture
def disk(home: Path) -> Iterator[SmallDisk]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m,mode=755", "torpor-test", home], check=True)
    yield SmallDisk(home)
    subprocess.run(["umount", "--lazy", home], check=True)  # the keeper may be about to end


@pytest.fixture
async def escaped() -> list[dict[str, Any]]:
    """What came out of a callback or a task that nobody waits for."""
    found: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: found.append(context))
    return found


async def create(world: World, sandbox: Sandbox) -> None:
    await world.agent.create(CreateSpec("tiny", SHAPE, NetworkMode.ON))


async def pause(world: World, sandbox: Sandbox) -> None:
    await world.agent.pause(sandbox.id)


async def resume(world: World, sandbox: Sandbox) -> None:
    await world.agent.pause(sandbox.id)
    await world.agent.resume(sandbox.id)


async def snapshot(world: World, sandbox: Sandbox) -> None:
    await world.agent.snapshot(sandbox.id, "named")


async def fork(world: World, sandbox: Sandbox) -> None:
    await world.agent.fork(sandbox.id, 2)


async def cold_boot(world: World, sandbox: Sandbox) -> None:
    await world.agent.pause(sandbox.id)
    await world.agent.cold_boot(sandbox.id)


OPERATIONS = (create, pause, resume, snapshot, fork, cold_boot)


@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.soak)])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
async def test_the_disk_fills_in_the_middle(
    disk: SmallDisk, escaped: list[dict[str, Any]], operation: Callable[[World, Sandbox], Awaitable[None]], stride: int
) -> None:
    """Before every call in a soak, before every fifth otherwise; after each, room is made, and everything is as it should be."""
    async with opened(disk.path) as world:
        await world.agent.warm("tiny", SHAPE)
        at, calls = 1, 1
        while at <= calls:
            sandbox = await world.create("kept")
            world.steps.arm(at, lambda _: disk.fill())
            try:
                async with asyncio.timeout(60):
                    await operation(world, sandbox)
            except TorporError as error:
                assert isinstance(error, (NoSpace, VmmError, GuestLost)), error
            calls, world.steps.armed = world.steps.count, False
            disk.make_room()
            if sandbox.record.state in (MachineState.PAUSED, MachineState.ENDED):
                await world.agent.resume(sandbox.id)
            assert await world.text(sandbox.id) in ("kept", "" if operation is cold_boot else "kept"), "a cold boot forgets what was in memory alone"
            await world.clear()
            world.check()
            at += stride
        assert calls > 5
    assert escaped == []


async def test_the_end_of_a_machine_is_known_though_it_cannot_be_written_down(disk: SmallDisk, escaped: list[dict[str, Any]]) -> None:
    """Neither by the keeper, whose log lies on the same disk, nor, when that one is gone, by us."""
    async with opened(disk.path) as world:
        sandbox = await world.create("kept")
        disk.fill()
        machine = world.vmm.machines[-1]
        machine.crash()
        async with asyncio.timeout(60):
            await machine.wait()
        write_exit_file(disk.path / "exit.json", ExitRecord(1))
        assert not (disk.path / "exit.json").exists()
        disk.make_room()
        await world.agent.kill(sandbox.id)
        await world.clear()
        world.check()
    assert escaped == []


async def test_a_sandbox_stands_still_while_the_hosts_disk_is_full(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The VMM says that a write found no room: on record, told to whoever asks, and tried again until it is taken."""
    monkeypatch.setattr(sandboxes, "STANDSTILL_SECONDS", 0.0)
    async with opened(home) as world:
        sandbox = await world.create("kept")
        machine = world.vmm.machines[-1]
        room, tries, resume_machine = asyncio.Event(), asyncio.Semaphore(0), machine.resume

        async def resume_when_there_is_room() -> None:
            tries.release()
            if room.is_set():
                await resume_machine()
            else:
                machine.emit(VmmEvent.DISK_FULL)

        async def never() -> None:
            await asyncio.get_running_loop().create_future()

        monkeypatch.setattr(machine, "resume", resume_when_there_is_room)
        guest = await world.guest(sandbox.id)
        monkeypatch.setattr(guest._inner, "thaw", never)
        machine.emit(VmmEvent.DISK_FULL)
        for _ in range(3):
            await tries.acquire()
        with pytest.raises(NoSpace, match="stands still"):
            await world.agent.pause(sandbox.id)
        with pytest.raises(NoSpace, match="stands still"):
            await world.agent.guest(sandbox.id)
        assert Condition.HOST_DISK_FULL in sandbox.record.conditions
        text = (home / "sandboxes" / sandbox.id / "record.json").read_text()
        assert json.loads(text)["sandbox"]["conditions"].keys() == {"host_disk_full"}
        monkeypatch.undo()
        monkeypatch.setattr(sandboxes, "STANDSTILL_SECONDS", 0.0)
        room.set()
        machine.emit(VmmEvent.DISK_FULL)
        changed = asyncio.Event()
        world.agent.listen(lambda one: changed.set() if not one.record.conditions else None)
        await changed.wait()
        assert await world.text(sandbox.id) == "kept"
        await world.clear()
        assert os.listdir(home / "sandboxes") == []
