"""Whether there is a core for what nobody waits for. A machine that starts keeps one busy, and so, for a moment longer, does the first command of one that
somebody asked for: on a small machine, work ahead takes its time from them."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

REST = 0.25
"""Seconds after the answer to a request in which its first command is run, as a rule."""


class Quiet:
    """Counts the requests under way and those that ended within `rest` seconds, each for a core; one core is left to everything else."""

    def __init__(self, cores: int | None = None, rest: float = REST) -> None:
        self._room = max(1, (cores or os.cpu_count() or 1) - 1)
        self._rest = rest
        self._asking = 0
        self._ended: deque[float] = deque(maxlen=self._room)
        self._news = asyncio.Event()

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Around a request whose answer starts a machine or hands one out."""
        self._asking += 1
        try:
            yield
        finally:
            self._asking -= 1
            self._ended.append(asyncio.get_running_loop().time())
            self.told()

    def told(self) -> None:
        """A piece of work ahead has ended."""
        self._news.set()

    async def room(self, ahead: Callable[[], int]) -> None:
        """Returns when there is a core for one more piece of work ahead, `ahead()` of which are under way."""
        loop = asyncio.get_running_loop()
        while True:
            recent = [ended for ended in self._ended if ended + self._rest > loop.time()]
            over = self._asking + ahead() + len(recent) - self._room
            if over < 0:
                return
            self._news.clear()
            try:
                async with asyncio.timeout_at(recent[over] + self._rest if over < len(recent) else None):
                    await self._news.wait()
            except TimeoutError:
                continue
