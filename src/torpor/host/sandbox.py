"""One sandbox on this host: its owner task performs requests one after another; everybody else sends requests and reads the record.

A request belongs to the owner, not to the caller: a caller that leaves changes nothing. Only `kill` does not wait its turn: it cancels what is under way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar

from torpor.host import saving
from torpor.host.adopt import Settled, slot_of
from torpor.host.boot import BootOrder, cold_boot
from torpor.host.context import Context, new_id
from torpor.host.ending import why
from torpor.host.launch import STANDS_STILL, Live, bring_up, take_down, wake_for
from torpor.host.owner import Owner
from torpor.host.record import Running, SandboxRecord
from torpor.lifecycle.machine import Happening, Life, Request, Step
from torpor.log import Log
from torpor.model.errors import Corrupt, Denied, DenyReason, GuestLost, NoSpace, NotFound, TorporError
from torpor.model.sandbox import Condition, Egress, EndReason, MachineState
from torpor.model.snapshots import ArtefactKind
from torpor.ports.guest import Guest
from torpor.ports.processes import ExitRecord
from torpor.ports.store import Artefact, DiskChain
from torpor.ports.vmm import Machine, VmmEvent

log = Log()
T = TypeVar("T")

STANDSTILL_SECONDS = 5.0
"""Between two tries of a write that the host's disk did not take: nothing tells when a file system has room again."""
SETTLED = frozenset({MachineState.READY, MachineState.PAUSED, MachineState.ENDED})


class Sandbox:
    """Made with a record (and, when taken back from an earlier owner, its live machine). `changed` is called after each write of the record."""

    def __init__(
        self,
        context: Context,
        record: SandboxRecord,
        live: Live | None = None,
        *,
        changed: Callable[[Sandbox], None] | None = None,
        coming: asyncio.Task[Settled | None] | None = None,
    ) -> None:
        """`coming`: what will be known of one whose machine does not answer yet. Until then it is as one that starts: requests wait, and a kill ends it."""
        self._context = context
        self._record = record
        self._live = live
        self._life = Life(record.state)
        self._removed = False
        self._leaving: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._changed = changed
        self._last_event: VmmEvent | None = None
        self._turns = Owner(record.id)
        self._ask, self._turn = self._turns.ask, self._turns.over
        self._coming = coming is not None
        if coming is not None:
            self._life = Life(MachineState.LAUNCHING)
            self._record = replace(record, state=MachineState.LAUNCHING)
            self._turns.tell(lambda: self._come_back(coming), preemptible=True)
        if live is not None:
            self._watch(live)

    @property
    def record(self) -> SandboxRecord:
        return self._record

    @property
    def id(self) -> str:
        return self._record.id

    @property
    def machine(self) -> Machine | None:
        return self._live.machine if self._live else None

    def story(self) -> list[Happening]:
        return self._life.story()

    # -- requests ------------------------------------------------------------------------------------------------------------------

    async def start(self, artefact: Artefact) -> None:
        """The first life, from a template's warm image or a snapshot. On failure the record is ended with reason ERROR, and the error raised."""
        await self._ask(lambda: self._bring_up(artefact.id))

    async def pause(self) -> Artefact:
        """Returns once everything the guest had acknowledged is durable. A paused sandbox returns its artefact again. Raises Denied, NoSpace,
        VmmError, GuestLost;
        unless the VMM itself died, the sandbox runs on then."""
        return await self._ask(self._pause)  # type: ignore[no-any-return]

    async def resume(self) -> None:
        """Back to where the last pause (or rollback) stood. Running already: nothing. Raises Denied, NotFound (never paused), Incompatible, Corrupt;
        it then stays
        as it was."""
        await self._ask(self._resume)

    async def snapshot(self, name: str) -> Artefact:
        """A SNAPSHOT artefact while the sandbox runs on, or of what a paused one stands at. Raises as pause, and Corrupt."""
        return await self._ask(lambda: self._snapshot(name))  # type: ignore[no-any-return]

    async def seed(self, starts: int) -> saving.Seed:
        """What `starts` copies can start from, while the sandbox runs on. The caller aborts its draft in the end; for one that leaves before the answer it
        is done here. Raises as pause."""
        asked = asyncio.ensure_future(self._ask(lambda: self._seed(starts)))
        try:
            return await asyncio.shield(asked)
        except asyncio.CancelledError:
            asked.add_done_callback(_thrown_away)
            raise

    async def rollback(self, artefact: Artefact) -> None:
        """Throws the present life away and starts from `artefact` in place. Raises as resume; a failure after the old life was thrown away leaves
        the sandbox paused at
        `artefact`."""
        await self._ask(lambda: self._rollback(artefact))

    async def cold_boot(self) -> None:
        """Boots from the sandbox's own disk as it was last left: memory is lost, files stay. Raises Denied unless paused or ended."""
        await self._ask(self._cold_boot)

    async def set_egress(self, egress: Egress) -> None:
        """See ports.hosts.Host.set_egress."""
        await self._ask(lambda: self._set_egress(egress))

    async def kill(self) -> None:
        """Ends and removes the sandbox, its private artefacts included, from any state, also in the middle of another operation. Idempotent."""
        self._turns.preempt()
        try:
            await self._ask(self._kill, preemptible=False)
        except Denied:
            if not self._removed:  # somebody else's kill was first
                raise

    async def guest(self) -> Guest:
        """The session with the running guest; waits while an operation is under way. Raises Denied when it is paused or ended, NoSpace when it stands still
        because the host's disk is full."""
        async with self._turn:
            await self._turn.wait_for(lambda: self._life.state in SETTLED)
        self._life.demand(Request.USE)
        return self._demand_live().guest

    async def hand_out(self, **given: Any) -> None:
        """Makes a pooled sandbox somebody's: a new generation with fresh entropy, the clock, its identity. `given`: the fields of the record that its owner
        sets (leash, sandbox_id, hostname, names, egress). Raises as guest."""
        await self._ask(lambda: self._hand_out(given))

    async def release(self) -> None:
        """Lets go of the sandbox without changing it, once the operation under way is done: the microVM runs on for the next owner of the home."""
        if self._coming:
            self._turns.preempt()
        await self._ask(self._release, preemptible=False)

    async def _release(self) -> None:
        self._unwatch()
        await self._gone_before()
        if self._live is not None:
            await self._live.guest.close()
            await self._live.machine.detach()
        self._turns.end()

    def _write(self, **changes: Any) -> None:
        self._record = replace(self._record, state=self._life.state, changed_at=self._context.now(), **changes)
        self._context.records.write(self._record)
        if self._changed is not None:
            self._changed(self)

    def _step(self, step: Step, note: str = "", **changes: Any) -> None:
        self._life.step(step, self._context.now(), note)
        self._write(**changes)

    # -- operations; each runs inside the owner task ---------------------------------------------------------------------------------

    async def _come_back(self, coming: asyncio.Task[Settled | None]) -> None:
        settled = await coming
        self._coming = False
        if settled is None:
            self._removed, self._life = True, Life(MachineState.ENDED)
            self._record = replace(self._record, state=MachineState.ENDED, running=None)
        else:
            self._record, self._live = settled
            self._life = Life(self._record.state)
            if self._live is not None:
                self._watch(self._live)
        if self._changed is not None:
            self._changed(self)

    async def _bring_up(self, artefact_id: str) -> None:
        await self._gone_before()
        before = self._life.state

        def note_intent(running: Running) -> None:
            self._step(Step.LAUNCHED, artefact_id, running=running, generation=running.generation)

        try:
            live = await bring_up(self._context, self._record, artefact_id, note_intent)
        except BaseException as error:
            if self._life.state is MachineState.LAUNCHING:
                if before is MachineState.PAUSED and self._record.artefact_id:
                    self._step(Step.FELL_BACK, str(error), running=None)
                else:
                    self._step(Step.GONE, str(error), running=None, end_reason=EndReason.ERROR, end_note=str(error))
            raise
        self._live = live
        self._step(Step.ANSWERED, running=live.running, disk=live.disk, conditions=_at_wake(live), end_reason=None, end_note="")
        self._watch(live)

    async def _hand_out(self, given: dict[str, Any]) -> None:
        self._life.demand(Request.USE)
        live = self._demand_live()
        generation = self._record.generation + 1
        if given["egress"] != self._record.egress:
            await self._restrict(live, given["egress"])
        await live.guest.wake(wake_for(self._context, replace(self._record, **given), generation, live.slot, 0))
        live.running = replace(live.running, generation=generation)
        self._write(pool=False, generation=generation, running=live.running, created_at=self._context.now(), **given)

    async def _set_egress(self, egress: Egress) -> None:
        if self._life.state is MachineState.STOPPING:
            raise Denied(DenyReason.ENDING, f"Sandbox {self.id} is being killed.")
        if self._live is not None:
            await self._restrict(self._live, egress)
        self._write(egress=egress)

    async def _restrict(self, live: Live, egress: Egress) -> None:
        """Noted before it is done: whoever takes the sandbox back puts the record's rules in."""
        if live.slot is None:
            return
        if not live.running.restricted:
            live.running = replace(live.running, restricted=True)
            self._write(running=live.running)
        await self._context.networks.restrict(live.slot, egress)

    async def _pause(self) -> Artefact:
        if not self._life.demand(Request.PAUSE):
            return self._context.snapshots.get(self._record.artefact_id)
        live = self._demand_live()
        self._step(Step.QUIESCED, "pause")
        try:
            artefact = await saving.pause(self._context, self._record, live)
        except BaseException as error:
            self._step(Step.THAWED, str(error))
            raise
        previous = self._record.artefact_id
        self._unwatch()
        self._live = None
        self._step(Step.COMMITTED, artefact.id, artefact_id=artefact.id, disk=artefact.disk)
        self._leaving = asyncio.create_task(self._leave(live, previous), name=f"leave-{self.id}")
        return artefact

    async def _leave(self, live: Live, previous: str) -> None:
        """After a committed pause: ends the VMM, gives back what it held, drops the artefact that the new one replaces."""
        await live.guest.close()
        await live.machine.stop(self._context.policy.stop_grace)
        await take_down(self._context, self.id, live.running, live.slot)
        self._write(running=None)
        await self._drop_private(previous)

    async def _drop_private(self, artefact_id: str) -> None:
        """Deletes an artefact that belongs to this sandbox alone; others (a snapshot it was rolled back to) stay."""
        if not artefact_id:
            return
        try:
            artefact = self._context.snapshots.salvage(artefact_id)
        except (NotFound, Corrupt):  # gone, or nobody can tell whose it was: set aside by the store
            return
        if artefact.kind is ArtefactKind.PAUSED and artefact.owner == self.id:
            await self._context.snapshots.delete(artefact_id)

    async def _drop_all_private(self) -> None:
        for artefact in self._context.snapshots.list(ArtefactKind.PAUSED, self.id):
            await self._context.snapshots.delete(artefact.id)

    async def _gone_before(self) -> None:
        """Waits until what a pause left to do is done. Its failure is logged, not raised: the next owner of the home does it again."""
        leaving, self._leaving = self._leaving, None
        if leaving is None:
            return
        try:
            await asyncio.shield(leaving)
        except (TorporError, OSError) as error:
            log.error("pause_not_tidied", sandbox=self.id, error=str(error))

    async def _resume(self) -> None:
        if not self._life.demand(Request.RESUME):
            return
        if not self._record.artefact_id:
            raise NotFound(f"Sandbox {self.id} was never paused.", mend="Start it from its own disk instead (a cold boot).")
        await self._bring_up(self._record.artefact_id)

    async def _snapshot(self, name: str) -> Artefact:
        if self._life.state is MachineState.PAUSED:
            await self._gone_before()  # until then its VMM has the disk open
            return await self._context.snapshots.duplicate(self._record.artefact_id, new_id(), name, self._context.now())
        return await self._leave_behind(f"snapshot {name}", lambda live, moved: saving.snapshot(self._context, self._record, live, name, moved))

    async def _seed(self, starts: int) -> saving.Seed:
        return await self._leave_behind("fork", lambda live, moved: saving.seed(self._context, self._record, live, starts, moved))

    async def _leave_behind(self, what: str, save: Callable[[Live, saving.Moved], Awaitable[T]]) -> T:
        self._life.demand(Request.SNAPSHOT)
        live = self._demand_live()
        self._step(Step.QUIESCED, what)

        def moved(now: Live, chain: DiskChain) -> None:
            self._context.snapshots.hold(self.id, now.running.memory_id, chain)
            self._step(Step.THAWED, "on a new overlay", running=now.running, disk=chain)

        try:
            return await save(live, moved)
        finally:
            if self._life.state is MachineState.QUIESCED:
                self._step(Step.THAWED, f"{what} failed")

    async def _rollback(self, artefact: Artefact) -> None:
        self._life.demand(Request.ROLLBACK)
        await self._gone_before()
        artefact = self._context.snapshots.get(artefact.id)  # as it is now; the record keeps its disk from here on
        previous = self._record.artefact_id
        if self._live is not None:
            self._step(Step.STOPPING, "rollback", artefact_id=artefact.id)  # from here on, whatever happens, it stands at the artefact
            await self._end_life(self._live)
            self._step(Step.FELL_BACK, "rollback", running=None, disk=self._context.snapshots.salvage(artefact.id).disk)
        else:
            self._write(artefact_id=artefact.id, disk=artefact.disk)
        await self._bring_up(artefact.id)
        if previous != artefact.id:
            await self._drop_private(previous)

    async def _cold_boot(self) -> None:
        self._life.demand(Request.COLD_BOOT)
        await self._gone_before()
        record = self._record
        order = BootOrder(ArtefactKind.PAUSED, self.id, record.template, record.shape, record.disk, record.generation + 1, {})
        order = replace(order, service=self._context.service(record.template), on_trust=True)
        artefact = await cold_boot(self._context, order)
        previous = record.artefact_id
        self._write(artefact_id=artefact.id, disk=artefact.disk, generation=artefact.generation)
        await self._bring_up(artefact.id)
        await self._drop_private(previous)

    async def _kill(self) -> None:
        """Each step can be repeated: a kill that failed half-way, here or in an owner that crashed, is finished by the next."""
        if self._removed:
            return
        await self._gone_before()
        if self._life.state is not MachineState.STOPPING:
            try:
                self._step(Step.STOPPING, "kill", end_reason=EndReason.USER)
            except NoSpace as error:  # of a sandbox whose first record found no room, so that none is there to be wrong
                log.warning("kill_not_noted", sandbox=self.id, error=str(error))
        if self._live is not None:
            await self._end_life(self._live)
        elif self._record.running is not None:  # it never answered
            await self._end_unanswered(self._record.running)
        await self._drop_all_private()
        self._removed = True
        self._life.step(Step.GONE, self._context.now())
        self._record = replace(self._record, state=self._life.state, running=None, artefact_id="")
        self._context.records.remove(self.id)
        if self._changed is not None:
            self._changed(self)

    async def _end_life(self, live: Live) -> None:
        self._unwatch()
        await live.guest.close()
        await live.machine.stop(0.0)
        await take_down(self._context, self.id, live.running, live.slot)
        self._live = None

    async def _end_unanswered(self, running: Running) -> None:
        await self._context.processes.reap(self._context.records.directory(self.id) / running.run_dir)
        await take_down(self._context, self.id, running, slot_of(self._context, running))

    def _demand_live(self) -> Live:
        if self._live is None:
            raise Denied(DenyReason.NOT_RUNNING, f"Sandbox {self.id} has no machine.")
        if self._live.full.is_set():
            raise NoSpace(STANDS_STILL, mend="Free space on the file system of TORPOR_HOME.")
        return self._live

    # -- a VMM that ends by itself ---------------------------------------------------------------------------------------------------

    def _watch(self, live: Live) -> None:
        async def wait() -> None:
            events = asyncio.ensure_future(self._note_events(live))
            try:
                ended = await live.machine.wait()
            finally:
                events.cancel()
            self._turns.tell(lambda: self._gone(live, ended))

        self._watcher = asyncio.create_task(wait(), name=f"watch-{self.id}")

    async def _note_events(self, live: Live) -> None:
        async for event in live.machine.events():
            if event is VmmEvent.DISK_FULL:
                live.full.set()
                self._turns.tell(lambda: self._stand_still(live))
                asyncio.get_running_loop().call_later(STANDSTILL_SECONDS, lambda: self._turns.tell(lambda: self._go_on(live)))
            elif event is not VmmEvent.MONITOR_LOST:
                self._last_event = event

    async def _stand_still(self, live: Live) -> None:
        if self._live is live and Condition.HOST_DISK_FULL not in self._record.conditions:
            log.error("sandbox_stands_still", sandbox=self.id)
            self._write(conditions={**self._record.conditions, Condition.HOST_DISK_FULL: STANDS_STILL})

    async def _go_on(self, live: Live) -> None:
        """Tries the write again; if the disk is still full, the next event tells. A pause that failed on it may have left processes frozen."""
        if self._live is not live or Condition.HOST_DISK_FULL not in self._record.conditions:
            return
        live.full.clear()
        try:
            await live.machine.resume()
            await live.while_it_runs(live.guest.thaw())
        except (GuestLost, NoSpace):
            return  # its end is noticed in its own way; a disk that is still full by the next event
        log.warning("sandbox_goes_on", sandbox=self.id)
        self._write(conditions={kept: note for kept, note in self._record.conditions.items() if kept is not Condition.HOST_DISK_FULL})

    def _unwatch(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None

    async def _gone(self, live: Live, ended: ExitRecord) -> None:
        if self._live is not live:
            return
        reason, note = why(ended, self._last_event, live.machine.console_tail())
        await live.guest.close()
        self._live = None
        try:
            disk = await take_down(self._context, self.id, live.running, live.slot, keep_disk=self._record.disk)
        except TorporError as error:
            log.error("disk_not_kept", sandbox=self.id, error=str(error))
            disk, note = None, f"{note} Its disk could not be kept in the store ({error}); it lies in {live.running.run_dir}."
        self._step(Step.GONE, note, running=None, disk=disk or self._record.disk, end_reason=reason, end_note=note)
        self._context.disks.release(self._record.disk)  # the record keeps it now


def _at_wake(live: Live) -> dict[Condition, str]:
    fault = live.guest.disk_fault
    return {Condition.DISK_NOT_GROWN: f"The file system could not be grown to the disk: {fault}"} if fault else {}


_aborting: set[asyncio.Task[None]] = set()


def _thrown_away(asked: asyncio.Future[saving.Seed]) -> None:
    """Nobody waits for the seed any more."""
    if not asked.cancelled() and asked.exception() is None:
        task = asyncio.ensure_future(asked.result().draft.abort())
        _aborting.add(task)
        task.add_done_callback(_aborting.discard)
