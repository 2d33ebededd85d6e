"""Early write-back: what a writer has written goes to the device while it writes on, so that the fsync at the end finds little left to wait for."""

from __future__ import annotations

import ctypes
import os

from torpor.durable.threads import Lane, Stop, Threads

PIECE = 4 << 20
_WRITE = 2  # SYNC_FILE_RANGE_WRITE: start writing what is dirty, wait for nothing

_libc = ctypes.CDLL(None, use_errno=True)
_libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def begin_write_back(threads: Threads, fd: int, offset: int = 0, length: int = 0) -> None:
    """Has a thread start the write-back of a stretch of the file (`length` 0: to its end); returns at once, and `fd` may be closed. Only speed depends
    on it: an error is the later fsync's to report."""
    own = os.dup(fd)

    def begin(_: Stop) -> None:
        try:
            _libc.sync_file_range(own, offset, length, _WRITE)
        finally:
            os.close(own)

    threads.submit(begin, Lane.WAITING)


class WriteBehind:
    """For one file that grows from its begin."""

    def __init__(self, threads: Threads, fd: int) -> None:
        self._threads = threads
        self._fd = fd
        self._begun = 0

    def written(self, length: int) -> None:
        """The first `length` bytes are there; the descriptor is still open. From any one thread."""
        if length - self._begun >= PIECE:
            begin_write_back(self._threads, self._fd, self._begun, length - self._begun)
            self._begun = length
