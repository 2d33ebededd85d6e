"""A control plane on a real host desk with fake machines: both are stopped and started again, and nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from host_world import World, opened

from torpor.bus.local import LocalBus
from torpor.host.desk import HostDesk
from torpor.hostlink.local import LocalHosts
from torpor.lifecycle.sandbox import FINAL
from torpor.model.records import SYSTEM, Sandbox, SandboxState
from torpor.model.sandbox import EndReason
from torpor.ports.hosts import MachineStatus
from torpor.ports.records import SandboxFilter
from torpor.service.caller import Caller
from torpor.service.context import Context
from torpor.service.control import ControlPlane
from torpor.service.sandboxes import CreateRequest, Started
from torpor.storage.store import make_store

S = SandboxState
ME = Caller("t" * 25, SYSTEM)
TINY = CreateRequest("tiny", 1, 256, 1024)


@dataclass
class Both:
    world: World
    desk: HostDesk
    plane: ControlPlane

    async def done(self, started: Started) -> Sandbox:
        return await self.plane.sandboxes.settled(started.sandbox.id, started.operation_id, 60.0)

    async def text(self, sandbox_id: str) -> str:
        async with self.plane.sandboxes.use(ME, sandbox_id, "test") as guest:
            known: Any = guest
            return str(await known.text())

    async def check(self) -> None:
        found = (await self.plane.sandboxes.list(ME, SandboxFilter())).items
        live = {one.id: one.state.value for one in found if one.state not in FINAL}
        report = await self.desk.report()
        assert {one.sandbox_id: one.status.value for one in report.machines} == live
        assert {one.name for one in report.snapshots} == {one.id for one in (await self.plane.templates.list(ME)).items if one.host_id}
        self.world.check()


@asynccontextmanager
async def started(home: Path, *, leave: bool = False) -> AsyncIterator[Both]:
    async with opened(home) as world:
        desk = HostDesk("here", world.agent, home)
        await desk.open()
        store = make_store(home / "records.db")
        await store.open()
        plane = ControlPlane(Context(store, LocalBus(), LocalHosts(desk)))
        await plane.open()
        yield Both(world, desk, plane)
        await plane.close()
        await store.close()
        if not leave:
            await world.clear()
        await desk.close()


async def test_a_life_over_restarts(home: Path) -> None:
    async with started(home, leave=True) as both:
        boxes = both.plane.sandboxes
        first, second = [(await both.done(await boxes.create(ME, TINY))).id for _ in range(2)]
        async with boxes.use(ME, first, "test") as guest:
            known: Any = guest
            await known.remember("kept")
        assert (await both.done(await boxes.pause(ME, first))).state is S.PAUSED
        assert (await both.done(await boxes.snapshot(ME, first, "asleep"))).state is S.PAUSED
        await both.world.agent.idle()
        await both.check()
    async with started(home) as both:
        boxes = both.plane.sandboxes
        await both.check()
        assert (await both.done(await boxes.resume(ME, first))).state is S.RUNNING
        children = [await both.done(one) for one in await boxes.fork(ME, first, 2)]
        copy = await both.done(await boxes.create(ME, CreateRequest("asleep")))
        assert [await both.text(one.id) for one in (*children, copy)] == ["kept"] * 3
        assert (await both.done(await boxes.rollback(ME, second, "asleep"))).state is S.RUNNING
        assert await both.text(second) == "kept"
        machine: Any = both.world.agent.get((await both.desk.machine(copy.id)).machine_id).machine
        changes = both.desk.changes()
        machine.crash()
        async for change in changes:
            if change.status is MachineStatus.ENDED:
                break
        ended = await both.plane.reconciler.look_at(copy.id)
        assert ended is not None and (ended.state, ended.end_reason) == (S.STOPPED, EndReason.VMM_CRASH)
        await both.plane.operations.idle()
        await asyncio.gather(*(boxes.kill(ME, one.id) for one in children))
        await both.plane.operations.idle()
        await both.world.agent.idle()
        await both.check()
