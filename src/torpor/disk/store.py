"""Disks on the local file system: see ports.store.Disks for the contract and disk.layers for the files."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from torpor.disk import qcow2
from torpor.disk.layers import Layers
from torpor.disk.merge import merge_layers
from torpor.durable import files
from torpor.durable.behind import begin_write_back
from torpor.durable.threads import Lane, Stop, Threads
from torpor.model.errors import Corrupt, InvalidInput, NotFound, VmmError
from torpor.ports.store import DiskChain
from torpor.ports.vmm import DiskSpec

_OWN_LAYERS = 3  # a lone sandbox has at most this many layers of its own after a merge
_MAX_DEPTH = 64


class LocalDisks:
    """Implements ports.store.Disks under `home`. One object per home; only the owner of the home may have it."""

    def __init__(self, home: Path, threads: Threads) -> None:
        self._layers = Layers(home / "store" / "disks")
        self._layers.load()
        self._threads = threads
        self._held: set[str] = set()  # named in the store, but perhaps in no manifest yet
        self._sealed: set[str] = set()  # read-only and durable: known since this process opened the home
        self._closed: set[str] = set()  # and open for writing nowhere
        self._busy: dict[str, int] = {}  # layers read or written by merges under way

    def register_base(self, digest: str, path: Path, format: str) -> None:
        self._layers.add_base(digest, path, format)

    async def create_overlay(self, at: Path, chain: DiskChain, *, owner_uid: int | None = None) -> DiskSpec:
        paths = self._layers.paths(chain)
        base = self._layers.base(chain.base)
        if chain.size_bytes < base.size:
            raise InvalidInput(f"A disk of {chain.size_bytes} bytes is smaller than its base image of {base.size}.")
        if len(chain.layers) > _MAX_DEPTH:
            raise InvalidInput(f"A chain of {len(chain.layers)} disk layers is too deep; merge first.")
        self._demand_closed([layer for layer in chain.layers if layer in self._sealed or layer not in self._held])  # the rest is still a machine's live overlay
        with files.disk_errors(f"creating the disk overlay {at}"):
            try:
                fd = os.open(at, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except FileExistsError:
                raise InvalidInput(f"{at} exists already.") from None
            try:
                qcow2.write_empty(fd, chain.size_bytes, *self._layers.backing(chain))
                if owner_uid is not None:
                    os.fchown(fd, owner_uid, -1)
            except BaseException:
                at.unlink()
                raise
            finally:
                os.close(fd)
        return DiskSpec(at, paths, base.format)

    def prepare(self, overlay: Path, chain: DiskChain) -> DiskChain:
        layer = self._layers.new_id()
        path = self._layers.path(layer)
        with ExitStack() as undo, files.disk_errors(f"freezing the disk overlay {overlay}"):
            try:
                fd = os.open(overlay, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:
                raise NotFound(f"The disk overlay {overlay} is missing.") from None
            except OSError as error:
                raise Corrupt(f"{overlay} is not a file that can be frozen ({error.strerror}).") from error
            undo.callback(os.close, fd)
            self._check_overlay(fd, overlay, chain)
            # The very file that was checked gets the name. A dir_fd makes Python use linkat, which alone follows the link; the path is absolute.
            os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)
            self._held.add(layer)
            begin_write_back(self._threads, fd)
        return dataclasses.replace(chain, layers=(layer, *chain.layers))

    async def seal(self, chain: DiskChain, *, closed: bool) -> None:
        """What another process left unsealed, when it died between a machine's change to a new overlay and this, is sealed by the next freeze above it."""
        loose = [layer for layer in chain.layers if layer not in self._sealed]
        if loose:
            with files.disk_errors("freezing a disk overlay"):
                fds = [_read_only(self._layers.path(layer)) for layer in loose]
                try:
                    await self._threads.run(lambda _: _sync_named(fds, self._layers.directory), Lane.WAITING)
                finally:
                    for fd in fds:
                        os.close(fd)
            self._sealed.update(loose)
        if closed:
            self._demand_closed(chain.layers)

    def _demand_closed(self, layers: Sequence[str]) -> None:
        """What a VMM has open for writing is not frozen, whatever its mode says; a VMM that a guest took over need not close what it was told to."""
        for layer in layers:
            if layer in self._closed:
                continue
            path = self._layers.path(layer)
            with files.disk_errors(f"looking at the disk layer {path}"):
                fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    writable = files.has_writer(fd)
                finally:
                    os.close(fd)
            if writable:
                raise VmmError(f"A VMM still has the disk layer {path} open for writing.", mend="Pause or kill the sandbox that it was frozen from.")
            self._closed.add(layer)

    def moved(self, fresh: Path, overlay: Path, chain: DiskChain) -> DiskChain | None:
        try:
            with fresh.open("rb") as file:
                header = qcow2.read_header(file.fileno(), fresh)
            layer = Path(header.backing).stem
            if not os.path.samefile(overlay, self._layers.path(layer)):
                return None
        except (FileNotFoundError, Corrupt, InvalidInput):
            return None
        return dataclasses.replace(chain, layers=(layer, *chain.layers))

    async def freeze(self, overlay: Path, chain: DiskChain) -> DiskChain:
        frozen = self.prepare(overlay, chain)
        try:
            await self.seal(frozen, closed=True)
        except BaseException:
            self.release(frozen)
            self._layers.path(frozen.layers[0]).unlink()
            raise
        return frozen

    def _check_overlay(self, fd: int, overlay: Path, chain: DiskChain) -> None:
        """A VMM that a guest took over may have written anything: only what our own header could have become is accepted."""
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Corrupt(f"{overlay} is not a regular file.")
        self._layers.paths(chain)
        header = qcow2.read_header(fd, overlay)
        if header.size != chain.size_bytes:
            raise Corrupt(f"{overlay}: the qcow2 header claims {header.size} bytes, the sandbox's disk has {chain.size_bytes}.")
        self._layers.check_backing(header, chain, overlay)

    def release(self, chain: DiskChain) -> None:
        self._held.difference_update(chain.layers)

    def shorten(self, chain: DiskChain) -> DiskChain:
        return dataclasses.replace(chain, layers=self._layers.shorten(chain.layers))

    async def merge(self, chain: DiskChain, shared: Sequence[str]) -> None:
        current = self.shorten(chain)
        while (run := self._next_run(current.layers, frozenset(shared))) is not None:
            await self._merge_run(current, *run)
            current = self.shorten(current)

    def _next_run(self, layers: Sequence[str], shared: frozenset[str]) -> tuple[int, int] | None:
        """(first, count) of the run of own layers to merge next: as long as the limit asks for and the layout allows, with the fewest bytes to copy."""
        own = [layer not in shared for layer in layers]
        surplus = sum(own) - _OWN_LAYERS
        if surplus <= 0:
            return None
        sizes = [files.allocated(self._layers.path(layer)) for layer in layers]
        for count in range(surplus + 1, 1, -1):
            starts = [at for at in range(len(layers) - count + 1) if all(own[at : at + count])]
            if starts:
                return min(starts, key=lambda at: sum(sizes[at : at + count])), count
        return None

    async def _merge_run(self, chain: DiskChain, first: int, count: int) -> None:
        run, merged = chain.layers[first : first + count], self._layers.new_id()
        below = dataclasses.replace(chain, layers=chain.layers[first + count :])
        self._layers.paths(chain)
        busy = (*run, merged)
        for layer in busy:
            self._busy[layer] = self._busy.get(layer, 0) + 1
        try:
            with files.disk_errors("merging disk layers"):
                await self._threads.run(lambda stop: self._write_merged(run, merged, below, stop), Lane.BACKGROUND)
            self._layers.merged[merged] = tuple(run)
        finally:
            for layer in busy:
                self._busy[layer] -= 1
                if not self._busy[layer]:
                    del self._busy[layer]

    def _write_merged(self, run: Sequence[str], merged: str, below: DiskChain, stop: Stop) -> None:
        """In a thread. Data, record, name, in this order, each durable before the next: a kill in between leaves a `.part` or a lone record."""
        part, path = self._layers.part_path(merged), self._layers.path(merged)
        with ExitStack() as undo:
            sources = []
            for layer in run:
                source = self._layers.path(layer)
                fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                undo.callback(os.close, fd)
                sources.append((fd, source))
            target = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            undo.callback(os.close, target)
            try:
                merge_layers(sources, target, *self._layers.backing(below), stop)
                os.fchmod(target, 0o444)
                os.fsync(target)
                self._layers.write_record(merged, run)
                os.rename(part, path)
            except BaseException:
                part.unlink(missing_ok=True)
                self._layers.record_path(merged).unlink(missing_ok=True)
                raise
            files.sync(path.parent)

    def spec(self, overlay: Path, chain: DiskChain) -> DiskSpec:
        if not overlay.is_file():
            raise NotFound(f"The disk overlay {overlay} is missing.")
        return DiskSpec(overlay, self._layers.paths(chain), self._layers.base(chain.base).format)

    async def collect(self, referenced: Sequence[DiskChain]) -> int:
        keep = {layer for chain in referenced for layer in chain.layers}
        self._held -= keep
        keep |= {layer for chain in referenced for layer in self._layers.shorten(chain.layers)} | self._held | set(self._busy)
        present = {path.stem for path in self._layers.directory.glob("*.qcow2")}
        gone = present - keep
        self._sealed -= gone
        self._closed -= gone
        for layer, run in list(self._layers.merged.items()):
            if layer in gone or not gone.isdisjoint(run) or not present.issuperset(run):
                del self._layers.merged[layer]
        doomed = [self._layers.directory / f"{layer}.qcow2" for layer in gone]
        doomed += [path for path in self._layers.directory.glob("*.merged") if path.stem not in self._layers.merged and path.stem not in self._busy]
        doomed += [path for path in self._layers.directory.glob("*.part") if path.stem not in self._busy]
        return await self._threads.run(lambda _: sum(_remove(path) for path in doomed), Lane.BACKGROUND)


def _read_only(path: Path) -> int:
    """An open descriptor of a layer that only root may change from now on (without root: nobody, by its mode)."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.geteuid() == 0:
            os.fchown(fd, 0, 0)
        os.fchmod(fd, 0o444)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _sync_named(fds: Sequence[int], directory: Path) -> None:
    for fd in fds:
        os.fsync(fd)
    files.sync(directory)


def _remove(path: Path) -> int:
    """Unlinks; returns the bytes that this frees, 0 when another name or nobody has the file."""
    try:
        status = path.lstat()
        path.unlink()
    except FileNotFoundError:
        return 0
    return status.st_blocks * 512 if status.st_nlink == 1 else 0
