"""Hosts without machines that misbehave on request; held to testing.conformance.hosts while they do not.

    host.faults.append(Fault("pause", Trouble.LOST_REPLY))     the next pause is carried out, and its answer never arrives
    host.hold("resume")                                        resumes wait before they do anything, until `host.let_go("resume")`

What a fake host holds outlives its control plane, as a real one does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, TypeVar

from torpor.model.errors import Denied, DenyReason, GuestLost, HostUnavailable, NotFound, TorporError, VmmError
from torpor.model.sandbox import Egress, EndReason, Identity
from torpor.model.shapes import Shape
from torpor.ports.hosts import Capacity, HostTemplate, Machine, MachineStatus, Order, Reading, Report, Stored

T = TypeVar("T")
_STATUS = MachineStatus


class Trouble(Enum):
    """UNREACHABLE: nothing is done. LOST_REPLY: it is done, and said that the host cannot be reached. REFUSED: `Fault.error`, nothing is done.
    ERROR_AFTER: it is done, and `Fault.error` raised all the same. SILENT: nothing is done and no answer ever comes."""

    UNREACHABLE = "unreachable"
    LOST_REPLY = "lost_reply"
    REFUSED = "refused"
    ERROR_AFTER = "error_after"
    SILENT = "silent"


@dataclass
class Fault:
    """For the next `times` calls of `verb` ('' any)."""

    verb: str
    trouble: Trouble
    times: int = 1
    error: TorporError = field(default_factory=lambda: VmmError("The fake host refuses."))


@dataclass
class FakeGuest:
    """A guest that remembers one text. `memory` is lost by a cold boot, and goes with pauses, snapshots and forks."""

    identity: Identity
    memory: str = ""
    generation: int = 1
    default_user: str = "root"
    lost: bool = False

    async def text(self) -> str:
        await self.ping()
        return self.memory

    async def remember(self, text: str) -> None:
        await self.ping()
        self.memory = text

    async def sync(self) -> None:
        await self.ping()

    async def ping(self) -> None:
        if self.lost:
            raise GuestLost("The fake guest is gone.")

    async def close(self) -> None: ...


@dataclass
class _Box:
    """One sandbox of a fake host. `kept`: the memory of its last pause."""

    machine: Machine
    guest: FakeGuest
    kept: str = ""
    egress: Egress = field(default_factory=Egress)


@dataclass
class _Feed:
    waiting: dict[str, Machine] = field(default_factory=dict)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def __aiter__(self) -> AsyncIterator[Machine]:
        return self

    async def __anext__(self) -> Machine:
        while not self.waiting:
            self.news.clear()
            await self.news.wait()
        return self.waiting.pop(next(iter(self.waiting)))


class FakeHost:
    """Implements ports.hosts.Host. `calls` are (verb, subject) in the order of arrival, `effects` those that changed something."""

    def __init__(self, host_id: str = "fakehost", capacity: Capacity | None = None) -> None:
        self._id = host_id
        self.faults: list[Fault] = []
        self.calls: list[tuple[str, str]] = []
        self.effects: list[tuple[str, str]] = []
        self.before: Callable[[str, str], None] = lambda verb, subject: None
        self.after: Callable[[str, str], None] = lambda verb, subject: None
        self.reachable = True
        self.space = capacity or Capacity(64, 65536, 1 << 40, 65536, 1 << 39)
        self._boxes: dict[str, _Box] = {}
        self._snapshots: dict[str, tuple[Stored, str]] = {}
        self._gates: dict[str, asyncio.Event] = {}
        self._turns: dict[str, asyncio.Lock] = {}
        self._feeds: list[_Feed] = []
        self._numbers = 0
        self._was: dict[str, MachineStatus] = {}

    # --- levers

    def hold(self, verb: str) -> None:
        self._gates[verb] = asyncio.Event()

    def let_go(self, verb: str) -> None:
        self._gates.pop(verb).set()

    def die(self, sandbox_id: str, reason: EndReason = EndReason.VMM_CRASH, note: str = "The fake VMM ended.") -> None:
        """The machine ends by itself."""
        self._end(self._boxes[sandbox_id], reason, note)

    def busy(self, sandbox_id: str) -> None:
        """Something is under way with it, until its next order is carried out."""
        box = self._boxes[sandbox_id]
        self._was[sandbox_id] = box.machine.status
        box.machine = replace(box.machine, status=_STATUS.BUSY)

    def lose(self, sandbox_id: str) -> None:
        """The host forgets the sandbox altogether."""
        self._boxes.pop(sandbox_id).guest.lost = True

    def memory(self, sandbox_id: str) -> str:
        """What the guest remembers, or would after a resume."""
        box = self._boxes[sandbox_id]
        return box.guest.memory if box.machine.status is _STATUS.RUNNING else box.kept

    def egress(self, sandbox_id: str) -> Egress:
        return self._boxes[sandbox_id].egress

    def statuses(self) -> dict[str, MachineStatus]:
        return {name: box.machine.status for name, box in self._boxes.items()}

    def snapshots(self) -> dict[str, str]:
        """Name -> artefact id."""
        return {stored.name: artefact_id for artefact_id, (stored, _) in self._snapshots.items()}

    # --- ports.hosts.Host

    @property
    def id(self) -> str:
        return self._id

    async def report(self) -> Report:
        return await self._call("report", "", self._report, effect=False)

    async def templates(self) -> Sequence[HostTemplate]:
        return await self._call("templates", "", lambda: [HostTemplate("tiny", "root", "/root", 1 << 20)], effect=False)

    async def capacity(self) -> Capacity:
        return await self._call("capacity", "", lambda: self.space, effect=False)

    def changes(self) -> AsyncIterator[Machine]:
        feed = _Feed()
        self._feeds.append(feed)
        return feed

    async def readings(self) -> Sequence[Reading]:
        running = [box.machine for box in self._boxes.values() if box.machine.status is _STATUS.RUNNING]
        return await self._call("readings", "", lambda: [Reading(one.sandbox_id, 1.0, 100 << 20, 1 << 20) for one in running], effect=False)

    async def machine(self, sandbox_id: str) -> Machine:
        return await self._call("machine", sandbox_id, lambda: self._box(sandbox_id).machine, effect=False)

    async def guest(self, sandbox_id: str) -> Any:
        def find() -> FakeGuest:
            box = self._box(sandbox_id)
            if box.machine.status is not _STATUS.RUNNING:
                raise Denied(DenyReason.NOT_RUNNING, f"Sandbox {sandbox_id} is {box.machine.status.value}.")
            return box.guest

        return await self._call("guest", sandbox_id, find, effect=False)

    async def create(self, order: Order) -> Machine:
        return await self._call("create", order.sandbox_id, lambda: self._create(order))

    async def pause(self, sandbox_id: str) -> Machine:
        def pause() -> Machine:
            box = self._demand(sandbox_id, _STATUS.RUNNING, _STATUS.PAUSED)
            if box.machine.status is _STATUS.RUNNING:
                self._pause(box)
            return box.machine

        return await self._call("pause", sandbox_id, pause)

    async def resume(self, sandbox_id: str) -> Machine:
        def resume() -> Machine:
            box = self._demand(sandbox_id, _STATUS.RUNNING, _STATUS.PAUSED)
            return box.machine if box.machine.status is _STATUS.RUNNING else self._start(box, box.kept)

        return await self._call("resume", sandbox_id, resume)

    async def cold_boot(self, sandbox_id: str) -> Machine:
        def boot() -> Machine:
            box = self._demand(sandbox_id, _STATUS.RUNNING, _STATUS.PAUSED, _STATUS.ENDED)
            return box.machine if box.machine.status is _STATUS.RUNNING else self._start(box, "")

        return await self._call("cold_boot", sandbox_id, boot)

    async def rollback(self, sandbox_id: str, artefact_id: str) -> Machine:
        def roll() -> Machine:
            box = self._demand(sandbox_id, *_STATUS)
            return self._start(box, self._artefact(artefact_id)[1])

        return await self._call("rollback", sandbox_id, roll)

    async def snapshot(self, sandbox_id: str, name: str) -> Stored:
        def snap() -> Stored:
            made = self.snapshots().get(name)
            return self._snapshots[made][0] if made else self._snap(self._demand(sandbox_id, _STATUS.RUNNING, _STATUS.PAUSED), name)

        return await self._call("snapshot", sandbox_id, snap)

    async def fork(self, sandbox_id: str, orders: Sequence[Order]) -> Sequence[Machine]:
        def fork() -> Sequence[Machine]:
            if all(order.sandbox_id in self._boxes for order in orders):
                return [self._boxes[order.sandbox_id].machine for order in orders]
            source = self._demand(sandbox_id, _STATUS.RUNNING)
            for order in orders:
                self._boxes.pop(order.sandbox_id, None)
            return [self._make(order, source.guest.memory, source.machine.shape) for order in orders]

        return await self._call("fork", sandbox_id, fork)

    async def set_egress(self, sandbox_id: str, egress: Egress) -> None:
        def restrict() -> None:
            self._box(sandbox_id).egress = egress

        await self._call("set_egress", sandbox_id, restrict)

    async def kill(self, sandbox_id: str) -> None:
        def kill() -> None:
            box = self._boxes.pop(sandbox_id, None)
            if box is not None:
                box.guest.lost = True
                self._tell(replace(box.machine, status=_STATUS.ENDED, end_reason=EndReason.USER))

        await self._call("kill", sandbox_id, kill)

    async def delete_snapshot(self, artefact_id: str) -> None:
        def delete() -> None:
            self._snapshots.pop(artefact_id, None)

        await self._call("delete_snapshot", artefact_id, delete)

    # --- inside

    async def _call(self, verb: str, subject: str, act: Callable[[], T], *, effect: bool = True) -> T:
        self.calls.append((verb, subject))
        self.before(verb, subject)
        fault = self._take_fault(verb)
        if fault is not None and fault.trouble is Trouble.SILENT:
            await asyncio.Event().wait()
        if not self.reachable or (fault is not None and fault.trouble is Trouble.UNREACHABLE):
            raise HostUnavailable(f"Host {self._id} cannot be reached.")
        if fault is not None and fault.trouble is Trouble.REFUSED:
            raise fault.error
        if not effect:
            return act()
        result = await asyncio.shield(asyncio.ensure_future(self._work(verb, subject, act)))
        if fault is not None:
            raise fault.error if fault.trouble is Trouble.ERROR_AFTER else HostUnavailable(f"Host {self._id}: the reply was lost.")
        return result

    async def _work(self, verb: str, subject: str, act: Callable[[], T]) -> T:
        """One order after another for each sandbox; a kill does not wait for those that are held."""
        if verb in self._gates:
            await self._gates[verb].wait()
        async with self._turns.setdefault(subject, asyncio.Lock()):
            if subject in self._was:
                self._boxes[subject].machine = replace(self._boxes[subject].machine, status=self._was.pop(subject))
            before = (self._state(subject), set(self._boxes), set(self._snapshots))
            result = act()
            if before != (self._state(subject), set(self._boxes), set(self._snapshots)):
                self.effects.append((verb, subject))
            self.after(verb, subject)
            return result

    def _state(self, subject: str) -> tuple[MachineStatus, int] | None:
        box = self._boxes.get(subject)
        return (box.machine.status, box.machine.generation) if box else None

    def _take_fault(self, verb: str) -> Fault | None:
        for fault in self.faults:
            if fault.verb in (verb, ""):
                fault.times -= 1
                if fault.times == 0:
                    self.faults.remove(fault)
                return fault
        return None

    def _report(self) -> Report:
        return Report([box.machine for box in self._boxes.values()], [stored for stored, _ in self._snapshots.values()], self.space)

    def _box(self, sandbox_id: str) -> _Box:
        if sandbox_id not in self._boxes:
            raise NotFound(f"Host {self._id} has no sandbox {sandbox_id}.")
        return self._boxes[sandbox_id]

    def _demand(self, sandbox_id: str, *statuses: MachineStatus) -> _Box:
        box = self._box(sandbox_id)
        if box.machine.status not in statuses:
            reason = DenyReason.ENDED if box.machine.status is _STATUS.ENDED else DenyReason.NOT_RUNNING
            raise Denied(reason, f"Sandbox {sandbox_id} is {box.machine.status.value}.")
        return box

    def _artefact(self, artefact_id: str) -> tuple[Stored, str]:
        if artefact_id not in self._snapshots:
            raise NotFound(f"There is no snapshot {artefact_id}.")
        return self._snapshots[artefact_id]

    def _create(self, order: Order) -> Machine:
        if order.sandbox_id in self._boxes:
            return self._boxes[order.sandbox_id].machine
        if order.source == "tiny":
            return self._make(order, "", order.shape)
        stored, memory = self._artefact(order.source)
        return self._make(order, memory, replace(stored.shape, disk_mib=max(stored.shape.disk_mib, order.shape.disk_mib)))

    def _make(self, order: Order, memory: str, shape: Shape) -> Machine:
        self._numbers += 1
        identity = Identity(order.sandbox_id, order.hostname or f"sandbox-{order.sandbox_id[:8]}", f"{self._numbers:032x}", dict(order.names))
        machine = Machine(order.sandbox_id, f"m{self._numbers:024d}", _STATUS.RUNNING, 1, shape)
        self._boxes[order.sandbox_id] = _Box(machine, FakeGuest(identity, memory), egress=order.egress)
        self._tell(machine)
        return machine

    def _start(self, box: _Box, memory: str) -> Machine:
        box.guest.lost = True
        generation = box.machine.generation + 1
        box.guest = FakeGuest(box.guest.identity, memory, generation)
        return self._set(box, replace(box.machine, status=_STATUS.RUNNING, generation=generation, end_reason=None, end_note="", stored_bytes=0))

    def _pause(self, box: _Box) -> None:
        box.kept, box.guest.lost = box.guest.memory, True
        self._set(box, replace(box.machine, status=_STATUS.PAUSED, stored_bytes=20 << 20))

    def _end(self, box: _Box, reason: EndReason, note: str) -> None:
        box.guest.lost = True
        self._set(box, replace(box.machine, status=_STATUS.ENDED, end_reason=reason, end_note=note, stored_bytes=0))

    def _snap(self, box: _Box, name: str) -> Stored:
        self._numbers += 1
        stored = Stored(f"a{self._numbers:024d}", name, box.machine.shape, 30 << 20)
        memory = box.guest.memory if box.machine.status is _STATUS.RUNNING else box.kept
        self._snapshots[stored.artefact_id] = (stored, memory)
        return stored

    def _set(self, box: _Box, machine: Machine) -> Machine:
        box.machine = machine
        self._tell(machine)
        return machine

    def _tell(self, machine: Machine) -> None:
        for feed in self._feeds:
            feed.waiting[machine.sandbox_id] = machine
            feed.news.set()
