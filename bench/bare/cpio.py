"""Just enough of the "newc" cpio format to take one initrd apart and make another.

The format: cpio(5); Linux's Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

from collections.abc import Mapping

MAGIC = b"070701"
HEADER = 110
TRAILER = "TRAILER!!!"
DIRECTORY, FILE, DEVICE = 0o040755, 0o100755, 0o020600


def read(archive: bytes) -> dict[str, bytes]:
    """Regular files by name. The archive is uncompressed. Raises ValueError when it is something else."""
    files: dict[str, bytes] = {}
    at = 0
    while True:
        if archive[at : at + 6] != MAGIC:
            raise ValueError(f"no cpio header at byte {at}")
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = archive[at + HEADER : at + HEADER + name_size - 1].decode()
        data = _aligned(at + HEADER + name_size)
        if name == TRAILER:
            return files
        if mode & 0o170000 == 0o100000:
            files[name.removeprefix("./")] = archive[data : data + size]
        at = _aligned(data + size)


def write(directories: list[str], files: Mapping[str, bytes]) -> bytes:
    """An archive of these, all owned by root, with /dev/console in it (the kernel gives it to process 1)."""
    out = bytearray()
    nodes = [
        *((name, DIRECTORY, b"", 0) for name in directories),
        ("dev/console", DEVICE, b"", 1),
        *((name, FILE, content, 0) for name, content in files.items()),
        (TRAILER, 0, b"", 0),
    ]
    for number, (name, mode, content, device) in enumerate(nodes, 1):
        text = name.encode() + b"\0"
        # inode, mode, uid, gid, links, mtime, size, device major and minor, the node's own (console is 5:1), name size, checksum
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 5 * device, device, len(text), 0)
        out += MAGIC + b"".join(b"%08x" % field for field in fields) + text
        out += bytes(-len(out) % 4) + content
        out += bytes(-len(out) % 4)
    return bytes(out)


def _aligned(offset: int) -> int:
    return -(-offset // 4) * 4
