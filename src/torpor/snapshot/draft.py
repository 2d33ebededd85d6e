"""An artefact in the making: see ports.store.Draft.

    draft -> prepare_memory | capture -> commit -> artefact
                                capture -> offer -> keep, abort      a fork: machines start from it, and it never becomes an artefact
                  any of these -> abort

The commit, in order, and what a kill after each step leaves:
    parts and manifest written, all fsynced in staging, directory too    a stale draft
    memory file renamed into the store          a stale draft and a memory file nobody refers to, collected later
    staging/<id> renamed to artefacts/<id>      the artefact, durable with the fsync of the parent that follows
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from torpor.durable import files
from torpor.durable.behind import PIECE, WriteBehind, begin_write_back
from torpor.durable.threads import Lane, Stop, Threads
from torpor.model.errors import InternalError, InvalidInput, NotFound, VmmError
from torpor.model.snapshots import MemoryRegion
from torpor.ports.store import Artefact, Commit, DiskChain
from torpor.snapshot import layer as layers
from torpor.snapshot import manifest as manifests
from torpor.snapshot import memory as memories
from torpor.snapshot.digest import digest_file
from torpor.snapshot.layer import Captured
from torpor.snapshot.manifest import Manifest, Part
from torpor.snapshot.places import LAYER, MANIFEST, MEMORY, STATE, Places, mark_verified, note_digest
from torpor.snapshot.scan import Extent, dirty_extents

INLINE_BYTES = 8 << 20  # a smaller capture or put-back is made on the loop's thread: it takes less than a busy loop may make a thread wait
INLINE_SCAN = 4 << 30


class Shelf(Protocol):
    """What a draft needs of the store it belongs to."""

    places: Places
    threads: Threads
    step: Callable[[str], None]

    def base_extents(self, memory_id: str) -> Sequence[Extent]: ...

    async def memory_part(self, memory_id: str) -> Part: ...

    def committed(self, manifest: Manifest) -> None: ...

    def offered(self, artefact: Artefact) -> None: ...

    def kept(self, memory_id: str, part: Part) -> None: ...

    def closed(self, draft_id: str) -> None: ...


@dataclass(slots=True)
class LocalDraft:
    """Implements ports.store.Draft in `staging/<id>`."""

    id: str
    shelf: Shelf
    memory_id: str | None = None  # the base that a capture refers to: kept while the draft lives
    chain: DiskChain | None = None  # the disk of the commit under way, or of what was offered: kept as well
    _memory_size: int = 0  # of memory of its own
    _rest: Sequence[Extent] = ()  # what that memory still lacks of the base's
    _layer: Captured | None = None
    _spent: bool = False  # a commit was tried, or it was offered or aborted
    _published: bool = False  # the artefact is real
    _directory: Path = field(init=False)

    def __post_init__(self) -> None:
        self._directory = self.shelf.places.draft(self.id)
        with files.disk_errors("beginning an artefact"):
            self._directory.mkdir(mode=0o700)

    @property
    def state_path(self) -> Path:
        return self._directory / STATE

    @property
    def memory_path(self) -> Path:
        return self._directory / MEMORY

    async def prepare_memory(self, size_bytes: int, *, owner_uid: int | None = None) -> Path:
        with files.disk_errors("making a memory file"):
            fd = os.open(self.memory_path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.ftruncate(fd, size_bytes)
                if owner_uid is not None:
                    os.fchown(fd, owner_uid, -1)
            finally:
                os.close(fd)
        self._memory_size = size_bytes
        return self.memory_path

    async def capture(self, region: MemoryRegion, memory_id: str, *, starts: int = 0) -> None:
        if self._layer is not None or self._memory_size:
            raise InternalError("A draft holds one capture, or memory of its own.")
        if self._spent:
            raise InternalError("The draft was aborted.")
        base = self.shelf.base_extents(memory_id)
        self.memory_id = memory_id
        run = self.shelf.threads.run
        extents = dirty_extents(region) if region.size <= INLINE_SCAN else await run(lambda _: dirty_extents(region))
        changed = total(extents)
        whole = changed * starts > total(base)

        def copy(stop: Stop) -> None:
            with files.disk_errors("writing a memory layer"):
                self._copy_whole(region, extents, base, stop) if whole else self._copy_layer(region, extents, base, stop)

        if changed <= INLINE_BYTES:
            copy(Stop())
        else:
            await run(copy)

    def _copy_layer(self, region: MemoryRegion, extents: Sequence[Extent], base: Sequence[Extent], stop: Stop) -> None:
        with self._fresh(LAYER) as fd:
            behind = WriteBehind(self.shelf.threads, fd)
            self._layer = layers.capture(region, extents, base, fd, behind.written, stop)
            begin_write_back(self.shelf.threads, fd)

    def _copy_whole(self, region: MemoryRegion, extents: Sequence[Extent], base: Sequence[Extent], stop: Stop) -> None:
        """The changed pages, at their places in a memory file of the draft's own; what is the base's comes later."""
        with self._fresh(MEMORY) as fd:
            os.ftruncate(fd, region.size)
            memories.copy_pages(region, extents, fd, self._behind(fd), stop)
            self._rest = memories.without(base, extents)
            self._memory_size = region.size

    def _behind(self, fd: int) -> Callable[[int, int], None]:
        """Starts the write-back of each few MiB that were written, in ascending order, with holes in between."""
        first = 0
        written = 0

        def note(offset: int, length: int) -> None:
            nonlocal first, written
            written += length
            if written >= PIECE:
                begin_write_back(self.shelf.threads, fd, first, offset + length - first)
                first, written = offset + length, 0

        return note

    @contextmanager
    def _fresh(self, name: str) -> Iterator[int]:
        """A new file of the draft; removed when the block fails."""
        path = self._directory / name
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            yield fd
        except BaseException:
            path.unlink()
            raise
        finally:
            os.close(fd)

    async def commit(self, commit: Commit) -> Artefact:
        self._begin(commit)
        manifest = None
        try:
            with files.disk_errors(f"committing artefact {self.id}"):
                memory_id, memory = await self._memory()
                layer = Part(self._layer.size, self._layer.digest) if self._layer else None
                settled = manifest = Manifest(self._artefact(commit, memory_id), self._state(), memory, layer)
                await self.shelf.threads.run(lambda _: self._publish(settled), Lane.WAITING)
        finally:
            if self._published and manifest is not None:  # also when cancelled while the thread finished
                self.shelf.committed(manifest)
            self.chain = None
        return manifest.artefact

    async def offer(self, commit: Commit) -> Artefact:
        self._begin(commit)
        memory_id = self.memory_id
        with files.disk_errors("copying a machine"):
            os.chmod(self.state_path, 0o444)
            os.close(self._open_state())
            if self._layer is None:
                memory_id = self.id
                await self.shelf.threads.run(self._complete)
                os.rename(self.memory_path, self.shelf.places.memory(self.id))
        assert memory_id is not None
        artefact = self._artefact(commit, memory_id)
        self.shelf.offered(artefact)
        return artefact

    async def keep(self) -> None:
        if self._layer is not None:
            return  # the base is durable already; the layer's pages are in the machines
        path = self.shelf.places.memory(self.id)

        def settle(stop: Stop) -> Part:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.fsync(fd)
                files.sync(path.parent)
                part = Part(self._memory_size, digest_file(fd, self._memory_size, stop))
            finally:
                os.close(fd)
            note_digest(path, part.digest)
            return part

        with files.disk_errors("copying a machine"):
            self.shelf.kept(self.id, await self.shelf.threads.run(settle, Lane.BACKGROUND))

    def _begin(self, commit: Commit) -> None:
        if self._spent:
            raise InternalError("A draft is committed or offered once; after an error it can only be aborted.")
        if not self._memory_size and self._layer is None:
            raise InternalError("A draft needs memory, captured or booted, before its commit.")
        if not self.state_path.is_file():
            raise InternalError("A draft needs the device state before its commit.")
        size = self._memory_size if self._layer is None else self._layer.index.region_size
        if size != commit.shape.memory_bytes:
            raise InvalidInput(f"The memory has {size} bytes, the shape {commit.shape}.")
        for layer in commit.disk.layers:
            if not self.shelf.places.disk_layer(layer).is_file():
                raise NotFound(f"The disk layer {layer} is missing.")
        self._spent = True
        self.chain = commit.disk

    async def _memory(self) -> tuple[str, Part]:
        """The base memory file that the artefact names: the one captured against, or its own."""
        if self._layer is not None:
            assert self.memory_id is not None
            return self.memory_id, await self.shelf.memory_part(self.memory_id)

        def settle(stop: Stop) -> Part:
            self._complete(stop)
            fd = os.open(self.memory_path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                return Part(self._memory_size, digest_file(fd, self._memory_size, stop))
            finally:
                os.close(fd)

        return self.id, await self.shelf.threads.run(settle)

    def _complete(self, stop: Stop) -> None:
        """The draft's own memory becomes a base: what is missing of the old base copied, or the holes of a booted one dug. Nothing may write to it any more."""
        fd = os.open(self.memory_path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if os.geteuid() == 0:
                os.fchown(fd, 0, 0)
            os.fchmod(fd, 0o444)
            if os.fstat(fd).st_size != self._memory_size:
                raise InternalError("The memory file changed its size.")
            if self.memory_id is None:
                memories.dig(fd, self._memory_size, stop)
            else:
                self._copy_rest(self.memory_id, fd, stop)
            begin_write_back(self.shelf.threads, fd)
        finally:
            os.close(fd)

    def _copy_rest(self, base_id: str, target: int, stop: Stop) -> None:
        base = os.open(self.shelf.places.memory(base_id), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            memories.copy_extents(base, target, self._rest, self._behind(target), stop)
        finally:
            os.close(base)

    def _state(self) -> Part:
        fd = self._open_state()
        try:
            size = os.fstat(fd).st_size
            return Part(size, digest_file(fd, size, Stop()))
        finally:
            os.close(fd)

    def _open_state(self) -> int:
        """Raises VmmError while the VMM that wrote it can still write to it."""
        fd = os.open(self.state_path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if files.has_writer(fd):
                raise VmmError(f"The VMM still has its device state {self.state_path} open for writing.")
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _artefact(self, commit: Commit, memory_id: str) -> Artefact:
        own = self.memory_path if self.memory_path.exists() else self.shelf.places.memory(self.id)
        stored = self.state_path.stat().st_size + (self._layer.size if self._layer else files.allocated(own))
        if commit.disk.layers:
            stored += files.allocated(self.shelf.places.disk_layer(commit.disk.layers[0]))
        return Artefact(
            id=self.id,
            kind=commit.kind,
            owner=commit.owner,
            created_at=commit.created_at,
            template=commit.template,
            shape=commit.shape,
            fingerprint=commit.fingerprint,
            memory_id=memory_id,
            layer_bytes=self._layer.index.data_bytes if self._layer else 0,
            stored_bytes=stored,
            disk=commit.disk,
            generation=commit.generation,
            exact_freeze=commit.exact_freeze,
            extra=dict(commit.extra),
        )

    def _publish(self, manifest: Manifest) -> None:
        """In a thread, never interrupted: from the manifest to the rename that makes it real. On an error nothing was committed."""
        places, step = self.shelf.places, self.shelf.step
        path = self._directory / MANIFEST
        path.unlink(missing_ok=True)  # of an earlier try
        files.write_new(path, manifests.encode(manifest))
        step("manifest written")
        for name in (MEMORY if manifest.layer is None else LAYER, STATE, MANIFEST):
            os.chmod(self._directory / name, 0o444)
            files.sync(self._directory / name)
        self._directory.chmod(0o755)
        files.sync(self._directory)
        step("draft durable")
        own_memory = places.memory(self.id) if manifest.layer is None else None
        try:
            if own_memory is not None:
                os.rename(self.memory_path, own_memory)
                step("memory renamed")
                files.sync(places.memories)
            os.rename(self._directory, places.artefact(self.id))
            step("artefact renamed")
            files.sync(places.artefacts)
            step("artefact durable")
        except BaseException:
            self._take_back(own_memory)
            raise
        self._published = True
        target = places.artefact(self.id)
        for part in (target / STATE, own_memory or target / LAYER):
            mark_verified(part)

    def _take_back(self, own_memory: Path | None) -> None:
        target = self.shelf.places.artefact(self.id)
        if target.exists():
            os.rename(target, self._directory)
        if own_memory is not None and own_memory.exists():
            os.rename(own_memory, self.memory_path)

    async def abort(self) -> None:
        if not self._published and self._directory.exists():
            await self.shelf.threads.run(lambda _: shutil.rmtree(self._directory))
        self._spent = True
        self.shelf.closed(self.id)


def total(extents: Sequence[Extent]) -> int:
    """Bytes in all of them."""
    return sum(end - start for start, end in extents)
