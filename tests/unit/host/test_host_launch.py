"""Bringing a sandbox up on a fake VMM: the conversation with the guest begins before the guest runs, and goes with a launch that fails."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from host_world import SHAPE, World, opened

from torpor.host.agent import CreateSpec
from torpor.host.record import from_keepsake
from torpor.model.errors import Denied, VmmError
from torpor.model.sandbox import Condition, NetworkMode
from torpor.model.shapes import Shape
from torpor.ports.guest import Wake
from torpor.ports.vmm import Restore
from torpor.proc.keeper import protocol
from torpor.testing.fake_vmm import FakeVmMachine


async def test_the_guest_is_greeted_before_its_state_is_loaded(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    async with opened(home) as world:
        await world.agent.warm("tiny", SHAPE)
        greet, load = world.link.connect_and_wake, FakeVmMachine._order

        async def greeting(*args: object, **named: object) -> object:
            order.append("greet")
            return await greet(*args, **named)  # type: ignore[arg-type]

        async def ordering(machine: FakeVmMachine, do: str, **arguments: str) -> dict[str, object]:
            order.append(do)
            return await load(machine, do, **arguments)

        monkeypatch.setattr(world.link, "connect_and_wake", greeting)
        monkeypatch.setattr(FakeVmMachine, "_order", ordering)
        await world.create("first")
        assert order.index("greet") < order.index("resume")
        await world.clear()


async def test_an_error_of_the_launch_wins_and_ends_the_conversation(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(home) as world:
        await world.agent.warm("tiny", SHAPE)
        hung = asyncio.get_running_loop().create_future()
        ended: list[bool] = []

        async def never(*_: object, **__: object) -> None:
            try:
                await hung
            finally:
                ended.append(hung.cancelled())

        load = FakeVmMachine._order

        async def refuse(machine: FakeVmMachine, do: str, **arguments: str) -> dict[str, object]:
            if do == "resume":
                raise VmmError("it will not run")
            return await load(machine, do, **arguments)

        monkeypatch.setattr(world.link, "connect_and_wake", never)
        monkeypatch.setattr(FakeVmMachine, "_order", refuse)
        with pytest.raises(VmmError, match="it will not run"):
            await world.agent.create(CreateSpec("tiny", SHAPE, NetworkMode.OFF))
        assert ended == [True]
        world.check()


async def test_a_guest_whose_disk_grows_is_woken_after_it_has(home: Path) -> None:
    async with opened(home) as world:
        await world.agent.warm("tiny", SHAPE)
        larger = CreateSpec("tiny", type(SHAPE)(SHAPE.vcpus, SHAPE.memory_mib, 16384))
        await world.agent.create(larger)
        boot = world.vmm.launched[-1].boot
        assert isinstance(boot, Restore)
        assert boot.about_to_run is None
        await world.clear()


async def test_children_are_on_the_leash_of_their_source(home: Path) -> None:
    leash = (os.getpid(), protocol.start_time(os.getpid()))
    async with opened(home) as world:
        source = await world.create("first", leash=leash)
        (child,) = await world.agent.fork(source.id)
        assert child.record.leash == leash
        assert world.vmm.launched[-1].leash == os.getpid()
        await world.clear()


async def test_a_sandbox_whose_owner_task_was_cancelled_answers(home: Path) -> None:
    """As at the end of asyncio.run: every task is cancelled, and what unwinds must not wait for one of them."""
    async with opened(home) as world:
        sandbox = await world.create("first")
        sandbox._turns._task.cancel()
        await asyncio.wait({sandbox._turns._task})
        with pytest.raises(Denied):
            await sandbox.pause()
    async with opened(home) as world:
        await world.clear()


async def test_a_file_system_that_did_not_grow_is_on_record_and_tried_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through pauses, a restart of the host and the loss of the record; until it has grown."""
    told: list[int] = []

    def listen(world: World, fault: str) -> None:
        real = world.link.connect_and_wake

        async def connect_and_wake(socket: Path, wake: Wake, **named: float) -> object:
            told.append(wake.disk_bytes)
            guest = await real(socket, wake, **named)
            guest.disk_fault = fault
            return guest

        monkeypatch.setattr(world.link, "connect_and_wake", connect_and_wake)

    large = Shape(1, 256, 8192)
    async with opened(home) as world:
        await world.agent.warm("tiny", SHAPE)
        listen(world, "no such luck")
        sandbox = await world.agent.create(CreateSpec("tiny", large))
        assert sandbox.record.conditions.keys() == {Condition.DISK_NOT_GROWN}
        assert "no such luck" in sandbox.record.conditions[Condition.DISK_NOT_GROWN]
        artefact = await world.agent.pause(sandbox.id)
        assert Condition.DISK_NOT_GROWN in sandbox.record.conditions
        kept = from_keepsake(artefact)
        assert kept is not None and kept.conditions == sandbox.record.conditions
    async with opened(home) as world:
        listen(world, "")
        sandbox = await world.agent.resume(sandbox.id)
        assert sandbox.record.conditions == {}
        await world.agent.pause(sandbox.id)
        await world.agent.resume(sandbox.id)
        assert told == [8 << 30, 8 << 30, 0]
        await world.clear()
