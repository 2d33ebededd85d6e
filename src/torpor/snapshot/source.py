"""Reads the memory of a VMM's process: many pieces in one call of process_vm_readv(2), a third faster than /proc/PID/mem; that is the way where a
sandbox of our own (a container's seccomp filter) forbids the call."""

from __future__ import annotations

import ctypes
import errno
import os
from array import array
from collections.abc import Iterator, Sequence

from torpor.model.errors import GuestLost
from torpor.model.snapshots import PAGE, MemoryRegion
from torpor.snapshot.scan import Extent

CHUNK = 1 << 20  # bytes of one batch
_PIECES = 1024  # of one batch: Linux's IOV_MAX
_FORBIDDEN = frozenset({errno.EPERM, errno.ENOSYS})

_libc = ctypes.CDLL(None, use_errno=True)
_libc.process_vm_readv.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong)
_libc.process_vm_readv.restype = ctypes.c_ssize_t


def lost(region: MemoryRegion) -> GuestLost:
    return GuestLost(f"The memory of the microVM's process {region.pid} cannot be reached: it ended.")


def batches(extents: Sequence[Extent]) -> Iterator[list[Extent]]:
    """Cuts extents into lists of at most one chunk."""
    pieces: list[Extent] = []
    room = CHUNK
    for start, end in extents:
        low = start
        while low < end:
            high = min(end, low + room)
            pieces.append((low, high))
            room -= high - low
            low = high
            if not room or len(pieces) == _PIECES:
                yield pieces
                pieces, room = [], CHUNK
    if pieces:
        yield pieces


class Source:
    """The region's memory, read into one buffer that is used again for each batch. A context; for one thread at a time."""

    def __init__(self, region: MemoryRegion) -> None:
        self._region = region
        self.buffer = bytearray(CHUNK)
        self._address = ctypes.addressof((ctypes.c_char * CHUNK).from_buffer(self.buffer))
        self._memory = open_memory(region, os.O_RDONLY)
        self._direct = True

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._memory)

    def read(self, pieces: Sequence[Extent]) -> int:
        """Reads one batch to the buffer's begin; returns its length. Raises GuestLost when the process ended."""
        length = sum(end - start for start, end in pieces)
        if not self._direct or not self._read_at_once(pieces, length):
            self._read_by_file(pieces)
        return length

    def _read_at_once(self, pieces: Sequence[Extent], length: int) -> bool:
        """False where the call is forbidden."""
        base = self._region.address
        remote = array("Q", [word for start, end in pieces for word in (base + start, end - start)])
        local = array("Q", [self._address, length])
        count = _libc.process_vm_readv(self._region.pid, local.buffer_info()[0], 1, remote.buffer_info()[0], len(pieces), 0)
        if count == length:
            return True
        if count < 0 and ctypes.get_errno() in _FORBIDDEN:
            self._direct = False
            return False
        raise lost(self._region)

    def _read_by_file(self, pieces: Sequence[Extent]) -> None:
        filled = 0
        view = memoryview(self.buffer)
        for start, end in pieces:
            while start < end:
                try:
                    count = os.preadv(self._memory, [view[filled : filled + end - start]], self._region.address + start)
                except OSError as error:
                    raise lost(self._region) from error
                if count == 0:  # the address space is gone
                    raise lost(self._region)
                start, filled = start + count, filled + count


def open_memory(region: MemoryRegion, flags: int) -> int:
    """/proc/PID/mem. Raises GuestLost."""
    try:
        return os.open(f"/proc/{region.pid}/mem", flags | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise lost(region) from error


Span = tuple[int, int, int]
"""(page offset in the region, begin in the buffer, end in the buffer) of data that is not zero."""

_ZERO_PAGE = bytes(PAGE)


def spans(pieces: Sequence[Extent], buffer: bytearray, filled: int) -> tuple[list[Span], list[Extent]]:
    """What a batch in `buffer` holds: stretches of pages with data, and the extents of pages that are zero, both ascending."""
    is_zero = buffer.startswith
    zeros = [at for at in range(0, filled, PAGE) if is_zero(_ZERO_PAGE, at)]
    data: list[Span] = []
    empty: list[Extent] = []
    at = upto = 0  # position in the buffer; in `zeros`
    for start, end in pieces:
        behind = at + end - start
        begun = at
        while upto < len(zeros) and zeros[upto] < behind:
            zero = zeros[upto]
            upto += 1
            if begun < zero:
                data.append((start + begun - at, begun, zero))
            page = start + zero - at
            if empty and empty[-1][1] == page:
                empty[-1] = (empty[-1][0], page + PAGE)
            else:
                empty.append((page, page + PAGE))
            begun = zero + PAGE
        if begun < behind:
            data.append((start + begun - at, begun, behind))
        at = behind
    return data, empty
