"""Operations on sandboxes: how what was asked becomes true, whoever dies in between.

    begin    one transaction: the state allows it -> transient state, operation id, deadline        (the intent; nothing is asked of a host before)
    ask      the host, again and again while it cannot be reached: every order may be repeated
    finish   one transaction, by compare-and-set on the operation: what the host says, with event, audit and usage
    settle   past the deadline, by whoever comes first: what the host says then; MISSING when it says nothing

An operation is a task of its own: a caller that leaves changes nothing. Whoever finds the record under another operation has lost and writes nothing.
What is under way on a host is performed by a process that has the host: the one that began it, or, where that has not got the host or died, another that
takes it up (`take_up`). Past its deadline anybody settles it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torpor.lifecycle.sandbox import FINAL, TRANSIENT
from torpor.log import Log
from torpor.model.errors import Denied, DenyReason, HostUnavailable, TimedOut, TorporError
from torpor.model.records import SYSTEM, Actor, Operation, OperationKind, Sandbox, SandboxState, Template
from torpor.ports.bus import Notice
from torpor.ports.hosts import Stored
from torpor.ports.records import SandboxFilter
from torpor.service import moves
from torpor.service.context import Context
from torpor.service.endings import end_children, end_of
from torpor.service.ends import End, Ends
from torpor.service.failures import ours
from torpor.service.intents import Intent, Overtaken, Prepare, Wish, intend
from torpor.service.moves import Because, move
from torpor.service.orders import Arrivals, Orders, Seen
from torpor.service.snapshots import abandon, complete, is_worked_at, remove

log = Log()

S = SandboxState
K = OperationKind
_TRIES = 50
"""How often an intent is put again when somebody else's write came between its look and its write."""


@dataclass(frozen=True, slots=True)
class Started:
    """`operation_id` is '' when there was nothing to do."""

    sandbox: Sandbox
    operation_id: str


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What is to be written of an operation that the host has done with."""

    seen: Seen
    arrivals: Arrivals
    because: Because


class Operations:
    """`changed` is called with every sandbox whose record this process changed: for timers."""

    def __init__(self, context: Context, orders: Orders) -> None:
        self._context = context
        self._orders = orders
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._chores: set[asyncio.Task[None]] = set()
        self._ends = Ends(context)
        self.changed: Callable[[Sandbox], None] = lambda sandbox: None

    async def take_up(self) -> None:
        """Performs what is under way on the hosts that only this process has, and that it does not perform yet: left by a dead one, begun by a process without
        that host, or begun here in a transaction whose answer was lost."""
        cursor = ""
        while True:
            async with self._context.store.read() as records:
                page = await records.sandboxes.list(SandboxFilter(states=TRANSIENT), cursor=cursor, limit=500)
            for sandbox in page.items:
                await self.take(sandbox)
            if not page.next:
                return
            cursor = page.next

    async def take(self, sandbox: Sandbox) -> None:
        """As `take_up`, of one."""
        operation = sandbox.operation
        if operation is None or (operation.kind is K.FORK and sandbox.state is not S.SNAPSHOTTING):  # a forked child goes with its source
            return
        if self._context.has(sandbox.host_id) and not self._knows(operation.id):
            who = await self._who(sandbox, operation)
            self.run(sandbox, Because(who, operation))

    def _knows(self, operation_id: str) -> bool:
        return operation_id in self._tasks or self._ends.known(operation_id)

    async def _who(self, sandbox: Sandbox, operation: Operation) -> Actor:
        """Who began an operation: the event of its intent says."""
        async with self._context.store.look() as records:
            events = await records.events.of(sandbox.id)
        return next((event.actor for event in events if event.data.get("operation") == operation.id), SYSTEM)

    async def close(self) -> None:
        """Stops waiting for hosts. What is under way there goes on; the records say that it is."""
        tasks = [*self._tasks.values(), *self._chores]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- intent ----------------------------------------------------------------------------------------------------------------------

    async def begin(self, sandbox_id: str, wish: Wish, prepare: Prepare | None = None, hold: Sequence[str] = ()) -> Started:
        """Raises NotFound, Denied, what `prepare` raises. Already so: no operation; under way already: that one."""
        for _ in range(_TRIES):
            try:
                intent = await intend(self._context, sandbox_id, wish, prepare, hold)
            except Overtaken:
                continue
            return await self._begun(intent, wish)
        raise Denied(DenyReason.BUSY, f"Sandbox {sandbox_id} changes all the time.", mend="Try again.")

    async def _begun(self, intent: Intent, wish: Wish) -> Started:
        before, after = intent.before, intent.after
        if after is not before:
            assert after.operation is not None
            if before.operation is not None:
                self._ends.conclude(before.operation.id, End(error=Denied(DenyReason.ENDING, f"Sandbox {after.id} is being killed.")))
            self.run(after, Because(wish.actor, after.operation, request_id=wish.request_id))
            await self.written(after)
        return Started(after, intent.operation_id)

    def run(self, sandbox: Sandbox, because: Because) -> None:
        """Has the sandbox's operation performed by this process, unless it is, was, or the host is another's, who hears of it from the bus."""
        operation = sandbox.operation
        assert operation is not None
        if self._knows(operation.id) or not self._context.has(sandbox.host_id):
            return
        self._ends.expect(operation.id)
        task = asyncio.create_task(self._perform(sandbox, operation, replace(because, operation=operation)), name=f"{operation.kind.value}-{sandbox.id}")
        self._tasks[operation.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(operation.id, None))

    # -- asking and finishing --------------------------------------------------------------------------------------------------------

    async def _perform(self, sandbox: Sandbox, operation: Operation, because: Because) -> None:
        outcome = await self._outcome(sandbox, operation, because)
        delay = self._context.policy.retry_first
        while True:
            try:
                await self._write_end(sandbox, outcome)
                return
            except Exception as error:  # a database that is away: what is done on the host is written when it is back
                log.error("end_not_written", sandbox=sandbox.id, operation=operation.kind.value, error=str(error), exc_info=_unforeseen(error))
            if self._context.now() >= operation.deadline:
                return  # whoever looks next settles it
            await self._context.sleep_until(min(self._context.now() + delay, operation.deadline))
            delay = min(delay * 2, self._context.policy.retry_most)

    async def _outcome(self, sandbox: Sandbox, operation: Operation, because: Because) -> _Outcome:
        try:
            arrivals = await self._ask(sandbox, operation)
            if arrivals is None:
                return await self._overdue(sandbox, operation, because)
            return _Outcome(Seen(arrivals.machines.get(sandbox.id)), arrivals, because)
        except Exception as error:
            if not isinstance(error, TorporError):
                log.error("operation_broken", sandbox=sandbox.id, operation=operation.kind.value, exc_info=error)
            return _Outcome(await self._orders.look(sandbox), Arrivals(), replace(because, error=ours(error)))  # what holds now is what the host says

    async def _ask(self, sandbox: Sandbox, operation: Operation) -> Arrivals | None:
        """What the host made of it, or None when the deadline came first. Raises what the host refused with; a kill is never refused for good."""
        delay = 0.0
        while True:
            asking = asyncio.ensure_future(self._order(sandbox, operation))
            try:
                if not await self._context.wait(asking, until=operation.deadline):
                    return None
                return asking.result()
            except HostUnavailable as error:
                log.warning("host_unreachable", sandbox=sandbox.id, operation=operation.kind.value, error=str(error))
            except TorporError as error:
                if operation.kind is not K.KILL:
                    raise
                log.warning("kill_refused", sandbox=sandbox.id, error=str(error))
            finally:
                asking.cancel()
            if delay:
                await self._context.sleep_until(min(self._context.now() + delay, operation.deadline))
            if self._context.now() >= operation.deadline:
                return None
            delay = min(delay * 2, self._context.policy.retry_most) or self._context.policy.retry_first

    async def _order(self, sandbox: Sandbox, operation: Operation) -> Arrivals:
        return await self._orders.give(self._context.hosts.get(sandbox.host_id), sandbox, operation)

    async def settle(self, sandbox: Sandbox) -> None:
        """Ends an operation whose deadline is over. Anybody may, any number at once."""
        operation = sandbox.operation
        if operation is not None:
            await self._write_end(sandbox, await self._overdue(sandbox, operation, Because(operation=operation)))

    async def _overdue(self, sandbox: Sandbox, operation: Operation, because: Because) -> _Outcome:
        seen = await self._orders.look(sandbox)
        if operation.kind is K.SNAPSHOT and seen.known and (stored := await self._stored(sandbox, operation)) is not None:
            return _Outcome(seen, Arrivals({sandbox.id: seen.machine}, stored), because)
        late = TimedOut(f"The operation {operation.kind.value} did not end in {operation.deadline - operation.started_at:.0f} s.")
        return _Outcome(seen, Arrivals(), replace(because, error=late))

    async def _stored(self, sandbox: Sandbox, operation: Operation) -> Stored | None:
        try:
            report = await self._context.ask(self._context.hosts.get(sandbox.host_id).report())
        except HostUnavailable:
            return None
        return next((one for one in report.snapshots if one.name == operation.target), None)

    async def _write_end(self, sandbox: Sandbox, outcome: _Outcome) -> None:
        arrivals, because, operation = outcome.arrivals, outcome.because, outcome.because.operation
        assert operation is not None
        for _ in range(_TRIES):
            now = self._context.now()
            async with self._context.store.write() as records:
                current = await records.sandboxes.get(sandbox.id)
                if current is None or current.operation is None or current.operation.id != operation.id:
                    break
                after, error = end_of(current, operation, outcome.seen, because.error, now)
                if error is not None:
                    after = moves.postponed(after, operation, now, self._context.policy.postponed)
                told = replace(because, error=error)
                if not await move(records, current, after, told):
                    continue
                written = [after]
                doomed: list[Template] = []
                if operation.kind is K.SNAPSHOT:
                    doomed = await (
                        abandon(records, operation.target) if arrivals.stored is None else complete(records, operation.target, arrivals.stored, told, now)
                    )
                if operation.kind is K.FORK and current.state is S.SNAPSHOTTING:
                    written += await end_children(records, current, operation, arrivals, told, now)
            self._ends.conclude(operation.id, End(after, error))
            await self.written(*written, *doomed)
            self._chore(self._tidy(written, doomed, operation))
            return
        await self._ends.conclude_as_recorded(sandbox.id, operation)
        if operation.kind is K.SNAPSHOT:
            await self._forsake(operation.target)

    async def _forsake(self, template_id: str) -> None:
        """A snapshot whose source was taken from it half-way."""
        async with self._context.store.write() as records:
            template = await records.templates.get(template_id)
            if template is None or await is_worked_at(records, template):
                return
            doomed = await abandon(records, template_id)
        for one in doomed:
            await remove(self._context, one)

    async def written(self, *records: Sandbox | Template) -> None:
        """To be called when changed records are committed: tells timers and the bus."""
        sandboxes = [record for record in records if isinstance(record, Sandbox)]
        templates = [Notice("template", record.id, record.team_id) for record in records if isinstance(record, Template)]
        for sandbox in sandboxes:
            self.changed(sandbox)
        await self._context.bus.publish(*moves.notices(*sandboxes), *templates)

    async def _tidy(self, written: Sequence[Sandbox], doomed: Sequence[Template], operation: Operation) -> None:
        """What an end leaves to do on the host. Nothing is lost when it does not come to it: the reconciler does the same."""
        for template in doomed:
            await remove(self._context, template)
        for sandbox in written:
            if sandbox.state in FINAL and operation.kind is not K.KILL:
                await self.clear(sandbox)

    def _chore(self, work: Coroutine[Any, Any, None]) -> None:
        """Nobody waits for it."""
        task = asyncio.create_task(work)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    async def idle(self) -> None:
        """Returns when no operation of this process is under way, nor what an end left to do: for an orderly end, and tests."""
        while tasks := [*self._tasks.values(), *self._chores]:
            await asyncio.gather(*tasks, return_exceptions=True)

    async def clear(self, sandbox: Sandbox) -> None:
        """Removes what a host still has of a sandbox that has ended."""
        try:
            await self._context.ask(self._context.hosts.get(sandbox.host_id).kill(sandbox.id), self._context.policy.clearing_patience)
        except TorporError as error:
            log.warning("remains_not_cleared_yet", sandbox=sandbox.id, error=str(error))

    # -- corrections -----------------------------------------------------------------------------------------------------------------

    async def correct(self, before: Sandbox, after: Sandbox) -> bool:
        """Writes what a host says of a sandbox with nothing under way, if the record is still `before`. What has ended is cleared from its host."""
        async with self._context.store.write() as records:
            if not await move(records, before, after, Because()):
                return False
        await self.written(after)
        if after.state in FINAL:
            self._chore(self.clear(after))
        return True

    # -- waiting ---------------------------------------------------------------------------------------------------------------------

    async def settled(self, sandbox_id: str, operation_id: str, timeout: float) -> Sandbox:
        """See Ends.settled."""
        return await self._ends.settled(sandbox_id, operation_id, timeout)


def _unforeseen(error: Exception) -> Exception | None:
    """What is logged with its traceback."""
    return None if isinstance(error, TorporError) else error
