"""The artefact store on the local file system: see ports.store.Snapshots for the contract, snapshot.places for the files.

What keeps a memory file: the artefacts that name it, pins, drafts that captured against it, and the remains of damaged artefacts. Everything else is
collected. All records are held in memory, read once at `open`; the loop's thread alone changes them.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torpor.durable import files
from torpor.durable.threads import Lane, Stop, Threads
from torpor.model.errors import Corrupt, InvalidInput, NotFound
from torpor.model.sandbox import check_id
from torpor.model.snapshots import ArtefactKind
from torpor.ports.store import Artefact, DiskChain, Parts
from torpor.snapshot import manifest as manifests
from torpor.snapshot import memory as memories
from torpor.snapshot.check import check_digests
from torpor.snapshot.digest import digest_file
from torpor.snapshot.draft import LocalDraft
from torpor.snapshot.duplicate import duplicate
from torpor.snapshot.flatten import flatten
from torpor.snapshot.layerfile import LayerFile
from torpor.snapshot.manifest import Manifest, Part
from torpor.snapshot.places import LAYER, MANIFEST, STATE, Places, noted_digest
from torpor.snapshot.recovery import Damage, recover
from torpor.snapshot.scan import Extent


@dataclass(frozen=True, slots=True)
class _Pin:
    """What one holder keeps."""

    memory_id: str
    chain: DiskChain


def _no_step(name: str) -> None:
    """The hook that tests use to die between two steps; does nothing."""


class LocalSnapshots:
    """Implements ports.store.Snapshots under `home`. One object per home; only the owner of the home may have it."""

    def __init__(self, home: Path, threads: Threads, step: Callable[[str], None] = _no_step) -> None:
        self.places = Places(home)
        self.threads = threads
        self.step = step
        self._sound: dict[str, Manifest] = {}
        self._damaged: dict[str, Damage] = {}
        self._drafts: dict[str, LocalDraft] = {}
        self._offered: dict[str, Artefact] = {}
        self._pins: dict[str, list[_Pin]] = {}
        self._held: dict[str, int] = {}  # memory files in the hands of work under way
        self._extents: dict[str, Sequence[Extent]] = {}
        self._parts: dict[str, Part] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._numbers = itertools.count()

    async def open(self) -> None:
        with files.disk_errors("opening the artefact store"):
            found = await self.threads.run(lambda _: recover(self.places))
        self._sound, self._damaged = found.sound, found.damaged
        self._parts = {one.artefact.memory_id: one.memory for one in self._sound.values()}

    def damaged(self) -> Mapping[str, str]:
        return {name: damage.reason for name, damage in self._damaged.items()}

    def salvage(self, artefact_id: str) -> Artefact:
        damage = self._damaged.get(artefact_id)
        if damage is None:
            return self.get(artefact_id)
        if damage.manifest is None:
            raise Corrupt(f"Nothing can be read of artefact {artefact_id}: {damage.reason}")
        return damage.manifest.artefact

    def draft(self, artefact_id: str) -> LocalDraft:
        if check_id(artefact_id) in self._drafts or self.places.artefact(artefact_id).exists() or self.places.memory(artefact_id).exists():
            raise InvalidInput(f"The artefact id {artefact_id} is in use.")
        draft = LocalDraft(artefact_id, self)
        self._drafts[artefact_id] = draft
        return draft

    def get(self, artefact_id: str) -> Artefact:
        return self._manifest(artefact_id).artefact

    def _manifest(self, artefact_id: str) -> Manifest:
        if artefact_id in self._damaged:
            raise Corrupt(f"Artefact {artefact_id} is damaged: {self._damaged[artefact_id].reason}", mend="Its disk may still be good: boot the sandbox cold.")
        try:
            return self._sound[artefact_id]
        except KeyError:
            raise NotFound(f"There is no artefact {artefact_id[:40]}.") from None

    def list(self, kind: ArtefactKind | None = None, owner: str | None = None) -> Sequence[Artefact]:
        chosen = [m.artefact for m in self._sound.values() if kind in (None, m.artefact.kind) and owner in (None, m.artefact.owner)]
        return sorted(chosen, key=lambda artefact: (artefact.created_at, artefact.id), reverse=True)

    async def verify(self, artefact_id: str) -> None:
        manifest = self._manifest(artefact_id)
        try:
            await self.threads.run(lambda stop: check_digests(self.places, manifest, stop), Lane.BACKGROUND)
        except Corrupt as error:
            if self._sound.get(artefact_id) is not manifest:
                return await self.verify(artefact_id)  # rewritten or deleted meanwhile: the files checked were not its any more
            self._damaged[artefact_id] = Damage(error.message, self._sound.pop(artefact_id), frozenset())
            raise

    # --- use

    def base_extents(self, memory_id: str) -> Sequence[Extent]:
        """Data extents of a memory file, kept: the file never changes. Raises NotFound."""
        if memory_id not in self._extents:
            path = self.places.memory(memory_id)
            try:
                fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:
                raise NotFound(f"The memory file {path} is missing.") from None
            try:
                self._extents[memory_id] = memories.data_extents(fd, os.fstat(fd).st_size)
            finally:
                os.close(fd)
        return self._extents[memory_id]

    async def memory_part(self, memory_id: str) -> Part:
        """Size and digest of a memory file; computed only when no manifest ever said it."""
        if memory_id not in self._parts:
            path = self.places.memory(memory_id)

            def read(stop: Stop) -> Part:
                with path.open("rb") as file:
                    size = os.fstat(file.fileno()).st_size
                    return Part(size, noted_digest(path) or digest_file(file.fileno(), size, stop))

            self._parts[memory_id] = await self.threads.run(read)
        return self._parts[memory_id]

    async def zero_memory(self, size_bytes: int) -> str:
        memory_id = manifests.check_memory_id(f"zero{size_bytes >> 20}")
        path = self.places.memory(memory_id)
        if not path.exists():
            with files.disk_errors("making an empty memory file"):
                fresh = self.places.staging / f"{memory_id}-{next(self._numbers)}"
                files.write_new(fresh, b"", 0o600)
                os.truncate(fresh, size_bytes)
                fresh.chmod(0o444)
                os.rename(fresh, path)
        return memory_id

    def take(self, holder: str, artefact_id: str) -> Parts:
        """Without a pause in between, so that nothing can change from the look to the hold."""
        parts = self._parts_of(artefact_id)
        self.hold(holder, parts.artefact.memory_id, parts.artefact.disk)
        return parts

    def _parts_of(self, artefact_id: str) -> Parts:
        artefact = self._offered.get(artefact_id)
        if artefact is not None:
            directory = self.places.draft(artefact_id)
        else:
            artefact, directory = self._manifest(artefact_id).artefact, self.places.artefact(artefact_id)
            os.utime(directory)  # its last use, for LRU
        fill = None
        if artefact.memory_id != artefact.id:
            fill = LayerFile(directory / LAYER, artefact.layer_bytes, self.threads).fill
        return Parts(artefact, self.places.memory(artefact.memory_id), directory / STATE, fill)

    def hold(self, holder: str, memory_id: str, chain: DiskChain) -> None:
        if not self.places.memory(memory_id).is_file():
            raise NotFound(f"The memory file {memory_id} is missing.")
        self._pins.setdefault(holder, []).append(_Pin(memory_id, chain))

    def unpin(self, holder: str) -> None:
        self._pins.pop(holder, None)

    # --- change

    def committed(self, manifest: Manifest) -> None:
        """Called by a draft whose artefact became real."""
        self._sound[manifest.artefact.id] = manifest
        self._parts.setdefault(manifest.artefact.memory_id, manifest.memory)
        self._drafts.pop(manifest.artefact.id, None)

    def closed(self, draft_id: str) -> None:
        """Called by a draft that was aborted."""
        self._drafts.pop(draft_id, None)
        self._offered.pop(draft_id, None)

    def offered(self, artefact: Artefact) -> None:
        """Called by a draft from which machines may start now."""
        self._offered[artefact.id] = artefact

    def kept(self, memory_id: str, part: Part) -> None:
        """Called by a draft whose memory file, offered before, is durable now."""
        self._parts[memory_id] = part

    def _lock(self, artefact_id: str) -> asyncio.Lock:
        return self._locks.setdefault(artefact_id, asyncio.Lock())

    async def rebase(self, artefact_id: str) -> Artefact:
        async with self._lock(artefact_id):
            manifest = self._manifest(artefact_id)
            if manifest.layer is None:
                return manifest.artefact
            base = manifest.artefact.memory_id
            self._take(base)
            self._take(artefact_id)
            new: dict[str, Manifest] = {}
            try:
                with files.disk_errors(f"flattening artefact {artefact_id}"):
                    await self.threads.run(lambda stop: flatten(self.places, manifest, self.step, new, stop), Lane.BACKGROUND)
            finally:
                if new:  # also when cancelled while the thread finished
                    self._replace(artefact_id, new[artefact_id])
                self._give(base)
                self._give(artefact_id)
            return new[artefact_id].artefact

    async def duplicate(self, artefact_id: str, new_id: str, name: str, created_at: float) -> Artefact:
        async with self._lock(artefact_id):
            manifest = self._manifest(artefact_id)
            if check_id(new_id) in self._drafts or self.places.artefact(new_id).exists():
                raise InvalidInput(f"The artefact id {new_id} is in use.")
            copy = dataclasses.replace(manifest.artefact, id=new_id, kind=ArtefactKind.SNAPSHOT, owner=name, created_at=created_at)
            done: list[Manifest] = []
            try:
                with files.disk_errors(f"copying artefact {artefact_id}"):
                    await self.threads.run(lambda _: done.append(duplicate(self.places, manifest, copy)), Lane.WAITING)
            finally:
                if done:  # also when cancelled while the thread finished
                    self._sound[new_id] = done[0]
            return copy

    async def replace_disk(self, artefact_id: str, chain: DiskChain) -> Artefact:
        async with self._lock(artefact_id):
            manifest = self._manifest(artefact_id)
            for layer in chain.layers:
                if not self.places.disk_layer(layer).is_file():
                    raise NotFound(f"The disk layer {layer} is missing.")
            new = dataclasses.replace(manifest, artefact=dataclasses.replace(manifest.artefact, disk=chain))
            path = self.places.artefact(artefact_id) / MANIFEST
            done = threading.Event()

            def write(_: Stop) -> None:
                files.replace(path, manifests.encode(new))
                done.set()

            try:
                with files.disk_errors(f"rewriting the manifest of {artefact_id}"):
                    await self.threads.run(write, Lane.WAITING)
            finally:
                if done.is_set():
                    self._replace(artefact_id, new)
            return new.artefact

    def _replace(self, artefact_id: str, new: Manifest) -> None:
        self._sound[artefact_id] = new
        self._parts[new.artefact.memory_id] = new.memory

    async def delete(self, artefact_id: str) -> None:
        async with self._lock(artefact_id):
            directory = self.places.artefact(artefact_id)
            trash = self.places.staging / f"trash-{artefact_id}-{next(self._numbers)}"
            self._sound.pop(artefact_id, None)
            self._damaged.pop(artefact_id, None)
            if directory.exists():
                os.rename(directory, trash)
                await self.threads.run(lambda _: _discard(trash, self.places.artefacts), Lane.WAITING)
        self._locks.pop(artefact_id, None)

    def _take(self, memory_id: str) -> None:
        self._held[memory_id] = self._held.get(memory_id, 0) + 1

    def _give(self, memory_id: str) -> None:
        self._held[memory_id] -= 1
        if not self._held[memory_id]:
            del self._held[memory_id]

    # --- space

    def referenced_disks(self) -> Sequence[DiskChain]:
        chains = {m.artefact.disk for m in self._sound.values()}
        chains |= {pin.chain for pins in self._pins.values() for pin in pins}
        chains |= {draft.chain for draft in self._drafts.values() if draft.chain is not None}
        chains |= {damage.chain() for damage in self._damaged.values()}
        return list(chains)

    def _needed_memories(self) -> set[str]:
        needed = {m.artefact.memory_id for m in self._sound.values()} | set(self._held)
        needed |= {pin.memory_id for pins in self._pins.values() for pin in pins}
        needed |= {draft.memory_id for draft in self._drafts.values() if draft.memory_id is not None}
        needed |= set(self._drafts)  # one that is about to be renamed into the store
        for damage in self._damaged.values():
            needed |= damage.needs | ({damage.manifest.artefact.memory_id} if damage.manifest else set())
        return needed

    async def collect(self, warm_budget_bytes: int) -> int:
        freed = 0
        warm = self._evictable()
        excess = sum(size for _, size, _ in warm) - warm_budget_bytes
        for _, size, artefact_id in sorted(warm):
            if excess <= 0:
                break
            freed += size - files.allocated(self.places.memory(artefact_id))  # the memory file is counted below
            await self.delete(artefact_id)
            excess -= size
        needed = self._needed_memories()
        doomed = [path for path in self.places.memories.glob("*.mem") if path.stem not in needed]
        for path in doomed:
            self._extents.pop(path.stem, None)
            self._parts.pop(path.stem, None)
        return freed + await self.threads.run(lambda _: sum(_remove(path) for path in doomed), Lane.BACKGROUND)

    def _evictable(self) -> Sequence[tuple[int, int, str]]:
        """(last use, bytes that its eviction frees, id) of every WARM artefact that nobody runs on and whose memory nobody else needs."""
        users: dict[str, int] = {}
        for manifest in self._sound.values():
            users[manifest.artefact.memory_id] = users.get(manifest.artefact.memory_id, 0) + 1
        taken = {pin.memory_id for pins in self._pins.values() for pin in pins} | set(self._held)
        taken |= {draft.memory_id for draft in self._drafts.values() if draft.memory_id is not None}
        found = []
        for artefact_id, manifest in self._sound.items():
            memory_id = manifest.artefact.memory_id
            if manifest.artefact.kind is ArtefactKind.WARM and memory_id not in taken and users[memory_id] == 1:
                directory = self.places.artefact(artefact_id)
                size = sum(files.allocated(path) for path in (directory / STATE, directory / MANIFEST, self.places.memory(memory_id)))
                found.append((directory.stat().st_mtime_ns, size, artefact_id))
        return found

    def usage(self) -> Mapping[ArtefactKind, int]:
        """Shared files count for the first kind that has them, in the order of ArtefactKind."""
        counted: set[Path] = set()
        totals = dict.fromkeys(ArtefactKind, 0)
        for kind in ArtefactKind:
            for artefact in self.list(kind):
                directory = self.places.artefact(artefact.id)
                paths = {directory / MANIFEST, directory / STATE, directory / LAYER, self.places.memory(artefact.memory_id)}
                paths |= {self.places.disk_layer(layer) for layer in artefact.disk.layers}
                totals[kind] += sum(files.allocated(path) for path in paths - counted)
                counted |= paths
        return totals


def _discard(trash: Path, parent: Path) -> None:
    files.sync(parent)
    shutil.rmtree(trash)


def _remove(path: Path) -> int:
    size = files.allocated(path)
    path.unlink(missing_ok=True)
    return size
