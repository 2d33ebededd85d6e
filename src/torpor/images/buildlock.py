"""One builder at a time: a lock on a file of the home, held by whoever builds, released by the kernel when that process ends however it ends."""

from __future__ import annotations

import asyncio
import fcntl
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path


@asynccontextmanager
async def build_lock(path: Path, waiting: Callable[[], None]) -> AsyncIterator[None]:
    """Holds the lock for the body; calls `waiting` once if another holds it now. When cancelled while waiting, the lock is not held."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        waiting()
        descriptor = await _wait_for(path)
    except BaseException:
        os.close(descriptor)
        raise
    try:
        yield
    finally:
        os.close(descriptor)


async def _wait_for(path: Path) -> int:
    """A descriptor that holds the lock. flock cannot be interrupted, so it blocks in a daemon thread, which lets go at once of a lock nobody waits for."""
    loop = asyncio.get_running_loop()
    granted: asyncio.Future[int] = loop.create_future()

    def hand_over(descriptor: int) -> None:
        if granted.done():
            os.close(descriptor)
        else:
            granted.set_result(descriptor)

    def fail(error: OSError) -> None:
        if not granted.done():
            granted.set_exception(error)

    def block() -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            loop.call_soon_threadsafe(hand_over, descriptor)
        except RuntimeError:
            os.close(descriptor)  # the event loop is closed: nobody waits any more
        except OSError as error:
            os.close(descriptor)
            loop.call_soon_threadsafe(fail, error)

    threading.Thread(target=block, name="build-lock", daemon=True).start()
    try:
        return await granted
    except asyncio.CancelledError:
        if granted.done() and not granted.cancelled() and granted.exception() is None:
            os.close(granted.result())
        raise
