"""Sandboxes made ahead, on fake machines: who gets which, what is kept of each kind, and that nothing of it is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from host_world import SHAPE, World, opened

from torpor.host import pool as pools
from torpor.host.agent import CreateSpec
from torpor.host.pool import Kind, Pool
from torpor.host.quiet import Quiet
from torpor.host.sandbox import Sandbox
from torpor.model.errors import VmmError
from torpor.model.sandbox import NetworkMode
from torpor.model.shapes import Shape
from torpor.testing.fake_vmm import Fault

KIND = Kind("tiny", SHAPE, NetworkMode.OFF)
OTHER = Kind("tiny", SHAPE, NetworkMode.ON)


@dataclass
class Rig:
    """A pool of its own beside the agent's. What it makes comes up when the gate is open; `begun` counts what was begun."""

    world: World
    pool: Pool
    gate: asyncio.Event
    quiet: Quiet
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    begun: int = 0
    broken: bool = False

    async def make(self, kind: Kind) -> Sandbox:
        self.begun += 1
        self.changed.set()
        await self.gate.wait()
        if self.broken:
            raise VmmError("broken")
        return await self.world.agent._make_pooled(kind)


@asynccontextmanager
async def rigged(home: Path, **policy: Any) -> AsyncIterator[Rig]:
    async with opened(home, **{"pool_size": 1} | policy) as world:
        gate = asyncio.Event()
        gate.set()
        quiet = Quiet(cores=2)
        rig: Rig = Rig(world, None, gate, quiet)  # type: ignore[arg-type]
        rig.pool = Pool(world.agent.context, quiet, rig.make, world.agent.kill)
        yield rig
        await rig.pool.close()
        assert all(not one.record.pool for one in world.agent._sandboxes.values())
        await world.clear()
        world.check()


async def waiting(rig: Rig, kind: Kind = KIND) -> asyncio.Task[Sandbox | None]:
    """Somebody who asks, and waits for what is on its way."""
    while not rig.begun:
        await rig.changed.wait()
    asking = asyncio.create_task(rig.pool.take(kind))
    await asyncio.sleep(0)
    assert not asking.done()
    return asking


async def test_what_is_ready_is_taken_and_replaced_when_it_is_quiet(home: Path) -> None:
    async with rigged(home) as rig:
        rig.pool.stock(KIND)
        await rig.pool.filled()
        first = await rig.pool.take(KIND)
        assert first is not None
        assert (rig.pool.kept(), rig.begun) == ({KIND: 0}, 1), "a refill would take the cores from the first command"
        await rig.pool.filled()
        assert rig.pool.kept() == {KIND: 1}
        assert (rig.pool.hits, rig.pool.misses) == (1, 0)
        await rig.world.agent.kill(first.id)


async def test_refills_wait_for_a_core(home: Path) -> None:
    async with rigged(home, pool_size=2) as rig:
        with rig.quiet.asked():
            rig.pool.stock(KIND)
            await asyncio.sleep(0)
            assert rig.begun == 0
        rig.gate.clear()
        while rig.begun == 0:
            await rig.changed.wait()
        await asyncio.sleep(0)
        assert rig.begun == 1, "one core, one machine in the making"
        rig.gate.set()
        await rig.pool.filled()
        assert rig.pool.kept() == {KIND: 2}


async def test_one_on_its_way_goes_to_the_first_who_asks(home: Path) -> None:
    async with rigged(home) as rig:
        rig.gate.clear()
        rig.pool.stock(KIND)
        first = await waiting(rig)
        assert await rig.pool.take(KIND) is None, "there is only one, and somebody has it"
        rig.gate.set()
        made = await first
        assert made is not None
        assert made.record.pool
        assert (rig.pool.hits, rig.pool.misses) == (1, 1)
        await rig.pool.filled()
        assert rig.pool.kept() == {KIND: 3}, "two found nothing ready"
        await rig.world.agent.kill(made.id)


@pytest.mark.parametrize("late", [False, True])
async def test_who_leaves_leaves_it_to_the_next(home: Path, *, late: bool) -> None:
    """`late`: the cancel comes when it is up already."""
    async with rigged(home) as rig:
        rig.gate.clear()
        rig.pool.stock(KIND)
        asking = await waiting(rig)
        shelf = rig.pool._shelves[KIND]
        making = shelf.making[0].task
        assert making is not None
        if late:
            making.add_done_callback(lambda _: asking.cancel())
            rig.gate.set()
        else:
            asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        rig.gate.set()
        await rig.pool.filled()
        made = await rig.pool.take(KIND)
        assert made is not None
        await rig.world.agent.kill(made.id)


async def test_where_none_can_be_made_the_caller_tries(home: Path) -> None:
    async with rigged(home) as rig:
        rig.gate.clear()
        rig.broken = True
        rig.pool.stock(KIND)
        asking = await waiting(rig)
        rig.gate.set()
        assert await asking is None
        rig.broken = False
        await rig.pool.filled()
        assert await rig.pool.take(KIND) is None
        await rig.pool.filled()
        assert rig.pool.kept() == {KIND: 1}, "and the next who asks has the pool try again"


async def test_of_some_kinds_fewer_are_stocked(home: Path) -> None:
    async with rigged(home, pool_size=2) as rig:
        rig.pool.stock(OTHER, 1)
        rig.pool.stock(KIND)
        await rig.pool.filled()
        assert rig.pool.kept() == {OTHER: 1, KIND: 2}
    async with rigged(home, pool_size=0) as rig:
        rig.pool.stock(KIND)
        assert (rig.pool.kept(), await rig.pool.take(KIND)) == ({}, None)


async def test_what_is_stocked_is_tried_again_by_and_by(home: Path) -> None:
    async with rigged(home) as rig:
        rig.broken = True
        rig.pool.stock(KIND)
        await rig.pool.filled()
        assert rig.pool.kept() == {KIND: 0}
        rig.broken = False
        rig.pool.ebb(asyncio.get_running_loop().time())
        await rig.pool.filled()
        assert rig.pool.kept() == {KIND: 1}


async def test_one_that_died_meanwhile_is_no_hit(home: Path) -> None:
    async with rigged(home) as rig:
        rig.pool.stock(KIND)
        await rig.pool.filled()
        (dead,) = rig.pool._shelves[KIND].ready
        assert dead.machine is not None
        await dead.machine.stop(0.0)
        while dead.record.running is not None:  # its owner task notices
            await asyncio.sleep(0)
        assert await rig.pool.take(KIND) is None
        await rig.pool.filled()
        assert dead.id not in rig.world.agent._sandboxes


async def test_what_was_not_asked_for_makes_room(home: Path) -> None:
    async with rigged(home, pool_size=2, pool_memory=3 * SHAPE.memory_bytes) as rig:
        rig.pool.stock(KIND)
        await rig.pool.filled()
        assert rig.pool.kept() == {KIND: 2}
        assert await rig.pool.take(OTHER) is None
        await rig.pool.filled()
        assert rig.pool.kept() == {KIND: 0, OTHER: 3}
        assert await rig.pool.take(Kind("tiny", Shape(1, 4096), NetworkMode.OFF)) is None
        await rig.pool.filled()
        assert sum(rig.pool.kept().values()) == 3, "what can never fit drives nothing out"


async def test_what_nobody_asks_for_is_let_go(home: Path) -> None:
    async with rigged(home, pool_size=1) as rig:
        rig.pool.stock(KIND)
        assert await rig.pool.take(OTHER) is None
        await rig.pool.filled()
        assert rig.pool.kept() == {KIND: 1, OTHER: 2}
        now = asyncio.get_running_loop().time()
        for later in (0.5, 1.5, 1.9):
            rig.pool.ebb(now + later * pools.FALL_AFTER)
        await rig.pool.filled()
        assert rig.pool.kept() == {KIND: 1, OTHER: 1}
        rig.pool.ebb(now + 2.6 * pools.FALL_AFTER)
        await rig.pool.filled()
        assert rig.pool.kept() == {KIND: 1}


async def test_what_suffices_falls_to_the_configured_number(home: Path) -> None:
    async with rigged(home) as rig:
        for _ in range(2):
            assert await rig.pool.take(KIND) is None
        await rig.pool.filled()
        assert rig.pool.kept() == {KIND: 3}
        shelf, now = rig.pool._shelves[KIND], asyncio.get_running_loop().time()
        for later in (1.1, 2.2, 3.3, 4.4):
            shelf.asked = now + (later - 0.1) * pools.FALL_AFTER  # and it was there
            rig.pool.ebb(now + later * pools.FALL_AFTER)
        await rig.pool.filled()
        assert rig.pool.kept() == {KIND: 1}


async def test_copies_of_what_a_snapshot_runs_are_not_made_ahead(home: Path) -> None:
    async with opened(home, pool_size=2) as world:
        source = await world.create("x", pooled=False)
        artefact = await world.agent.snapshot(source.id, "mine")
        copy = await world.agent.create(CreateSpec(artefact.id, SHAPE))
        await world.agent.pool.filled()
        assert world.agent.pool.kept() == {}
        assert {one.id for one in world.agent._sandboxes.values()} == {source.id, copy.id}
        await world.clear()
        world.check()


async def test_a_create_that_fails_behind_the_pool_says_why(home: Path) -> None:
    async with opened(home, pool_size=1) as world:
        await world.agent.warm("tiny", SHAPE)
        world.vmm.faults.add(Fault.LAUNCH_REFUSED)
        world.agent.pool.stock(KIND)
        with pytest.raises(VmmError):
            await world.agent.create(CreateSpec("tiny", SHAPE))
        world.vmm.faults.clear()
        await world.agent.pool.filled()
        made = await world.agent.create(CreateSpec("tiny", SHAPE))
        await world.agent.kill(made.id)
        await world.clear()
