"""Network namespaces without helper processes: a namespace belongs to a thread, so every work in another one gets a thread of its own that ends with it.

No thread that has been in another namespace is ever used again, and the event loop's thread never leaves the host's.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

_CLONE_NEWNET = 0x40000000
_MS_BIND, _MNT_DETACH, _UMOUNT_NOFOLLOW = 0x1000, 2, 8

_libc = ctypes.CDLL(None, use_errno=True)

Result = TypeVar("Result")


def _check(outcome: int, what: str) -> None:
    if outcome != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def create(at: Path) -> int:
    """Moves the calling thread into a new network namespace, pins that to the file `at`, and returns a descriptor of it. When it fails, `at` may be there:
    `remove` takes it away."""
    at.touch(mode=0o400, exist_ok=False)
    _check(_libc.unshare(_CLONE_NEWNET), "unshare(CLONE_NEWNET)")
    own = f"/proc/self/task/{threading.get_native_id()}/ns/net"
    _check(_libc.mount(own.encode(), os.fsencode(at), None, _MS_BIND, None), f"mount namespace at {at}")
    return os.open(at, os.O_RDONLY | os.O_CLOEXEC)


def current() -> int:
    """A descriptor of the calling thread's network namespace."""
    return os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def enter(namespace: int) -> None:
    """Moves the calling thread into the namespace behind the descriptor."""
    _check(_libc.setns(namespace, _CLONE_NEWNET), "setns")


def enter_file(at: Path) -> None:
    """Moves the calling thread into the namespace pinned at `at`."""
    descriptor = os.open(at, os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter(descriptor)
    finally:
        os.close(descriptor)


def is_pinned(at: Path) -> bool:
    """True if a namespace is mounted on the file `at`, not merely the empty file there."""
    try:
        return stat.S_ISREG(at.stat().st_mode) and at.stat().st_dev != at.parent.stat().st_dev
    except FileNotFoundError:
        return False


def remove(at: Path) -> None:
    """Takes the pin off `at` and the file away. The namespace ends once no process and no descriptor is in it. Nothing there is no error."""
    while True:
        if _libc.umount2(os.fsencode(at), _MNT_DETACH | _UMOUNT_NOFOLLOW) == 0:
            continue
        code = ctypes.get_errno()
        if code == errno.ENOENT:
            return
        if code == errno.EINVAL:
            break
        raise OSError(code, f"umount {at}: {os.strerror(code)}")
    at.unlink(missing_ok=True)


async def in_own_thread(work: Callable[[], Result]) -> Result:
    """Runs `work` in a thread of its own. Not to be interrupted: when cancelled, the work is seen to its end first; its result, if it has one, is then lost, so
    work that makes something must be undone by its caller."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Result] = loop.create_future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:
            loop.call_soon_threadsafe(done.set_exception, error)
        else:
            loop.call_soon_threadsafe(done.set_result, result)

    threading.Thread(target=run, name="torpor-net").start()
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        while not done.done():
            try:
                await asyncio.wait([done])
            except asyncio.CancelledError:
                continue
        if not done.cancelled():
            done.exception()  # seen: no warning about it at exit
        raise
