"""Base memory files: where they hold data, copying one sparsely, and giving zero pages back to the file system."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Callable, Sequence

from torpor.durable.threads import Stop
from torpor.model.errors import Corrupt
from torpor.model.snapshots import PAGE, MemoryRegion, RunKind
from torpor.snapshot.layer import Index
from torpor.snapshot.scan import Extent
from torpor.snapshot.source import Source, batches, spans

_FICLONE = 0x40049409  # include/uapi/linux/fs.h
_NO_REFLINK = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.EXDEV, errno.ENOTTY})
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # include/uapi/linux/falloc.h
_COPY = 8 << 20
_CHUNK = 1 << 20
_DIG = 64 << 10  # zero stretches shorter than this stay allocated when a file is dug
_ZEROS = bytes(_DIG)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def data_extents(fd: int, length: int) -> list[Extent]:
    """The parts of a sparse file that are not holes, ascending, page-aligned outwards. A file system without holes gives one extent."""
    extents: list[Extent] = []
    at = 0
    while at < length:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # no data from here on
                raise
            break
        end = os.lseek(fd, start, os.SEEK_HOLE)
        low, high = start // PAGE * PAGE, min(-(-end // PAGE) * PAGE, length)
        if extents and extents[-1][1] >= low:
            extents[-1] = (extents[-1][0], high)
        else:
            extents.append((low, high))
        at = end
    return extents


def punch(fd: int, start: int, length: int) -> None:
    """Makes a stretch of the file a hole, which reads as zeros; writes zeros where the file system has no holes. Raises OSError."""
    if _libc.fallocate(fd, _KEEP_SIZE | _PUNCH_HOLE, start, length) == 0:
        return
    number = ctypes.get_errno()
    if number != errno.EOPNOTSUPP:
        raise OSError(number, os.strerror(number))
    for at in range(start, start + length, _DIG):
        os.pwrite(fd, _ZEROS[: start + length - at], at)


def dig(fd: int, length: int, stop: Stop) -> None:
    """Turns stretches of zeros (64 KiB and aligned) into holes, so that they cost neither disk nor page cache, and a guest's zero page over one is known to
    be the base's own."""
    for start, end in data_extents(fd, length):
        for low in range(start // _DIG * _DIG, end, _CHUNK):
            stop.check()
            piece = os.pread(fd, _CHUNK, low)
            for at in range(0, len(piece) - _DIG + 1, _DIG):
                if piece.startswith(_ZEROS, at):
                    punch(fd, low + at, _DIG)


def clone(source: int, target: int, length: int, stop: Stop) -> None:
    """Makes the empty file `target` equal to `source`: by reflink where the file system can, else by copying the data between the holes."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
        return
    except OSError as error:
        if error.errno not in _NO_REFLINK:
            raise
    os.ftruncate(target, length)
    copy_extents(source, target, data_extents(source, length), lambda _, __: None, stop)


def copy_extents(source: int, target: int, extents: Sequence[Extent], copied: Callable[[int, int], None], stop: Stop) -> None:
    """Copies stretches of one file to the same places of another; `copied` is told each (offset, length). Raises Corrupt (too short), OSError, Stopped."""
    for start, end in extents:
        while start < end:
            stop.check()
            done = os.copy_file_range(source, target, min(_COPY, end - start), start, start)
            if done == 0:
                raise Corrupt("The base memory file is shorter than the guest's memory.")
            copied(start, done)
            start += done


def copy_pages(region: MemoryRegion, extents: Sequence[Extent], target: int, copied: Callable[[int, int], None], stop: Stop) -> None:
    """Writes a process's pages to their places in a file that has holes there; zero pages stay holes. `copied` as in copy_extents. Raises GuestLost,
    OSError (disk full), Stopped."""
    with Source(region) as source:
        view = memoryview(source.buffer)
        for pieces in batches(extents):
            stop.check()
            data, _ = spans(pieces, source.buffer, source.read(pieces))
            for start, begin, end in data:
                _write_at(target, view[begin:end], start)
            copied(pieces[0][0], pieces[-1][1] - pieces[0][0])


def _write_at(fd: int, content: memoryview, offset: int) -> None:
    while content:
        count = os.pwrite(fd, content, offset)
        content, offset = content[count:], offset + count


def without(extents: Sequence[Extent], holes: Sequence[Extent]) -> list[Extent]:
    """`extents` with everything in `holes` taken out; both ascending."""
    left: list[Extent] = []
    at = 0
    for start, end in extents:
        while at < len(holes) and holes[at][1] <= start:
            at += 1
        inside = at
        while inside < len(holes) and holes[inside][0] < end:
            if start < holes[inside][0]:
                left.append((start, holes[inside][0]))
            start = max(start, holes[inside][1])
            inside += 1
        if start < end:
            left.append((start, end))
    return left


def apply_layer(index: Index, layer: int, target: int, stop: Stop) -> None:
    """Writes a layer's runs over a copy of its base: data by copy_file_range, zeros as holes."""
    for run in index.runs():
        stop.check()
        if run.kind is RunKind.ZERO:
            punch(target, run.start, run.length)
            continue
        done = 0
        while done < run.length:
            count = os.copy_file_range(layer, target, min(_COPY, run.length - done), run.offset + done, run.start + done)
            if count == 0:
                raise Corrupt("The memory layer is shorter than its index says.")
            done += count
