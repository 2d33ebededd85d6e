"""A control plane on SQLite, a fake host and a clock that is moved; and a way to let it die before or after any host call or any transaction."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torpor.bus.local import LocalBus
from torpor.hostlink.local import LocalHosts
from torpor.lifecycle.sandbox import FINAL, TRANSIENT
from torpor.model.records import Actor, ActorKind, Sandbox, SandboxState, Template, TemplateState
from torpor.model.sandbox import base36
from torpor.ports.hosts import MachineStatus
from torpor.ports.records import SandboxFilter
from torpor.service.caller import Caller
from torpor.service.context import Context, Policy
from torpor.service.control import ControlPlane
from torpor.service.sandboxes import CreateRequest, Started
from torpor.storage.store import SqlStore, make_store
from torpor.testing.fake_clock import FakeClock
from torpor.testing.fake_hosts import FakeHost

S = SandboxState
TEAM = "t" * 25
ME = Caller(TEAM, Actor(ActorKind.API_KEY, "k" * 25, "key"), request_id="r1")
OTHER = Caller("o" * 25, Actor(ActorKind.API_KEY, "l" * 25, "key"))
ADMIN = Caller("", Actor(ActorKind.USER, "u" * 25, "root"), is_admin=True)
TINY = CreateRequest("tiny", 1, 256, 1024)
STATUS = {S.RUNNING: MachineStatus.RUNNING, S.PAUSED: MachineStatus.PAUSED}
LONG = 10_000.0


class DyingStore:
    """A store that lets `passed` know before and after each transaction."""

    def __init__(self, inner: SqlStore, passed: Callable[[str], None]) -> None:
        self._inner = inner
        self._passed = passed
        self.read, self.look = inner.read, inner.look
        self.open, self.close = inner.open, inner.close

    @asynccontextmanager
    async def write(self) -> AsyncIterator[Any]:
        self._passed("before a transaction")
        async with self._inner.write() as records:
            yield records
        self._passed("after a transaction")


@dataclass
class World:
    """What outlives a control plane: store, host, clock, bus. `die_at` > 0: the control plane dies at that point of what it does."""

    store: SqlStore
    clock: FakeClock
    host: FakeHost
    hosts: LocalHosts
    bus: LocalBus
    planes: list[ControlPlane] = field(default_factory=list)
    die_at: int = 0
    points: int = 0
    died: asyncio.Event = field(default_factory=asyncio.Event)
    point: str = ""
    ids: Iterator[int] = field(default_factory=lambda: itertools.count(36**24))

    async def start(self, **policy: Any) -> ControlPlane:
        store: Any = DyingStore(self.store, self.passed)
        policy = {"sample_every": LONG, "team_sample_every": LONG, "embedded": policy.get("sole", True)} | policy  # replicas share the host
        context = Context(
            store, self.bus, self.hosts, now=self.clock.now, new_id=lambda: base36(next(self.ids)), policy=Policy(**policy), sleep_until=self.clock.sleep_until
        )
        plane = ControlPlane(context)
        self.planes.append(plane)
        await plane.open()
        return plane

    def passed(self, point: str) -> None:
        if not self.die_at:
            return
        self.points += 1
        if self.points == self.die_at:
            self.point = point
            self.died.set()
        if self.points >= self.die_at:
            raise asyncio.CancelledError(point)

    async def kill(self, plane: ControlPlane) -> None:
        """As kill -9 would: nothing of it runs on, nothing is written."""
        self.planes.remove(plane)
        self.die_at = 0
        tasks = [*plane.operations._tasks.values(), *plane.operations._chores, *plane.figures._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for part in (plane.chores, plane.retention, plane.timers, plane.reconciler, plane.presence):
            await part.close()

    async def close(self) -> None:
        self.die_at = 0
        for plane in self.planes:
            await plane.close()
        await self.store.close()

    # --- looking

    async def sandbox(self, sandbox_id: str) -> Sandbox:
        async with self.store.read() as records:
            found = await records.sandboxes.get(sandbox_id)
        assert found is not None
        return found

    async def all(self) -> list[Sandbox]:
        async with self.store.read() as records:
            return list((await records.sandboxes.list(SandboxFilter(), limit=1000)).items)

    async def events(self, sandbox_id: str) -> list[str]:
        async with self.store.read() as records:
            return [event.name for event in await records.events.of(sandbox_id)]

    async def audit(self) -> list[tuple[str, str, str]]:
        async with self.store.read() as records:
            entries = (await records.audit.list(TEAM, scopes=["team", "admin"])).items
        return [(entry.resource_type, entry.action, entry.status.value) for entry in reversed(entries)]

    async def templates(self) -> list[Template]:
        async with self.store.read() as records:
            unsettled = list(await records.templates.unsettled())
            return unsettled + list((await records.templates.list("", limit=1000)).items)

    async def check(self) -> None:
        """Records and host agree, and nothing is under way."""
        sandboxes = await self.all()
        assert [one for one in sandboxes if one.state in TRANSIENT or one.operation is not None] == []
        live = {one.id: STATUS.get(one.state) for one in sandboxes if one.state not in FINAL}
        assert self.host.statuses() == live
        templates = await self.templates()
        assert {one.state for one in templates} <= {TemplateState.READY}
        assert self.host.snapshots() == {one.id: one.source for one in templates if one.host_id}
        for one in sandboxes:
            assert (one.end_reason is not None) == (one.state in FINAL)
            assert (one.started_at is not None) == (one.state is S.RUNNING)


async def done(plane: ControlPlane, started: Started) -> Sandbox:
    return await plane.sandboxes.settled(started.sandbox.id, started.operation_id, LONG)


async def running(plane: ControlPlane, **fields: Any) -> str:
    """The id of a new sandbox that runs."""
    request = CreateRequest(**({"template": "tiny", "vcpus": 1, "memory_mib": 256, "disk_mib": 1024} | fields))
    sandbox = await done(plane, await plane.sandboxes.create(ME, request))
    assert sandbox.state is S.RUNNING
    return sandbox.id


async def asleep(plane: ControlPlane, **fields: Any) -> str:
    sandbox_id = await running(plane, **fields)
    assert (await done(plane, await plane.sandboxes.pause(ME, sandbox_id))).state is S.PAUSED
    return sandbox_id


async def until(world: World, holds: Callable[[], Awaitable[bool]]) -> None:
    """Waits for a state of the records, woken by the bus."""
    async with world.bus.subscribe("sandbox", "event", "template") as notices:
        while not await holds():
            async with asyncio.timeout(100):
                await anext(notices)


async def until_state(world: World, sandbox_id: str, *states: SandboxState) -> Sandbox:
    async def holds() -> bool:
        return (await world.sandbox(sandbox_id)).state in states

    await until(world, holds)
    return await world.sandbox(sandbox_id)


@asynccontextmanager
async def opened(database: Path) -> AsyncIterator[World]:
    host = FakeHost()
    bus = LocalBus()
    world = World(make_store(database), FakeClock(), host, LocalHosts(host), bus)
    host.before = lambda verb, subject: world.passed(f"before {verb}")
    host.after = lambda verb, subject: world.passed(f"after {verb}")
    await world.store.open()
    await bus.open()
    try:
        yield world
    finally:
        await world.close()
        await bus.close()
