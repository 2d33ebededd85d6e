"""The host as its control plane sees it: ports.hosts.Host on a host agent.

The control plane names a sandbox by its own id, the host its machine by another: a pooled machine was running before anybody asked for the sandbox. The
record of a machine holds both, so that the two find each other after any restart. Sandboxes without the first (made on this machine's command line) are
nobody's here and stay out of every answer.

An order runs in a task of its own, one for each sandbox and verb: a caller that leaves changes nothing, and one that asks again joins.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar, cast
from weakref import WeakSet

from torpor.durable import files
from torpor.host.agent import CreateSpec, HostAgent
from torpor.host.capacity import Marks, capacity
from torpor.host.record import Running, SandboxRecord
from torpor.host.sandbox import Sandbox
from torpor.model.errors import ArtefactError, Denied, DenyReason, GuestLost, HostUnavailable, InvalidInput, NotFound
from torpor.model.sandbox import Egress, MachineState, check_id
from torpor.model.snapshots import ArtefactKind
from torpor.ports.guest import Guest
from torpor.ports.hosts import Capacity, HostTemplate, Machine, MachineStatus, Order, Reading, Report, Stored
from torpor.ports.store import Artefact

T = TypeVar("T")

SNAPSHOT = "control-"
"""What the host's names of the control plane's snapshots begin with."""
_STATUS = {MachineState.READY: MachineStatus.RUNNING, MachineState.PAUSED: MachineStatus.PAUSED, MachineState.ENDED: MachineStatus.ENDED}


@dataclass(eq=False)
class _Feed:
    """One reader of changes: the latest of each sandbox, in the order in which they changed first. `ended` None marks the end."""

    waiting: dict[str, Machine] = field(default_factory=dict)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    ended: bool = False

    def put(self, machine: Machine) -> None:
        self.waiting[machine.sandbox_id] = machine
        self.news.set()

    def end(self) -> None:
        self.ended = True
        self.news.set()

    def __aiter__(self) -> AsyncIterator[Machine]:
        return self

    async def __anext__(self) -> Machine:
        while not self.waiting:
            if self.ended:
                raise StopAsyncIteration
            self.news.clear()
            await self.news.wait()
        return self.waiting.pop(next(iter(self.waiting)))


class HostDesk:
    """Implements ports.hosts.Host. Opened after its agent and closed before it. `home`: the directory whose file system holds what sandboxes keep."""

    def __init__(self, host_id: str, agent: HostAgent, home: Path, marks: Marks | None = None) -> None:
        self._id = host_id
        self._agent = agent
        self._home = home
        self._marks = marks or Marks()
        self._names: dict[str, str] = {}
        self._orders: dict[tuple[str, str], asyncio.Task[object]] = {}
        self._making: dict[str, Order] = {}
        self._feeds: WeakSet[_Feed] = WeakSet()
        self._told: dict[str, Machine] = {}
        self._closed = True

    @property
    def id(self) -> str:
        return self._id

    async def open(self) -> None:
        """Learns what the agent holds."""
        self._names = {record.sandbox_id: record.id for record in self._agent.records() if record.sandbox_id}
        self._agent.listen(self._changed)
        self._closed = False

    async def close(self) -> None:
        """No order is taken any more. Creates under way are undone (they are asked again after a restart), everything else is finished first."""
        self._closed = True
        for (_, verb), task in self._orders.items():
            if verb == "create":
                task.cancel()
        await asyncio.gather(*self._orders.values(), return_exceptions=True)
        for feed in list(self._feeds):
            feed.end()

    # -- what there is ---------------------------------------------------------------------------------------------------------------

    async def report(self) -> Report:
        self._demand_open()
        machines = [self._describe(sandbox) for sandbox in self._held()]
        known = {machine.sandbox_id for machine in machines}
        machines += [_in_the_making(order) for sandbox_id, order in self._making.items() if sandbox_id not in known]
        return Report(machines, self._stored(), await self.capacity())

    async def templates(self) -> Sequence[HostTemplate]:
        self._demand_open()
        built = self._agent.context.images.templates()
        return [HostTemplate(name, one.user, one.home, one.size_bytes) for one in built for name in (one.name, *one.aliases)]

    async def capacity(self) -> Capacity:
        self._demand_open()
        problems = self._agent.context.networks.problems()
        return replace(capacity(self._home, self._marks), no_network=problems[0] if problems else "")

    def changes(self) -> AsyncIterator[Machine]:
        self._demand_open()
        feed = _Feed()
        self._feeds.add(feed)
        return feed

    async def readings(self) -> Sequence[Reading]:
        self._demand_open()
        readings = []
        for sandbox in self._held():
            machine, running = sandbox.machine, sandbox.record.running
            if machine is None or running is None:
                continue
            try:
                stats = machine.stats()
            except GuestLost:  # it ended a moment ago
                continue
            readings.append(Reading(sandbox.record.sandbox_id, stats.cpu_seconds, stats.resident_bytes, self._overlay_bytes(sandbox.record, running)))
        return readings

    async def machine(self, sandbox_id: str) -> Machine:
        self._demand_open()
        making = self._making.get(sandbox_id)
        if making is not None and self._find(sandbox_id) is None:
            return _in_the_making(making)
        return self._describe(self._get(sandbox_id))

    async def guest(self, sandbox_id: str) -> Guest:
        self._demand_open()
        return await self._get(sandbox_id).guest()

    # -- orders ----------------------------------------------------------------------------------------------------------------------

    async def create(self, order: Order) -> Machine:
        async def work() -> Machine:
            self._making[order.sandbox_id] = order
            try:
                found = self._find(order.sandbox_id)
                return self._describe(found or await self._agent.create(_spec(order)), order_done=True)
            finally:
                del self._making[order.sandbox_id]

        return await self._once(check_id(order.sandbox_id), "create", work)

    async def pause(self, sandbox_id: str) -> Machine:
        return await self._ask(sandbox_id, "pause", lambda sandbox: self._agent.pause(sandbox.id))

    async def resume(self, sandbox_id: str) -> Machine:
        return await self._ask(sandbox_id, "resume", lambda sandbox: self._agent.resume(sandbox.id))

    async def cold_boot(self, sandbox_id: str) -> Machine:
        async def work(sandbox: Sandbox) -> None:
            if sandbox.record.state is not MachineState.READY:
                await self._agent.cold_boot(sandbox.id)

        return await self._ask(sandbox_id, "cold_boot", work)

    async def rollback(self, sandbox_id: str, artefact_id: str) -> Machine:
        return await self._ask(sandbox_id, f"rollback {artefact_id}", lambda sandbox: self._agent.rollback(sandbox.id, artefact_id))

    async def snapshot(self, sandbox_id: str, name: str) -> Stored:
        async def work() -> Stored:
            made = self._agent.context.snapshots.list(ArtefactKind.SNAPSHOT, SNAPSHOT + name)
            return _stored(made[0] if made else await self._agent.snapshot(self._get(sandbox_id).id, SNAPSHOT + name))

        return await self._once(sandbox_id, f"snapshot {check_id(name)}", work)

    async def fork(self, sandbox_id: str, orders: Sequence[Order]) -> Sequence[Machine]:
        if len({order.sandbox_id for order in orders}) != len(orders) or not orders:
            raise InvalidInput("A fork has one order or more, each for a sandbox of its own.")

        async def work() -> Sequence[Machine]:
            there = [found for order in orders if (found := self._find(order.sandbox_id)) is not None]
            if len(there) == len(orders):
                return [self._describe(child) for child in there]
            await asyncio.gather(*(self._agent.kill(child.id) for child in there))  # of a try that a crash cut short: children of another moment
            specs = [_spec(order) for order in orders]
            return [self._describe(child) for child in await self._agent.fork(self._get(sandbox_id).id, wanted=specs)]

        return await self._once(sandbox_id, f"fork {orders[0].operation_id}", work)

    async def set_egress(self, sandbox_id: str, egress: Egress) -> None:
        self._demand_open()
        await self._agent.set_egress(self._get(sandbox_id).id, egress)

    async def kill(self, sandbox_id: str) -> None:
        async def work() -> None:
            making = self._orders.get((sandbox_id, "create"))
            if making is not None:
                making.cancel()
                await asyncio.wait({making})
            sandbox = self._find(sandbox_id)
            if sandbox is not None:
                await self._agent.kill(sandbox.id)
            self._names.pop(sandbox_id, None)
            self._told.pop(sandbox_id, None)

        await self._once(sandbox_id, "kill", work)

    async def delete_snapshot(self, artefact_id: str) -> None:
        await self._once(artefact_id, "delete", lambda: self._agent.delete(artefact_id))

    async def _ask(self, sandbox_id: str, verb: str, work: Callable[[Sandbox], Awaitable[object]]) -> Machine:
        async def ask() -> Machine:
            sandbox = self._get(sandbox_id)
            await work(sandbox)
            return self._describe(sandbox, order_done=True)

        return await self._once(sandbox_id, verb, ask)

    async def _once(self, subject: str, verb: str, work: Callable[[], Awaitable[T]]) -> T:
        self._demand_open()
        task = self._orders.get((subject, verb))
        if task is None:
            task = self._orders[subject, verb] = asyncio.ensure_future(_run(work))
            task.add_done_callback(lambda done: self._settled(subject, verb, done))
        try:
            return cast(T, await asyncio.shield(task))
        except asyncio.CancelledError:
            if task.cancelled():  # not the caller left: a kill, or the end of this host
                self._demand_open()
                raise Denied(DenyReason.ENDING, f"Sandbox {subject} was killed before it was there.") from None
            raise

    def _settled(self, subject: str, verb: str, done: asyncio.Task[object]) -> None:
        del self._orders[subject, verb]
        if not done.cancelled():
            done.exception()  # told to whoever waits; nobody need
        sandbox = self._find(subject)
        if sandbox is not None:
            self._tell(sandbox)

    # -- who is who ------------------------------------------------------------------------------------------------------------------

    def _demand_open(self) -> None:
        if self._closed:
            raise HostUnavailable(f"Host {self._id} is closed.")

    def _held(self) -> list[Sandbox]:
        return [self._agent.get(record.id) for record in self._agent.records() if record.sandbox_id]

    def _find(self, sandbox_id: str) -> Sandbox | None:
        try:
            return self._agent.get(self._names[sandbox_id])
        except KeyError:  # one whose record was not written yet
            return next((sandbox for sandbox in self._held() if sandbox.record.sandbox_id == sandbox_id), None)
        except NotFound:
            return None

    def _get(self, sandbox_id: str) -> Sandbox:
        sandbox = self._find(sandbox_id)
        if sandbox is None:
            raise NotFound(f"Host {self._id} has no sandbox {sandbox_id[:40]}.")
        return sandbox

    def _changed(self, sandbox: Sandbox) -> None:
        if sandbox.record.sandbox_id:
            self._names[sandbox.record.sandbox_id] = sandbox.id
            self._tell(sandbox)

    def _tell(self, sandbox: Sandbox) -> None:
        machine = self._describe(sandbox)
        if self._told.get(machine.sandbox_id) == machine:
            return
        self._told[machine.sandbox_id] = machine
        for feed in list(self._feeds):
            feed.put(machine)

    def _describe(self, sandbox: Sandbox, *, order_done: bool = False) -> Machine:
        """`order_done`: said by the order itself, which is about to end."""
        record = sandbox.record
        busy = sum(subject == record.sandbox_id and verb != "kill" for subject, verb in self._orders) > order_done
        status = MachineStatus.BUSY if busy else _STATUS.get(record.state, MachineStatus.BUSY)
        if record.state is MachineState.ENDED:
            status = MachineStatus.ENDED
        return Machine(
            sandbox_id=record.sandbox_id,
            machine_id=record.id,
            status=status,
            generation=record.generation,
            shape=record.shape,
            stored_bytes=self._stored_bytes(record),
            end_reason=record.end_reason if status is MachineStatus.ENDED else None,
            end_note=record.end_note if status is MachineStatus.ENDED else "",
            conditions=record.conditions,
        )

    def _stored_bytes(self, record: SandboxRecord) -> int:
        if record.running is not None and record.state is not MachineState.PAUSED:
            return self._overlay_bytes(record, record.running)
        try:
            return self._agent.context.snapshots.salvage(record.artefact_id).stored_bytes if record.artefact_id else 0
        except (NotFound, ArtefactError):
            return 0

    def _overlay_bytes(self, record: SandboxRecord, running: Running) -> int:
        return files.allocated(self._agent.context.records.directory(record.id) / running.run_dir / running.overlay)

    def _stored(self) -> list[Stored]:
        return [_stored(artefact) for artefact in self._agent.context.snapshots.list(ArtefactKind.SNAPSHOT) if artefact.owner.startswith(SNAPSHOT)]


async def _run(work: Callable[[], Awaitable[T]]) -> T:
    return await work()


def _spec(order: Order) -> CreateSpec:
    return CreateSpec(order.source, order.shape, order.network, order.hostname, dict(order.names), sandbox_id=check_id(order.sandbox_id), egress=order.egress)


def _stored(artefact: Artefact) -> Stored:
    return Stored(artefact.id, artefact.owner.removeprefix(SNAPSHOT), artefact.shape, artefact.stored_bytes)


def _in_the_making(order: Order) -> Machine:
    return Machine(order.sandbox_id, "", MachineStatus.BUSY, 0, order.shape)
