"""The memory layer of an artefact: the pages that differ from the base memory file, and an index that says where they belong.

    layer file = pages of all DATA runs, ascending | index: header, then 8 bytes a run
    index header (little-endian): magic "TRPLAYER", u32 version 1, u32 runs, u64 region size, u64 data bytes, u32 CRC-32 of the rest, u32 0
    run: u32 first page, u32 pages, of which bit 31 marks a ZERO run

Runs ascend and do not touch unless their kinds differ. DATA bytes lie in the order of the runs, so a run needs no offset. A zero page over a hole of the
base file is the base's own content and is left out; a zero page over anything else is kept, as a run without bytes. docs/artefact-format.md has the whole
picture.
"""

from __future__ import annotations

import os
import struct
import sys
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torpor.durable.threads import Stop
from torpor.model.errors import Corrupt, Incompatible
from torpor.model.snapshots import PAGE, MemoryRegion, Run, RunKind
from torpor.snapshot.digest import Digest
from torpor.snapshot.scan import Extent
from torpor.snapshot.source import Source, Span, batches, lost, open_memory, spans

_MAGIC = b"TRPLAYER"
_VERSION = 1
_HEADER = struct.Struct("<8sIIQQII")
_CRC_AT = 32
_ZERO_BIT = 1 << 31
_CHUNK = 1 << 20  # bytes between two looks at Stop, and of the buffer of a put-back
_ZERO_CHUNK = bytes(_CHUNK)
_IOVECS = 1024  # Linux's IOV_MAX


@dataclass(slots=True)
class Index:
    """Runs as pairs (first page, pages | zero bit) in `words`; `data_bytes` is their DATA total."""

    region_size: int
    data_bytes: int
    words: array[int]

    def runs(self) -> Iterator[Run]:
        """The runs in ascending order."""
        offset = 0
        for at in range(0, len(self.words), 2):
            start, length = self.words[at] * PAGE, (self.words[at + 1] & ~_ZERO_BIT) * PAGE
            if self.words[at + 1] & _ZERO_BIT:
                yield Run(start, length, RunKind.ZERO)
            else:
                yield Run(start, length, RunKind.DATA, offset)
                offset += length

    def encode(self) -> bytes:
        words = array("I", self.words)
        if sys.byteorder == "big":
            words.byteswap()
        body = words.tobytes()
        header = bytearray(_HEADER.pack(_MAGIC, _VERSION, len(self.words) // 2, self.region_size, self.data_bytes, 0, 0))
        struct.pack_into("<I", header, _CRC_AT, zlib.crc32(body, zlib.crc32(header)))
        return bytes(header) + body


@dataclass(frozen=True, slots=True)
class Captured:
    """A layer as it was written: its index, the file's length and digest."""

    index: Index
    size: int
    digest: str


def decode_index(raw: bytes, data_bytes: int) -> Index:
    """The index at the end of a layer whose DATA takes `data_bytes`. Raises Corrupt; Incompatible for a version this release does not know."""
    if len(raw) < _HEADER.size or raw[:8] != _MAGIC:
        raise Corrupt("The memory layer's index does not begin where it should.")
    _, version, count, region_size, claimed, crc, _ = _HEADER.unpack_from(raw)
    if version != _VERSION:
        raise Incompatible(f"The memory layer's index has version {version}.", {"layer version": (str(version), str(_VERSION))}, mend="Use a newer torpor.")
    body = raw[_HEADER.size :]
    header = bytearray(raw[: _HEADER.size])
    struct.pack_into("<I", header, _CRC_AT, 0)
    if len(body) != count * 8 or claimed != data_bytes or zlib.crc32(body, zlib.crc32(header)) != crc:
        raise Corrupt("The memory layer's index is damaged: its length or checksum is wrong.")
    words = array("I", body)
    if sys.byteorder == "big":
        words.byteswap()
    index = Index(region_size, data_bytes, words)
    _check_runs(index)
    return index


def _check_runs(index: Index) -> None:
    """A sound checksum is no proof of sound runs: the file may come from elsewhere."""
    end = total = 0
    for at in range(0, len(index.words), 2):
        first, word = index.words[at], index.words[at + 1]
        pages = word & ~_ZERO_BIT
        if first < end or not pages:
            raise Corrupt("The memory layer's index has runs that overlap or are empty.")
        end = first + pages
        total += 0 if word & _ZERO_BIT else pages
    if end * PAGE > index.region_size or total * PAGE != index.data_bytes:
        raise Corrupt("The memory layer's index does not fit its region or its data.")


class _IndexWriter:
    """Collects runs, joining neighbours of a kind; leaves out zeros over holes of the base (`data`: the base file's data extents, ascending)."""

    def __init__(self, data: Sequence[Extent]) -> None:
        self._starts = [start for start, _ in data]
        self._data = data
        self.words = array("I")
        self._next = -1  # the page after the last run
        self.data_bytes = 0

    def add(self, data: Sequence[Span], zeros: Sequence[Extent]) -> None:
        """One batch, both ascending, not overlapping."""
        runs = sorted([(start, start + end - begin, False) for start, begin, end in data] + [(start, end, True) for start, end in zeros])
        for start, end, zero in runs:
            if zero:
                self._add_zero(start, end)
            else:
                self.data_bytes += end - start
                self._add(start, end, 0)

    def _add_zero(self, start: int, end: int) -> None:
        at = max(0, bisect_right(self._starts, start) - 1)
        while at < len(self._data) and self._data[at][0] < end:
            low, high = max(start, self._data[at][0]), min(end, self._data[at][1])
            if low < high:
                self._add(low, high, _ZERO_BIT)
            at += 1

    def _add(self, start: int, end: int, kind: int) -> None:
        first, pages = start // PAGE, (end - start) // PAGE
        if first == self._next and self.words[-1] & _ZERO_BIT == kind:
            self.words[-1] += pages
        else:
            self.words.extend((first, pages | kind))
        self._next = first + pages


def capture(region: MemoryRegion, extents: Sequence[Extent], base_data: Sequence[Extent], target: int, written: Callable[[int], None], stop: Stop) -> Captured:
    """Copies `extents` of the region into the empty file `target`, zero pages left out, and appends the index. `written` is told the length so far.
    Not fsynced. Raises GuestLost, OSError (disk full), Stopped."""
    writer = _IndexWriter(base_data)
    digest = Digest()
    with Source(region) as source:
        view = memoryview(source.buffer)
        for pieces in batches(extents):
            stop.check()
            data, zeros = spans(pieces, source.buffer, source.read(pieces))
            writer.add(data, zeros)
            kept = joined(data, view)
            digest.update(kept)
            _write_all(target, kept)
            written(writer.data_bytes)
    index = Index(region.size, writer.data_bytes, writer.words)
    tail = memoryview(index.encode())
    digest.update([tail])
    _write_all(target, [tail])
    return Captured(index, writer.data_bytes + len(tail), digest.hexdigest())


def joined(data: Sequence[Span], view: memoryview) -> list[memoryview]:
    """The bytes of spans, as few stretches of the buffer."""
    stretches: list[tuple[int, int]] = []
    for _, begin, end in data:
        if stretches and stretches[-1][1] == begin:
            stretches[-1] = (stretches[-1][0], end)
        else:
            stretches.append((begin, end))
    return [view[begin:end] for begin, end in stretches]


def _write_all(fd: int, spans: list[memoryview]) -> None:
    for at in range(0, len(spans), _IOVECS):
        some = spans[at : at + _IOVECS]
        while some:
            count = os.writev(fd, some)
            while some and count >= len(some[0]):
                count -= len(some.pop(0))
            if some and count:
                some[0] = some[0][count:]


def put_back(index: Index, layer: int, region: MemoryRegion, stop: Stop) -> None:
    """Writes the layer's runs into the region of a process that maps the base file privately and has not run yet. Raises GuestLost, Corrupt (the layer
    is shorter than its index says), Incompatible (another memory size), Stopped."""
    if index.region_size != region.size:
        raise Incompatible("The memory layer was made for another memory size.", {"memory": (str(index.region_size), str(region.size))})
    buffer = bytearray(_CHUNK)
    memory = open_memory(region, os.O_WRONLY)
    try:
        offset = 0
        filled, begin = 0, 0  # the buffer holds layer[begin : begin + filled]
        for run in index.runs():
            if run.kind is RunKind.ZERO:
                for low in range(run.start, run.start + run.length, _CHUNK):
                    stop.check()
                    length = min(_CHUNK, run.start + run.length - low)
                    _write_exactly(memory, memoryview(_ZERO_CHUNK)[:length], region.address + low, region)
                continue
            done = 0
            while done < run.length:
                if offset == begin + filled:
                    stop.check()
                    begin, filled = offset, _fill(layer, buffer, offset, index.data_bytes)
                length = min(run.length - done, begin + filled - offset)
                at = offset - begin
                _write_exactly(memory, memoryview(buffer)[at : at + length], region.address + run.start + done, region)
                offset, done = offset + length, done + length
    finally:
        os.close(memory)


def _fill(layer: int, buffer: bytearray, offset: int, end: int) -> int:
    count = os.preadv(layer, [memoryview(buffer)[: end - offset]], offset)
    if count == 0:
        raise Corrupt("The memory layer is shorter than its index says.")
    return count


def _write_exactly(memory: int, view: memoryview, address: int, region: MemoryRegion) -> None:
    while view:
        try:
            count = os.pwrite(memory, view, address)
        except OSError as error:
            raise lost(region) from error
        if count == 0:
            raise lost(region)
        view, address = view[count:], address + count
