"""Finds the pages of a private file mapping that are no longer the file's: written, or swapped out after a write.

Asks the kernel by the PAGEMAP_SCAN ioctl (Linux 6.7, include/uapi/linux/fs.h), else reads the 64-bit words of /proc/PID/pagemap
(Documentation/admin-guide/mm/pagemap.rst). Both give the same answer. A page read but never written is still the file's; so is one dropped by
MADV_DONTNEED. A page written with zeros, or with what the file holds, counts as written.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from array import array

from torpor.model.errors import GuestLost
from torpor.model.snapshots import PAGE, MemoryRegion

Extent = tuple[int, int]
"""(start, end) in bytes from the region's begin, multiples of the page size."""

_PAGEMAP_SCAN = 0xC0606610  # _IOWR('f', 16, struct pm_scan_arg), 12 words of 64 bits
_SCAN = struct.Struct("<12Q")
_FILE, _PRESENT, _SWAPPED = 1 << 2, 1 << 3, 1 << 4
_REGIONS = 8192  # results per call: 192 KiB
_WORDS = 1 << 16  # pagemap words per read: 512 KiB, for 256 MiB of guest memory
_UNSUPPORTED = frozenset({errno.ENOTTY, errno.EINVAL})


def dirty_extents(region: MemoryRegion) -> list[Extent]:
    """Written pages of `region` as ascending extents, neighbours joined. Takes about 5 ms per GiB scanned. Raises GuestLost when the process ended."""
    fd = _open(region)
    try:
        try:
            return scan_by_ioctl(fd, region)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
        return scan_by_words(fd, region)
    except ProcessLookupError as error:
        raise _lost(region) from error
    finally:
        os.close(fd)


def _open(region: MemoryRegion) -> int:
    try:
        return os.open(f"/proc/{region.pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise _lost(region) from error


def _lost(region: MemoryRegion) -> GuestLost:
    return GuestLost(f"The microVM's process {region.pid} ended while its memory was read.")


def scan_by_ioctl(fd: int, region: MemoryRegion) -> list[Extent]:
    """By PAGEMAP_SCAN on the open pagemap `fd`. Raises OSError ENOTTY or EINVAL where the kernel has no such ioctl."""
    start, end = region.address, region.address + region.size
    found = array("Q", bytes(_REGIONS * 24))
    address, _ = found.buffer_info()
    extents: list[Extent] = []
    while start < end:
        call = bytearray(_SCAN.pack(_SCAN.size, 0, start, end, 0, address, _REGIONS, 0, _FILE, _FILE, _PRESENT | _SWAPPED, _FILE))
        count = fcntl.ioctl(fd, _PAGEMAP_SCAN, call, True)
        for at in range(0, 3 * count, 3):
            _append(extents, found[at] - region.address, found[at + 1] - region.address)
        if count < _REGIONS:
            break
        start = found[3 * count - 2]  # behind the last result; the walk_end field is stale once the kernel's own buffer has overflowed (seen on 6.18)
    return extents


def scan_by_words(fd: int, region: MemoryRegion) -> list[Extent]:
    """By reading a 64-bit word a page. Raises GuestLost when the process is gone."""
    extents: list[Extent] = []
    first, pages = region.address // PAGE, region.size // PAGE
    for begin in range(0, pages, _WORDS):
        count = min(_WORDS, pages - begin)
        raw = os.pread(fd, count * 8, (first + begin) * 8)
        if len(raw) != count * 8:
            raise _lost(region)
        # The top three bits: present, swapped, file-backed. Ours are present or swapped, and not the file's.
        for page, word in enumerate(array("Q", raw), begin):
            if word >> 61 in (0b100, 0b010, 0b110):
                _append(extents, page * PAGE, (page + 1) * PAGE)
    return extents


def _append(extents: list[Extent], start: int, end: int) -> None:
    if extents and extents[-1][1] == start:
        extents[-1] = (extents[-1][0], end)
    else:
        extents.append((start, end))
