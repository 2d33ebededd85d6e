"""Blocking work in threads, in three lanes, with cancellation that waits: when `run` ends, its work has ended too, so its files may be touched."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from enum import Enum
from typing import Any, TypeVar

_T = TypeVar("_T")


class Lane(Enum):
    """FOREGROUND: copies and digests somebody waits for, at most one a core. BACKGROUND: merges, re-bases, checks; leaves a core to the foreground.
    WAITING: system calls that wait for a device (fsync) and need no core."""

    FOREGROUND = "foreground"
    BACKGROUND = "background"
    WAITING = "waiting"


class Stopped(Exception):
    """Raised by `Stop.check` inside work whose caller was cancelled; never seen by the caller."""


class Stop:
    """Tells long work that nobody wants its result. Work calls `check` at least every few MiB."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    def check(self) -> None:
        """Raises Stopped after the caller was cancelled."""
        if self._event.is_set():
            raise Stopped


class Threads:
    """The process's worker threads. One object serves all rooms, so that "at most one a core" holds over all of them."""

    def __init__(self, cores: int | None = None) -> None:
        self.cores = cores or os.cpu_count() or 1
        width = {Lane.FOREGROUND: self.cores, Lane.BACKGROUND: max(1, self.cores - 1), Lane.WAITING: 8}
        self._pools = {lane: ThreadPoolExecutor(count, thread_name_prefix=f"torpor-{lane.value}") for lane, count in width.items()}

    async def run(self, work: Callable[[Stop], _T], lane: Lane = Lane.FOREGROUND) -> _T:
        """Runs `work` in a thread of the lane and returns what it returns. When cancelled: work that has not begun never runs; work that runs is told
        through its Stop and waited for, then CancelledError goes on."""
        stop = Stop()
        job = self.submit(work, lane, stop)
        result = asyncio.wrap_future(job)
        try:
            return await asyncio.shield(result)
        except asyncio.CancelledError:
            stop.set()
            if not job.cancel():
                while not result.done():
                    try:
                        await asyncio.wait([result])
                    except asyncio.CancelledError:
                        continue  # told already; the thread must end before its files may be removed
                if not result.cancelled():
                    result.exception()  # retrieved: Stopped, or an error nobody waits for any more
            raise

    def submit(self, work: Callable[[Stop], _T], lane: Lane, stop: Stop | None = None) -> Future[_T]:
        """Queues `work` from any thread; the caller waits for the future before it touches what the work uses."""
        return self._pools[lane].submit(work, stop or Stop())

    def close(self) -> None:
        """Waits for running work and ends the threads."""
        for pool in self._pools.values():
            pool.shutdown(wait=True, cancel_futures=True)


async def together(*work: Coroutine[Any, Any, Any]) -> None:
    """Runs coroutines side by side and ends when all have ended, also on an error or a cancel; then raises the first error."""
    try:
        async with asyncio.TaskGroup() as group:
            for one in work:
                group.create_task(one)
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from several.exceptions[0].__cause__
