"""The host desk on a real agent with fake machines: the conformance suite, what a restart keeps, hand-outs from the pool."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from host_world import SHAPE, World, opened

from torpor.host.agent import CreateSpec
from torpor.host.capacity import Marks, capacity
from torpor.host.desk import HostDesk
from torpor.host.pool import Kind
from torpor.model.errors import Denied, HostUnavailable, NotFound
from torpor.model.sandbox import NetworkMode
from torpor.ports.hosts import MachineStatus
from torpor.testing.conformance import hosts as suite

S = MachineStatus


class DeskRig:
    source, shape = "tiny", SHAPE

    def __init__(self, world: World, desk: HostDesk) -> None:
        self.world = world
        self.host = desk

    async def identity(self, sandbox_id: str) -> Any:
        guest: Any = await self.host.guest(sandbox_id)
        return await guest.identity()

    async def crash(self, sandbox_id: str) -> None:
        machine_id = (await self.host.machine(sandbox_id)).machine_id
        machine: Any = self.world.agent.get(machine_id).machine
        machine.crash()


@asynccontextmanager
async def desk(home: Path, *, leave: bool = False, **policy: Any) -> AsyncIterator[DeskRig]:
    """With `leave`, what runs at the end runs on for the next owner."""
    async with opened(home, **policy) as world:
        host = HostDesk("here", world.agent, home)
        await host.open()
        yield DeskRig(world, host)
        if not leave:
            await world.clear()
        await host.close()


@pytest.mark.parametrize("check", suite.CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
async def test_conformance(home: Path, check: Callable[[Any], Awaitable[None]]) -> None:
    async with desk(home) as rig:
        await check(rig)


async def test_a_restart_finds_every_sandbox_under_its_name(home: Path) -> None:
    async with desk(home, leave=True) as rig:
        awake, asleep = await suite.running(rig, "awake"), await suite.running(rig, "asleep")
        await rig.host.pause(asleep)
        before = {one.sandbox_id: one.machine_id for one in (await rig.host.report()).machines}
    async with desk(home) as rig:
        after = {one.sandbox_id: (one.machine_id, one.status) for one in (await rig.host.report()).machines}
        assert after == {awake: (before[awake], S.RUNNING), asleep: (before[asleep], S.PAUSED)}
        await rig.host.resume(asleep)
        assert [await suite.text(rig, one) for one in (awake, asleep)] == ["awake", "asleep"]
        assert (await rig.identity(asleep)).sandbox_id == asleep


async def test_a_pooled_machine_learns_its_name_when_it_is_handed_out(home: Path) -> None:
    async with desk(home, leave=True, pool_size=1) as rig:
        pool = rig.world.agent.pool
        pool.stock(Kind("tiny", SHAPE, NetworkMode.OFF))
        await pool.filled()
        wanted = suite.order(rig, hostname="web", names={"A": "b"})
        made = await rig.host.create(wanted)
        assert pool.hits == 1 and made.machine_id != made.sandbox_id == wanted.sandbox_id
        identity = await rig.identity(wanted.sandbox_id)
        assert (identity.sandbox_id, identity.hostname, identity.names) == (wanted.sandbox_id, "web", {"A": "b"})
        assert (await rig.host.create(wanted)).machine_id == made.machine_id
        await pool.filled()
        assert len((await rig.host.report()).machines) == 1, "what is pooled is nobody's"
    async with desk(home) as rig:
        assert [one.sandbox_id for one in (await rig.host.report()).machines] == [wanted.sandbox_id]


async def test_sandboxes_of_the_command_line_stay_out(home: Path) -> None:
    async with desk(home) as rig:
        own = await rig.world.agent.create(CreateSpec("tiny", SHAPE))
        await rig.world.agent.snapshot(own.id, "mine")
        report = await rig.host.report()
        assert (list(report.machines), list(report.snapshots)) == ([], [])
        with pytest.raises(NotFound):
            await rig.host.machine(own.id)


async def test_a_kill_overtakes_a_create(home: Path) -> None:
    async with desk(home) as rig:
        await rig.host.create(first := suite.order(rig))
        wanted = suite.order(rig)
        reached = asyncio.Event()
        rig.world.steps.arm(1, lambda _: reached.set())
        creating = asyncio.ensure_future(rig.host.create(wanted))
        await reached.wait()
        assert (await rig.host.machine(wanted.sandbox_id)).status is S.BUSY
        await rig.host.kill(wanted.sandbox_id)
        with pytest.raises(Denied):
            await creating
        assert [one.sandbox_id for one in (await rig.host.report()).machines] == [first.sandbox_id]
        await rig.world.agent.idle()
        rig.world.check()


async def test_a_closed_desk_cannot_be_reached(home: Path) -> None:
    async with desk(home) as rig:
        sandbox_id = await suite.running(rig)
        changes = rig.host.changes()
        await rig.host.close()
        for call in (rig.host.report(), rig.host.machine(sandbox_id), rig.host.pause(sandbox_id)):
            with pytest.raises(HostUnavailable):
                await call
        assert [machine async for machine in changes] == []


def test_low_water_marks(tmp_path: Path) -> None:
    plenty = capacity(tmp_path, Marks(0, 0, 0))
    assert plenty.accepts and not plenty.problem
    warned = capacity(tmp_path, Marks(1 << 60, 0, 0))
    assert warned.accepts and "disk" in warned.problem
    for marks in (Marks(0, 1 << 60, 0), Marks(0, 0, 1 << 60)):
        refused = capacity(tmp_path, marks)
        assert not refused.accepts and "nothing new" in refused.problem
