"""The clocks of all sandboxes, in one sleeping task: idle times, deadlines of lives, deadlines of operations.

The moments stand in the records, so a restart loses none and several processes may keep them at once. The task sleeps until the next one it knows of; a
record this process writes wakes it when its moment is earlier, and it looks by itself every so often for those that others wrote.

A time's end that cannot be acted upon (no space for a pause) postpones: the sandbox runs on and is tried again. It is never thrown away for that.
"""

from __future__ import annotations

import asyncio

from torpor.lifecycle.sandbox import FINAL
from torpor.log import Log
from torpor.model.errors import Denied, TorporError
from torpor.model.records import DISK_ONLY, SYSTEM, OperationKind, Sandbox, SandboxState, TimeoutAction
from torpor.service.activity import Activity
from torpor.service.context import Context
from torpor.service.intents import Wish
from torpor.service.operations import Operations
from torpor.service.presence import Presence

log = Log()

S = SandboxState
K = OperationKind


class Timers:
    def __init__(self, context: Context, operations: Operations, presence: Presence, activity: Activity) -> None:
        self._context = context
        self._operations = operations
        self._presence = presence
        self._activity = activity
        self._earlier = asyncio.Event()
        self._asleep_until = 0.0
        self._task: asyncio.Task[None] | None = None
        activity.entered = self._earlier.set

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="timers")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def changed(self, sandbox: Sandbox) -> None:
        """A record was written."""
        if sandbox.state in FINAL:
            self._activity.forget(sandbox.id)
        moment = _moment(sandbox)
        if moment is not None and moment < self._asleep_until:
            self._earlier.set()

    async def _run(self) -> None:
        while True:
            self._earlier.clear()
            now = self._context.now()
            self._asleep_until = now + self._context.policy.look_every
            try:
                await self.look()
                self._asleep_until = await self._next(now + self._context.policy.look_every)
            except Exception as error:  # whatever it is, the clocks go on
                log.error("timers_failed", error=str(error), exc_info=None if isinstance(error, TorporError) else error)
                self._asleep_until = now + self._context.policy.retry_most
            earlier: asyncio.Future[object] = asyncio.ensure_future(self._earlier.wait())
            try:
                await self._context.wait(earlier, until=self._asleep_until)
            finally:
                earlier.cancel()

    async def _next(self, most: float) -> float:
        async with self._context.store.look() as records:
            due = await records.sandboxes.next_expiry()
        moments = [moment for moment in (due, self._activity.next()) if moment is not None]
        return min([most, *moments])

    async def look(self) -> None:
        """Acts on all whose time is over now."""
        await self._activity.keep()
        now = self._context.now()
        async with self._context.store.look() as records:
            overdue, expiring = await records.sandboxes.overdue(now), await records.sandboxes.expiring(now)
        await asyncio.gather(*(self._settle(sandbox) for sandbox in overdue))
        for sandbox in expiring:
            await self._expire(sandbox, now)

    async def _settle(self, sandbox: Sandbox) -> None:
        """Where the host is another process's, which lives, that one does."""
        if not await self._presence.elsewhere(sandbox.host_id):
            await self._operations.settle(sandbox)

    async def _expire(self, sandbox: Sandbox, now: float) -> None:
        over = sandbox.deadline is not None and sandbox.deadline <= now
        if not over and self._activity.busy(sandbox.id):
            await self._touch(sandbox, now)
            return
        kind = K.KILL if sandbox.on_timeout is TimeoutAction.KILL else K.PAUSE
        try:
            target = DISK_ONLY if kind is K.PAUSE and not sandbox.terms.keeps_memory else ""
            await self._operations.begin(sandbox.id, Wish(kind, SYSTEM, cause="timeout" if over else "idle", target=target))
        except Denied:  # it changed a moment ago
            return
        except TorporError as error:
            log.warning("not_expired", sandbox=sandbox.id, error=str(error))

    async def _touch(self, sandbox: Sandbox, now: float) -> None:
        async with self._context.store.write() as records:
            await records.sandboxes.touch(sandbox.id, now)


def _moment(sandbox: Sandbox) -> float | None:
    """When a sandbox wants attention, as the store sees it."""
    if sandbox.operation is not None:
        return sandbox.operation.deadline
    if sandbox.state is S.RUNNING:
        idle = sandbox.last_active_at + sandbox.idle_timeout if sandbox.idle_timeout > 0 else None
        return min((moment for moment in (idle, sandbox.deadline) if moment is not None), default=None)
    return sandbox.deadline if sandbox.state is S.PAUSED and sandbox.on_timeout is TimeoutAction.KILL else None
