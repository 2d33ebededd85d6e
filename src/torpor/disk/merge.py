"""Merges adjacent qcow2 layers into one: for every cluster the nearest layer that says something about it wins.

Works on open descriptors and trusts nothing in them: a table entry that points outside its file, is compressed, or has unknown bits is Corrupt. Runs in
a thread; memory use is one L2 table per layer; data is copied by copy_file_range in runs.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torpor.disk import qcow2
from torpor.disk.qcow2 import CLUSTER, COPIED, L2_ENTRIES, OFFSET_MASK, REFCOUNTS_PER_BLOCK, ZERO, Header
from torpor.durable.threads import Stop
from torpor.model.errors import Corrupt

_ALLOWED = COPIED | OFFSET_MASK
_COPY = 8 << 20  # bytes between two looks at Stop


@dataclass(slots=True)
class _Source:
    """One layer being read."""

    fd: int
    path: Path
    header: Header
    length: int
    l1: array[int]

    @classmethod
    def open(cls, fd: int, path: Path) -> _Source:
        header = qcow2.read_header(fd, path)
        return cls(fd, path, header, os.fstat(fd).st_size, qcow2.read_table(fd, header.l1_offset, header.l1_entries, path))

    def l2(self, index: int) -> array[int] | None:
        """The L2 table for the L1 entry `index`, None when nothing is allocated there."""
        entry = self.l1[index] if index < len(self.l1) else 0
        if entry == 0:
            return None
        offset = entry & OFFSET_MASK
        if entry & ~_ALLOWED or offset % CLUSTER or not CLUSTER <= offset < self.length:
            raise Corrupt(f"{self.path}: qcow2 L1 entry {index} is {entry:#x}.")
        return qcow2.read_table(self.fd, offset, L2_ENTRIES, self.path)

    def data_offset(self, entry: int) -> int:
        """Where the cluster of an L2 entry that is neither zero nor unallocated lies."""
        offset = entry & OFFSET_MASK
        if entry & ~_ALLOWED or offset % CLUSTER or not CLUSTER <= offset < self.length:
            raise Corrupt(f"{self.path}: qcow2 L2 entry {entry:#x} points outside the file.")
        return offset


@dataclass(slots=True)
class _Target:
    """The file being written, front to back: `end` is where the next cluster goes."""

    fd: int
    end: int
    run: tuple[_Source, int, int, int] | None = field(default=None)  # source, offset there, offset here, length

    def take(self, count: int = 1) -> int:
        offset, self.end = self.end, self.end + count * CLUSTER
        return offset

    def add(self, source: _Source, offset: int, stop: Stop) -> int:
        """Appends one data cluster, coalesced with its neighbour where both files are contiguous. Returns where it will lie."""
        here = self.take()
        if self.run is not None:
            run_source, there, at, length = self.run
            if run_source is source and there + length == offset and at + length == here and length < _COPY:
                self.run = (source, there, at, length + CLUSTER)
                return here
            self.flush(stop)
        self.run = (source, offset, here, CLUSTER)
        return here

    def flush(self, stop: Stop) -> None:
        """Copies the pending run. What lies beyond the source's end reads as zeros and stays a hole here."""
        if self.run is None:
            return
        source, there, here, length = self.run
        self.run = None
        stop.check()
        length = min(length, source.length - there)
        while length > 0:
            done = os.copy_file_range(source.fd, self.fd, length, there, here)
            if done == 0:
                raise Corrupt(f"{source.path}: shrank while it was read.")
            there, here, length = there + done, here + done, length - done


def merge_layers(layers: Sequence[tuple[int, Path]], target: int, backing: str, backing_format: str, stop: Stop) -> None:
    """Writes into the empty file `target` one image with the content of `layers` (open descriptors, nearest first) over `backing`. Not fsynced. The
    size is the nearest layer's. Raises Corrupt; OSError when the disk is full; Stopped."""
    sources = [_Source.open(fd, path) for fd, path in layers]
    size = sources[0].header.size
    entries = qcow2.l1_entries(size)
    out = _Target(target, CLUSTER)
    l1_offset = out.take(qcow2.clusters(entries * 8))
    l1 = array("Q", bytes(entries * 8))
    for index in range(entries):
        tables = [(source, table) for source in sources if (table := source.l2(index)) is not None]
        if tables:
            l1[index] = _merge_tables(tables, out, stop) | COPIED
    os.pwrite(target, qcow2.encode_table(l1), l1_offset)
    table_offset, table_clusters = _write_refcounts(out)
    os.ftruncate(target, out.end)
    os.pwrite(target, qcow2.encode_header(Header(size, backing, backing_format, l1_offset, entries), table_offset, table_clusters), 0)


def _merge_tables(tables: Sequence[tuple[_Source, array[int]]], out: _Target, stop: Stop) -> int:
    """Writes the merged L2 table and its data clusters; returns where the table lies."""
    offset = out.take()
    merged = array("Q", bytes(CLUSTER))
    if len(tables) == 1:
        source, table = tables[0]
        for place, entry in enumerate(table):
            if entry:
                merged[place] = _entry(source, entry, out, stop)
    else:
        for place, column in enumerate(zip(*(table for _, table in tables), strict=True)):
            if any(column):
                depth = next(i for i, entry in enumerate(column) if entry)
                merged[place] = _entry(tables[depth][0], column[depth], out, stop)
    out.flush(stop)
    os.pwrite(out.fd, qcow2.encode_table(merged), offset)
    return offset


def _entry(source: _Source, entry: int, out: _Target, stop: Stop) -> int:
    if entry & ZERO:  # a cluster kept allocated under the zero flag need not be carried over
        return ZERO
    return out.add(source, source.data_offset(entry), stop) | COPIED


def _write_refcounts(out: _Target) -> tuple[int, int]:
    """Every cluster of the file is used once; writes the blocks and the table that say so. Returns the table's offset and its clusters."""
    data = out.end // CLUSTER
    blocks = table_clusters = 1
    while True:  # blocks and table count themselves
        total = data + blocks + table_clusters
        need_blocks = -(-total // REFCOUNTS_PER_BLOCK)
        need_table = qcow2.clusters(need_blocks * 8)
        if (need_blocks, need_table) == (blocks, table_clusters):
            break
        blocks, table_clusters = need_blocks, need_table
    block_offset = out.take(blocks)
    table_offset = out.take(table_clusters)
    ones = struct.pack(">H", 1)
    os.pwrite(out.fd, ones * total, block_offset)
    os.pwrite(out.fd, qcow2.encode_table(array("Q", [block_offset + i * CLUSTER for i in range(blocks)])), table_offset)
    return table_offset, table_clusters
