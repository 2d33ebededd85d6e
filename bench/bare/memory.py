"""The bare loops over a VMM's guest memory: find what changed, write it out, put it back. Nothing of torpor.

PAGEMAP_SCAN: linux/Documentation/admin-guide/mm/pagemap.rst (Linux 6.7).
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
from dataclasses import dataclass
from pathlib import Path

PAGEMAP_SCAN = 0xC0606610
PAGE_IS_FILE, PAGE_IS_PRESENT, PAGE_IS_SWAPPED = 4, 8, 16
RUNS = 16384
PIECE = 1 << 20


class _Range(ctypes.Structure):
    _fields_ = [("start", ctypes.c_uint64), ("end", ctypes.c_uint64), ("categories", ctypes.c_uint64)]


_SCAN_FIELDS = (
    *("size", "flags", "start", "end", "walk_end", "vec", "vec_len", "max_pages"),
    *("category_inverted", "category_mask", "category_anyof_mask", "return_mask"),
)


class _Scan(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in _SCAN_FIELDS]


@dataclass(frozen=True)
class Layer:
    """Changed runs of guest memory in one file: (offset in guest memory, bytes, offset in the file)."""

    path: Path
    runs: list[tuple[int, int, int]]
    size: int


def region(pid: int, file: Path) -> tuple[int, int]:
    """First and last-but-one address of `file` in the process."""
    with open(f"/proc/{pid}/maps") as maps:
        for line in maps:
            if line.rstrip().endswith(str(file)):
                start, end = line.split(maxsplit=1)[0].split("-")
                return int(start, 16), int(end, 16)
    raise RuntimeError(f"{file} is not mapped by {pid}")


def changed(pid: int, start: int, end: int) -> list[tuple[int, int]]:
    """Address runs of a private file mapping that are no longer the file's."""
    ranges = (_Range * RUNS)()
    found: list[tuple[int, int]] = []
    fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY)
    while start < end:
        scan = _Scan(
            size=ctypes.sizeof(_Scan),
            start=start,
            end=end,
            vec=ctypes.addressof(ranges),
            vec_len=RUNS,
            category_inverted=PAGE_IS_FILE,
            category_mask=PAGE_IS_FILE,
            category_anyof_mask=PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            return_mask=PAGE_IS_PRESENT,
        )
        count = fcntl.ioctl(fd, PAGEMAP_SCAN, scan)
        found += [(ranges[n].start, ranges[n].end) for n in range(count)]
        start = scan.walk_end
    os.close(fd)
    return found


def save(pid: int, file: Path, out: Path) -> Layer:
    """Writes the changed runs of `file`'s private mapping to `out`, fsynced."""
    start, end = region(pid, file)
    buffer = memoryview(bytearray(PIECE))
    runs: list[tuple[int, int, int]] = []
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    target = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    offset = 0
    for first, last in changed(pid, start, end):
        runs.append((first - start, last - first, offset))
        while first < last:
            piece = buffer[: min(PIECE, last - first)]
            got = os.preadv(memory, [piece], first)
            os.write(target, piece[:got])
            first += got
            offset += got
    os.fsync(target)
    os.close(target)
    os.close(memory)
    return Layer(out, runs, offset)


def put_back(pid: int, file: Path, layer: Layer) -> None:
    """Writes a layer into the private mapping of `file`."""
    start, _ = region(pid, file)
    memory = os.open(f"/proc/{pid}/mem", os.O_RDWR)
    with layer.path.open("rb") as source, mmap.mmap(source.fileno(), 0, flags=mmap.MAP_PRIVATE | mmap.MAP_POPULATE, prot=mmap.PROT_READ) as data:
        with memoryview(data) as view:
            for at, length, offset in layer.runs:
                os.pwrite(memory, view[offset : offset + length], start + at)
    os.close(memory)


def flatten(pid: int, file: Path, out: Path) -> None:
    """A memory file of its own for what the process holds now: the base's bytes, holes kept, with the changed runs over them."""
    source, target = os.open(file, os.O_RDONLY), os.open(out, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    at = 0
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError:
            break
        hole = os.lseek(source, at, os.SEEK_HOLE)
        while at < hole:
            at += os.copy_file_range(source, target, hole - at, at, at)
    start, end = region(pid, file)
    buffer = memoryview(bytearray(PIECE))
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    for first, last in changed(pid, start, end):
        while first < last:
            got = os.preadv(memory, [buffer[: min(PIECE, last - first)]], first)
            os.pwrite(target, buffer[:got], first - start)
            first += got
    for fd in (source, target, memory):
        os.close(fd)
