"""Who is at work in a sandbox. A sandbox somebody is inside of (a command in the foreground, a terminal, a stream) is not idle, in whichever process."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from torpor.model.records import Sandbox
from torpor.service.context import Context

_COARSE = 1.0
"""Seconds to which activity is noted at most, and a tenth of the idle time where that is less: a thousand requests a second are not a thousand writes."""


class Activity:
    """`touched` is called with a sandbox and the moment when it must be touched again, while somebody is inside."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._inside: Counter[str] = Counter()
        self._idle: dict[str, float] = {}
        self._noted: dict[str, float] = {}
        self.entered: Callable[[], None] = lambda: None

    def busy(self, sandbox_id: str) -> bool:
        return self._inside[sandbox_id] > 0

    @asynccontextmanager
    async def inside(self, sandbox: Sandbox) -> AsyncIterator[None]:
        """Activity at the beginning and the end, and in between all the time."""
        self._inside[sandbox.id] += 1
        self._idle[sandbox.id] = sandbox.idle_timeout
        try:
            await self.touch(sandbox)
            self.entered()
            yield
        finally:
            self._inside[sandbox.id] -= 1
            if not self._inside[sandbox.id]:
                del self._inside[sandbox.id], self._idle[sandbox.id]
            await self.touch(sandbox)

    async def touch(self, sandbox: Sandbox) -> None:
        now = self._context.now()
        step = min(_COARSE, sandbox.idle_timeout / 10) if sandbox.idle_timeout > 0 else _COARSE
        noted = self._noted[sandbox.id] = max(self._noted.get(sandbox.id, 0.0), sandbox.last_active_at)
        if now - noted >= step:
            await self._write(sandbox.id, now)

    async def keep(self) -> None:
        """Touches those that somebody is inside of and whose idle time is half over: another process may keep the clock of it."""
        now = self._context.now()
        for sandbox_id, idle in list(self._idle.items()):
            if idle > 0 and now - self._noted.get(sandbox_id, 0.0) >= idle / 2:
                await self._write(sandbox_id, now)

    def next(self) -> float | None:
        """When `keep` has something to do."""
        return min((self._noted.get(sandbox_id, 0.0) + idle / 2 for sandbox_id, idle in self._idle.items() if idle > 0), default=None)

    async def _write(self, sandbox_id: str, now: float) -> None:
        self._noted[sandbox_id] = now
        async with self._context.store.write() as records:
            await records.sandboxes.touch(sandbox_id, now)

    def forget(self, sandbox_id: str) -> None:
        """Of a sandbox that has ended."""
        self._noted.pop(sandbox_id, None)
