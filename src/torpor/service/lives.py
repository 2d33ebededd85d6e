"""Who holds on to a sandbox's machine while it lives: connections that must break when it ends, in whichever process its end was brought about.

    watched --(bound to the life it is served by)--> the machine is killed, paused, rolled back or gone --> the block is left with Ended

A life is one machine from its start to its pause or end. A snapshot of a running sandbox, and a fork, do not end one; a host that cannot be reached does not
either, for its machines live on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from torpor.lifecycle.sandbox import FINAL
from torpor.log import Log
from torpor.model.errors import TorporError
from torpor.model.records import Sandbox, SandboxState
from torpor.service.context import Context

log = Log()

S = SandboxState
_GONE = FINAL | {S.STOPPING}
_NOT_ALIVE = frozenset({S.PAUSED, S.RESUMING, S.PENDING, S.STARTING})


class Ended(Exception):
    """The life of the sandbox's machine is over. `for_good`: the sandbox's is."""

    def __init__(self, for_good: bool) -> None:
        super().__init__("The sandbox's machine has ended.")
        self.for_good = for_good


class Watch:
    """One block of `Lives.watch`."""

    def __init__(self, lives: Lives, sandbox_id: str, scope: asyncio.Timeout) -> None:
        self._lives = lives
        self._sandbox_id = sandbox_id
        self._scope = scope
        self._life: float | None = None
        self.ended: Ended | None = None

    def bind(self, sandbox: Sandbox) -> None:
        """The block works with the machine that this record tells of. Until then the next machine that runs binds it, and only the sandbox's end counts."""
        self.judge(sandbox)
        newest = self._lives.newest(self._sandbox_id)
        if newest is not None and newest.generation > sandbox.generation:
            self.judge(newest)

    def judge(self, sandbox: Sandbox | None) -> None:
        if self.ended is not None:
            return
        if sandbox is None or sandbox.state in _GONE:
            self._end(for_good=True)
        elif self._life is None:
            if sandbox.state not in _NOT_ALIVE:
                self._life = sandbox.started_at
        elif sandbox.state in _NOT_ALIVE or sandbox.started_at not in (None, self._life):
            self._end(for_good=False)

    def _end(self, *, for_good: bool) -> None:
        self.ended = Ended(for_good)
        self._scope.reschedule(asyncio.get_running_loop().time())


class Lives:
    """One of each process, opened after the bus and closed before it."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._watches: dict[str, set[Watch]] = {}
        self._newest: dict[str, Sandbox] = {}
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        listening: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._listen(listening), name="lives")
        await asyncio.wait({self._task, listening}, return_when=asyncio.FIRST_COMPLETED)
        if self._task.done():
            self._task.result()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def watched(self, sandbox_id: str) -> int:
        """How many blocks hold on to it in this process."""
        return len(self._watches.get(sandbox_id, ()))

    def newest(self, sandbox_id: str) -> Sandbox | None:
        """The record as the last notice about a watched sandbox showed it."""
        return self._newest.get(sandbox_id)

    @asynccontextmanager
    async def watch(self, sandbox_id: str) -> AsyncIterator[Watch]:
        """The block is interrupted, and Ended raised from it, when the sandbox ends or the life that it was bound to does. To be entered before the record that
        `bind` is given is read: then no end is missed."""
        scope = asyncio.timeout(None)
        watch = Watch(self, sandbox_id, scope)
        self._watches.setdefault(sandbox_id, set()).add(watch)
        try:
            async with scope:
                yield watch
        except TimeoutError:
            if watch.ended is None or not scope.expired():
                raise
            raise watch.ended from None
        finally:
            self._watches[sandbox_id].discard(watch)
            if not self._watches[sandbox_id]:
                del self._watches[sandbox_id]
                self._newest.pop(sandbox_id, None)

    async def _listen(self, listening: asyncio.Future[None]) -> None:
        async with self._context.bus.subscribe("sandbox") as notices:
            listening.set_result(None)
            async for notice in notices:
                for sandbox_id in [notice.subject] if notice.topic == "sandbox" else list(self._watches):
                    try:
                        await self._look(sandbox_id)
                    except TorporError as error:  # a database that is away: the channel to the guest breaks without us
                        log.warning("life_not_followed", sandbox=sandbox_id, error=str(error))

    async def _look(self, sandbox_id: str) -> None:
        if sandbox_id not in self._watches:
            return
        async with self._context.store.look() as records:
            sandbox = await records.sandboxes.get(sandbox_id)
        watches = self._watches.get(sandbox_id, set())
        if sandbox is not None and watches:
            self._newest[sandbox_id] = sandbox
        for watch in list(watches):
            watch.judge(sandbox)
