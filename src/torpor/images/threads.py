"""Long file work in a thread that a cancelled caller stops and waits for, so that nobody removes a directory somebody still writes to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
Step = Callable[[float], None]


class _StoppedError(Exception):
    """The caller was cancelled; ends the work."""


async def in_thread(work: Callable[[Step], T], report: Step) -> T:
    """Runs `work(step)` in a thread. It calls `step(fraction)` often: that passes the fraction to `report` in the event loop, and raises in the thread once
    this call was cancelled. When this returns or raises, the thread has ended."""
    loop = asyncio.get_running_loop()
    stopped = threading.Event()

    def step(fraction: float) -> None:
        if stopped.is_set():
            raise _StoppedError
        loop.call_soon_threadsafe(report, fraction)

    running = loop.run_in_executor(None, work, step)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        stopped.set()
        while not running.done():
            try:
                await asyncio.wait([running])
            except asyncio.CancelledError:
                continue  # cancelled twice: the thread still ends first
        running.exception()  # seen, so that nobody logs it
        raise
