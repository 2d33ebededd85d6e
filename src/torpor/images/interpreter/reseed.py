"""After a wake a process in a snapshot goes on with the random state all its clones have. A Python kernel reseeds before user code runs on.

The agent raises /run/torpor/generation in every wake, and writes it so that inotify sees it while processes stand still. The event is a signal, pending
when the kernel thaws: its handler runs before the next bytecode of the user's code. Before each cell the file is looked at as well.
inotify(7): IN_MODIFY 2. fcntl(2): F_SETSIG and O_ASYNC make a descriptor's readiness a signal of choice, F_SETOWN_EX 15 with F_OWNER_TID 0 that of one thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import random
import signal
import struct
import sys
from collections.abc import Callable

GENERATION = "/run/torpor/generation"
NAMES = "/run/torpor/names"
_SIGNAL = signal.SIGRTMAX - 3
_IN_MODIFY = 2
_F_SETOWN_EX, _F_OWNER_TID = 15, 0


def reseed() -> None:
    """`random`, numpy's global generator and OpenSSL, as far as they are loaded, from the kernel's randomness."""
    random.seed()
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:
        numpy.seed([int.from_bytes(os.urandom(4), "little") for _ in range(8)])
    ssl = sys.modules.get("ssl")
    if ssl is not None:
        ssl.RAND_add(os.urandom(48), 48.0)


def names(path: str = NAMES) -> dict[str, str]:
    """The environment that the sandbox was created with."""
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                name, equals, value = line.rstrip("\n").partition("=")
                if equals and name:
                    found[name] = value
    return found


class Generation:
    """Follows the file `path`; without one nothing ever changes, as on a machine that is no microVM."""

    def __init__(self, path: str = GENERATION) -> None:
        self._path = path
        self._file = -1
        with contextlib.suppress(OSError):
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._seen = self._read()

    def _read(self) -> bytes:
        return os.pread(self._file, 32, 0) if self._file >= 0 else b""

    def changed(self) -> bool:
        """Whether the machine woke since the last call."""
        now = self._read()
        if now == self._seen:
            return False
        self._seen = now
        return True

    def call_on_wake(self, woken: Callable[[], None]) -> None:
        """Has `woken` called, in the main thread and between two bytecodes, as soon as this process runs after a wake."""
        if self._file < 0:
            return
        libc = ctypes.CDLL(None, use_errno=True)
        watch = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if watch < 0 or libc.inotify_add_watch(watch, self._path.encode(), _IN_MODIFY) < 0:
            return  # no watches left: the look before each cell remains

        def arrived(_number: int, _frame: object) -> None:
            with contextlib.suppress(BlockingIOError):
                os.read(watch, 4096)
            woken()

        signal.signal(_SIGNAL, arrived)
        # To the main thread, which runs the handlers of all: any other would take the signal and leave it asleep.
        fcntl.fcntl(watch, _F_SETOWN_EX, struct.pack("ii", _F_OWNER_TID, os.getpid()))
        fcntl.fcntl(watch, fcntl.F_SETSIG, _SIGNAL)
        fcntl.fcntl(watch, fcntl.F_SETFL, fcntl.fcntl(watch, fcntl.F_GETFL) | os.O_ASYNC)
