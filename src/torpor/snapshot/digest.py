"""Digests that several threads can take at once, and that skip holes: the BLAKE3 over the BLAKE3 of each 4 MiB block in order (the last may be short).

A hole reads as zeros and hashes as zeros, without being read: the digest depends on content and length alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from blake3 import blake3

from torpor.durable.threads import Stop

BLOCK = 4 << 20
_PIECE = 1 << 20
_ZERO_BLOCK = blake3(bytes(BLOCK)).digest()


def _block(fd: int, offset: int, length: int) -> bytes:
    digest = blake3()
    view = memoryview(bytearray(min(_PIECE, length)))
    while length > 0:
        count = os.preadv(fd, [view[:length]], offset)
        if count == 0:
            raise EOFError(f"the file ends at {offset}, {length} bytes early")
        digest.update(view[:count])
        offset, length = offset + count, length - count
    return digest.digest()


def _is_hole(fd: int, offset: int, length: int) -> bool:
    try:
        return os.lseek(fd, offset, os.SEEK_DATA) >= offset + length
    except OSError:  # ENXIO: no data until the end
        return True


def digest_file(fd: int, length: int, stop: Stop) -> str:
    """The digest of the first `length` bytes, in this thread. Raises EOFError when the file is shorter."""
    whole = blake3()
    for offset in range(0, length, BLOCK):
        stop.check()
        size = min(BLOCK, length - offset)
        if size == BLOCK and _is_hole(fd, offset, size) and os.fstat(fd).st_size >= offset + size:
            whole.update(_ZERO_BLOCK)
        else:
            whole.update(_block(fd, offset, size))
    return whole.hexdigest()


class Digest:
    """The same digest, of bytes as they come: nothing is read a second time."""

    def __init__(self) -> None:
        self._whole = blake3()
        self._block = blake3()
        self._room = BLOCK  # bytes until the present block is full

    def update(self, spans: Iterable[memoryview]) -> None:
        for span in spans:
            rest = span
            while len(rest) >= self._room:
                self._block.update(rest[: self._room])
                rest = rest[self._room :]
                self._whole.update(self._block.digest())
                self._block.reset()
                self._room = BLOCK
            self._block.update(rest)
            self._room -= len(rest)

    def hexdigest(self) -> str:
        """Of everything so far. Once."""
        if self._room < BLOCK:
            self._whole.update(self._block.digest())
        return self._whole.hexdigest()
