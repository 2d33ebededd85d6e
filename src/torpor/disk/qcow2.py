"""The part of qcow2 (version 3, QEMU's docs/interop/qcow2.txt) that our overlays use, written and read by us.

    cluster 0: header, extensions, backing name | 1: refcount table | 2: first refcount block | 3..: L1 table | L2 tables and data as they come

Clusters are 64 KiB, refcounts 16 bits, no encryption, no compression, no internal snapshots, no external data file. Everything else is Corrupt: the
file was written by a VMM that a guest may have taken over, so the header must be what we wrote, and every table entry is checked before it is
followed. All numbers in the file are big-endian; all offsets and sizes are in bytes.
"""

from __future__ import annotations

import os
import struct
import sys
from array import array
from dataclasses import dataclass
from pathlib import Path

from torpor.model.errors import Corrupt, InvalidInput

CLUSTER_BITS = 16
CLUSTER = 1 << CLUSTER_BITS
L2_ENTRIES = CLUSTER // 8
L2_SPAN = L2_ENTRIES * CLUSTER  # what one L2 table maps: 512 MiB
OFFSET_MASK = 0x00FF_FFFF_FFFF_FE00
COPIED = 1 << 63  # refcount is exactly one
ZERO = 1  # the cluster reads as zeros whatever lies below
MAX_SIZE = 1 << 44  # 16 TiB: the L1 table stays small

_MAGIC = 0x514649FB
_HEADER = struct.Struct(">IIQIIQIIQQIIQQQQII")
_HEADER_LENGTH = 112
_EXTENSION = struct.Struct(">II")
_BACKING_FORMAT = 0xE2792ACA
_FEATURE_NAMES = 0x6803F857
_END = 0
_KNOWN_FORMATS = ("raw", "qcow2")
_REFCOUNT_ORDER = 4
REFCOUNTS_PER_BLOCK = CLUSTER // 2


@dataclass(frozen=True, slots=True)
class Header:
    """What a header says, once `read_header` found nothing wrong with it. `size`: what the guest sees. `backing`: file name, '' for none."""

    size: int
    backing: str
    backing_format: str
    l1_offset: int
    l1_entries: int


def l1_entries(size: int) -> int:
    """How many L1 entries a disk of `size` bytes needs."""
    return -(-size // L2_SPAN)


def clusters(length: int) -> int:
    """How many clusters `length` bytes fill."""
    return -(-length // CLUSTER)


def encode_header(header: Header, refcount_table: int, refcount_table_clusters: int) -> bytes:
    """The bytes from offset 0 on. Raises InvalidInput for a size qcow2 or we cannot hold, or a backing name that is too long."""
    if header.size <= 0 or header.size % 512 or header.size > MAX_SIZE:
        raise InvalidInput(f"{header.size} bytes is no disk size; allowed are multiples of 512 up to {MAX_SIZE}.")
    name, format_name = os.fsencode(header.backing), header.backing_format.encode()
    if len(name) > 1023 or header.backing_format not in ("", *_KNOWN_FORMATS):
        raise InvalidInput(f"{header.backing[:80]!r} ({header.backing_format!r}) cannot be a backing file.")
    extensions = b""
    if name:
        extensions += _EXTENSION.pack(_BACKING_FORMAT, len(format_name)) + format_name.ljust(-(-len(format_name) // 8) * 8, b"\0")
    extensions += _EXTENSION.pack(_END, 0)
    fixed = _HEADER.pack(
        _MAGIC,
        3,
        _HEADER_LENGTH + len(extensions) if name else 0,
        len(name),
        CLUSTER_BITS,
        header.size,
        0,  # encryption: none
        header.l1_entries,
        header.l1_offset,
        refcount_table,
        refcount_table_clusters,
        0,  # internal snapshots
        0,
        0,  # incompatible, compatible, autoclear features
        0,
        0,
        _REFCOUNT_ORDER,
        _HEADER_LENGTH,
    )
    return fixed.ljust(_HEADER_LENGTH, b"\0") + extensions + name


def write_empty(fd: int, size: int, backing: str, backing_format: str) -> None:
    """Makes the empty file `fd` a qcow2 image of `size` bytes with nothing allocated. About 200 bytes are written; the rest is a hole."""
    entries = l1_entries(size)
    used = 3 + clusters(entries * 8)
    header = encode_header(Header(size, backing, backing_format, 3 * CLUSTER, entries), CLUSTER, 1)
    os.ftruncate(fd, used * CLUSTER)
    os.pwrite(fd, struct.pack(f">{used}H", *[1] * used), 2 * CLUSTER)
    os.pwrite(fd, struct.pack(">Q", 2 * CLUSTER), CLUSTER)
    os.pwrite(fd, header, 0)


def read_header(fd: int, path: Path) -> Header:
    """Reads and checks a header against what we write. Raises Corrupt naming the field. `path` is for the message only."""
    raw = os.pread(fd, 4096, 0)
    length = os.fstat(fd).st_size
    if len(raw) < _HEADER_LENGTH:
        raise Corrupt(f"{path}: {len(raw)} bytes are too short for a qcow2 header.")
    (
        magic,
        version,
        backing_offset,
        backing_size,
        cluster_bits,
        size,
        crypt,
        entries,
        l1_offset,
        _refcount_table,
        _refcount_clusters,
        snapshots,
        _snapshots_offset,
        incompatible,
        _compatible,
        _autoclear,
        order,
        header_length,
    ) = _HEADER.unpack_from(raw)
    expected = {
        "magic": (magic, _MAGIC),
        "version": (version, 3),
        "cluster bits": (cluster_bits, CLUSTER_BITS),
        "encryption": (crypt, 0),
        "internal snapshots": (snapshots, 0),
        "incompatible features": (incompatible, 0),
        "refcount order": (order, _REFCOUNT_ORDER),
    }
    for name, (found, wanted) in expected.items():
        if found != wanted:
            raise Corrupt(f"{path}: qcow2 {name} is {found:#x}, not {wanted:#x}.")
    if not 0 < size <= MAX_SIZE or size % 512:
        raise Corrupt(f"{path}: the qcow2 header claims a disk of {size} bytes.")
    fits = l1_entries(size) <= entries <= l1_entries(MAX_SIZE) and CLUSTER <= l1_offset <= length - entries * 8
    if l1_offset % CLUSTER or not fits:
        raise Corrupt(f"{path}: the qcow2 L1 table ({entries} entries at {l1_offset}) does not fit the file.")
    if not 104 <= header_length <= 4096 - 8 or header_length % 8 or (header_length > 104 and raw[104] != 0):
        raise Corrupt(f"{path}: the qcow2 header length or compression type is not ours.")
    backing, backing_format = _read_backing(raw, header_length, backing_offset, backing_size, path)
    return Header(size, backing, backing_format, l1_offset, entries)


def _read_backing(raw: bytes, start: int, offset: int, size: int, path: Path) -> tuple[str, str]:
    backing_format = ""
    while True:
        if start + 8 > len(raw):
            raise Corrupt(f"{path}: the qcow2 header extensions have no end.")
        kind, length = _EXTENSION.unpack_from(raw, start)
        start += 8
        if kind == _END:
            break
        if kind == _BACKING_FORMAT:
            backing_format = raw[start : start + length].decode("ascii", "replace")
        elif kind != _FEATURE_NAMES:
            raise Corrupt(f"{path}: unexpected qcow2 header extension {kind:#x}.")
        start += -(-length // 8) * 8
    if not offset:
        return "", ""
    if size > 1023 or offset < _HEADER_LENGTH or offset + size > len(raw):
        raise Corrupt(f"{path}: the qcow2 backing file name lies outside the header.")
    if backing_format not in _KNOWN_FORMATS:
        raise Corrupt(f"{path}: the qcow2 backing format is {backing_format[:20]!r}.")
    return os.fsdecode(raw[offset : offset + size]), backing_format


def read_table(fd: int, offset: int, entries: int, path: Path) -> array[int]:
    """`entries` 64-bit words of an L1 or L2 table in the machine's byte order; what lies beyond the end of the file reads as 0."""
    raw = os.pread(fd, entries * 8, offset)
    if len(raw) % 8:
        raise Corrupt(f"{path}: a qcow2 table at {offset} is cut off.")
    table = array("Q", raw)
    if sys.byteorder == "little":
        table.byteswap()
    table.extend([0] * (entries - len(table)))
    return table


def encode_table(table: array[int]) -> bytes:
    """The table as it stands in a file."""
    copy = array("Q", table)
    if sys.byteorder == "little":
        copy.byteswap()
    return copy.tobytes()
