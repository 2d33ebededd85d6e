"""A layer opened for one restore: it stays readable although the artefact is re-based or deleted before the restore gets to it."""

from __future__ import annotations

import os
from pathlib import Path

from torpor.durable.threads import Stop, Threads
from torpor.model.errors import Corrupt, NotFound
from torpor.model.snapshots import MemoryRegion
from torpor.snapshot.draft import INLINE_BYTES
from torpor.snapshot.layer import Index, decode_index, put_back


def read_index(fd: int, data_bytes: int) -> Index:
    """The index behind a layer's `data_bytes` of pages. Raises Corrupt, Incompatible."""
    length = os.fstat(fd).st_size - data_bytes
    if length <= 0:
        raise Corrupt("The memory layer is cut off.")
    return decode_index(os.pread(fd, length, data_bytes), data_bytes)


class LayerFile:
    """Holds the open layer from restore_parts until it is dropped."""

    def __init__(self, path: Path, data_bytes: int, threads: Threads) -> None:
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            self._fd = -1
            raise NotFound(f"The memory layer {path} is missing.") from None
        self._data_bytes = data_bytes
        self._threads = threads

    async def fill(self, region: MemoryRegion) -> None:
        """Puts the layer back; see layer.put_back. A large one in a thread. Can be called for several regions."""
        index = read_index(self._fd, self._data_bytes)
        if self._data_bytes <= INLINE_BYTES:
            put_back(index, self._fd, region, Stop())
        else:
            await self._threads.run(lambda stop: put_back(index, self._fd, region, stop))

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
