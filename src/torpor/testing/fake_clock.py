"""A clock that stands still until it is moved."""

from __future__ import annotations

import asyncio
import heapq
import itertools


class FakeClock:
    """`now` and `sleep_until` are what service.context.Context takes."""

    def __init__(self, at: float = 1_700_000_000.0) -> None:
        self._at = at
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self._fell_asleep = asyncio.Event()

    def now(self) -> float:
        return self._at

    async def sleep_until(self, moment: float) -> None:
        if moment <= self._at:
            return
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (moment, next(self._numbers), waiting))
        self._fell_asleep.set()
        await waiting

    async def sleeper(self, seconds: float) -> None:
        """Returns when somebody sleeps who will wake within so many seconds."""
        while (first := self.next()) is None or first > self._at + seconds:
            self._fell_asleep.clear()
            await self._fell_asleep.wait()

    def move(self, seconds: float) -> None:
        """Forward, waking whoever slept until then; back (negative), waking nobody."""
        self._at += seconds
        while self._sleepers and self._sleepers[0][0] <= self._at:
            _, _, waiting = heapq.heappop(self._sleepers)
            if not waiting.done():
                waiting.set_result(None)

    def next(self) -> float | None:
        """The earliest moment somebody sleeps until."""
        return min((moment for moment, _, waiting in self._sleepers if not waiting.done()), default=None)
