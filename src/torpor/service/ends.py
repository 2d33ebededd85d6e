"""How operations ended: told to those who wait, in this process from memory, in another from the records."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass

from torpor.lifecycle.sandbox import TRANSIENT
from torpor.model.errors import Denied, DenyReason, NotFound, TorporError
from torpor.model.records import Event, Operation, Sandbox
from torpor.ports.bus import Notice
from torpor.service.context import Context
from torpor.service.failures import rebuilt

_REMEMBERED = 10_000
_UNDER_WAY = frozenset(state.value for state in TRANSIENT)


@dataclass(slots=True)
class End:
    """`error` None: it came about, and `sandbox` is what it made."""

    sandbox: Sandbox | None = None
    error: TorporError | None = None


class Ends:
    """The ends of the operations that this process performs, and the waiting for any."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._waiting: dict[str, asyncio.Future[End]] = {}
        self._over: OrderedDict[str, End] = OrderedDict()

    def expect(self, operation_id: str) -> None:
        """This process performs it now."""
        self._waiting.setdefault(operation_id, asyncio.get_running_loop().create_future())

    def known(self, operation_id: str) -> bool:
        """Whether it ended here."""
        return operation_id in self._over

    def conclude(self, operation_id: str, end: End) -> None:
        """The first end counts."""
        if operation_id in self._over:
            return
        self._over[operation_id] = end
        if len(self._over) > _REMEMBERED:
            self._over.popitem(last=False)
        waiting = self._waiting.pop(operation_id, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(end)

    async def conclude_as_recorded(self, sandbox_id: str, operation: Operation) -> None:
        """Of one that this process finds ended: by somebody else, or by itself when the database had no time to say so. What took its place is Denied."""
        event = await self._recorded(sandbox_id, operation.id)
        if event is None:
            end = End(error=Denied(DenyReason.ENDING, f"Sandbox {sandbox_id} changed under the operation."))
        elif "error" in event.data:
            end = End(error=rebuilt(event.data))
        else:
            end = End(await self._get(sandbox_id))
        self.conclude(operation.id, end)

    # -- waiting ---------------------------------------------------------------------------------------------------------------------

    async def settled(self, sandbox_id: str, operation_id: str, timeout: float) -> Sandbox:
        """The sandbox when the operation is over, or as it is when `timeout` seconds are. Raises the operation's own error, NotFound."""
        until = self._context.now() + timeout
        local = self._waiting.get(operation_id)
        if local is not None:
            await self._context.wait(local, until=until)
        if (end := self._over.get(operation_id)) is not None:
            if end.error is not None:
                raise end.error
            assert end.sandbox is not None
            return end.sandbox if end.sandbox.id == sandbox_id else await self._get(sandbox_id)  # a fork's end is its source's; its children are others
        if local is not None or not operation_id:
            return await self._get(sandbox_id)
        return await self._settled_elsewhere(sandbox_id, operation_id, until)

    async def _settled_elsewhere(self, sandbox_id: str, operation_id: str, until: float) -> Sandbox:
        async with self._context.bus.subscribe("sandbox") as notices:
            hearing: asyncio.Future[object] = asyncio.ensure_future(_heard(notices, sandbox_id))
            try:
                while True:
                    sandbox = await self._get(sandbox_id)
                    if sandbox.operation is None or sandbox.operation.id != operation_id:
                        event = await self._recorded(sandbox_id, operation_id)
                        if event is not None and "error" in event.data:
                            raise rebuilt(event.data)
                        return sandbox
                    now = self._context.now()
                    if now >= until:
                        return sandbox
                    await self._context.wait(hearing, until=min(until, now + self._context.policy.look_every))
                    if hearing.done():
                        hearing = asyncio.ensure_future(_heard(notices, sandbox_id))
            finally:
                hearing.cancel()

    async def _recorded(self, sandbox_id: str, operation_id: str) -> Event | None:
        """The event of an operation's end."""
        async with self._context.store.look() as records:
            events = await records.events.of(sandbox_id)
        ends = (event for event in events if event.data.get("operation") == operation_id and event.data.get("state") not in _UNDER_WAY)
        return next(ends, None)

    async def _get(self, sandbox_id: str) -> Sandbox:
        async with self._context.store.read() as records:
            sandbox = await records.sandboxes.get(sandbox_id)
        if sandbox is None:
            raise NotFound(f"There is no sandbox {sandbox_id[:40]}.")
        return sandbox


async def _heard(notices: AsyncIterator[Notice], sandbox_id: str) -> object:
    async for notice in notices:
        if notice.topic == "lost" or notice.subject == sandbox_id:
            return notice
    return None
