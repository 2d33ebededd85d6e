"""The seam to what lies on disk: disk layers (qcow2 overlays over a base) and artefacts (memory, device state, disk chain, manifest).

    running machine:   base <- frozen .. <- frozen <- its live overlay          RAM: private mapping of a memory file
    pause / snapshot:  the live overlay is frozen and joins the chain; the pages that differ from the memory file become the artefact's layer

Nothing referred to by a committed artefact, or pinned by a running machine, is ever changed or removed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from torpor.model.shapes import Shape
from torpor.model.snapshots import ArtefactKind, Fingerprint, MemoryRegion
from torpor.ports.vmm import DiskSpec


@dataclass(frozen=True, slots=True)
class DiskChain:
    """`layers`: ids of frozen overlays, nearest first; `base`: the content digest of the base image below them; `size_bytes`: what the guest sees."""

    base: str
    layers: tuple[str, ...]
    size_bytes: int


class Disks(Protocol):
    """Base images and overlays. Layer ids are made by the store; files are named by them and nothing else."""

    def register_base(self, digest: str, path: Path, format: str) -> None:
        """Makes an immutable base image known for this process. Raises Corrupt when the file is missing or writable."""
        ...

    async def create_overlay(self, at: Path, chain: DiskChain, *, owner_uid: int | None = None) -> DiskSpec:
        """Writes a fresh qcow2 overlay at the new path `at`, without starting a process. Raises NotFound (a layer is missing), NoSpace, VmmError (somebody can
        still write to a layer that was sealed); then `at` does not exist."""
        ...

    def prepare(self, overlay: Path, chain: DiskChain) -> DiskChain:
        """Gives an overlay that is still written its name in the store, so that a stop need not wait for it, and returns the chain that has it on top; the
        write-back of what it holds so far begins. `seal` follows, or `release` when nothing came of it. Raises NotFound, Corrupt (its header is not what we
        wrote), NoSpace; then nothing changed."""
        ...

    async def seal(self, chain: DiskChain, *, closed: bool) -> None:
        """Makes every layer of `chain` 0444 and durable; those that this process sealed before cost nothing. The caller guarantees that no process writes
        to them any more; one may still read them. `closed`: and none may have them open for writing, which is checked: without, a stopped VMM still has the
        nearest one, and the check is made when something is to stand on it. Raises NoSpace, VmmError (one is open for writing)."""
        ...

    def moved(self, fresh: Path, overlay: Path, chain: DiskChain) -> DiskChain | None:
        """After a crash between a machine's change of disk and the note of it: the chain that `fresh` stands on, when that is `chain` with `overlay` on top
        under the name that `prepare` gave it. None when `fresh` is no such overlay."""
        ...

    async def freeze(self, overlay: Path, chain: DiskChain) -> DiskChain:
        """`prepare` and `seal` of an overlay that nothing writes any more. It may be unlinked after. Raises as both; then it is as it was."""
        ...

    def release(self, chain: DiskChain) -> None:
        """Ends the hold that `prepare` or `freeze` put on its new layer, so that a collect between it and the commit cannot take it: from now on only
        `referenced` keeps it. Call it when the commit has ended, well or not. A collect that sees the layer referenced ends the hold too. Idempotent."""
        ...

    def shorten(self, chain: DiskChain) -> DiskChain:
        """The same content with finished background merges put in place of the layers they replace. Never waits."""
        ...

    async def merge(self, chain: DiskChain, shared: Sequence[str]) -> None:
        """Background work: merges runs of layers that are not in `shared` into one, until the chain has at most 3 layers of its own. Safe while
        machines read the
        layers; result reached through `shorten`. When cancelled or killed, nothing but a temporary file is lost."""
        ...

    def spec(self, overlay: Path, chain: DiskChain) -> DiskSpec:
        """Paths of an existing overlay on `chain`. Raises NotFound."""
        ...

    async def collect(self, referenced: Sequence[DiskChain]) -> int:
        """Removes every layer in none of the chains; returns the bytes freed."""
        ...


@dataclass(frozen=True, slots=True)
class Artefact:
    """A committed artefact, as its manifest says. `owner`: the sandbox id of a PAUSED one, the name of a SNAPSHOT, '' for WARM. `memory_id` names
    the base memory
    file, `layer_bytes` the data on top of it (0: none). `exact_freeze` False marks a pause whose guest did not freeze. `extra`: small strings of the
    host's own."""

    id: str
    kind: ArtefactKind
    owner: str
    created_at: float
    template: str
    shape: Shape
    fingerprint: Fingerprint
    memory_id: str
    layer_bytes: int
    stored_bytes: int
    disk: DiskChain
    generation: int
    exact_freeze: bool = True
    extra: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Commit:
    """What a draft's commit is told; see Artefact."""

    kind: ArtefactKind
    owner: str
    created_at: float
    template: str
    shape: Shape
    fingerprint: Fingerprint
    disk: DiskChain
    generation: int
    exact_freeze: bool = True
    extra: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Parts:
    """What a machine starts from: `artefact` as it was when they were taken, and the three parts of vmm.Restore. `fill` None: nothing is put back."""

    artefact: Artefact
    memory: Path
    state: Path
    fill: Callable[[MemoryRegion], Awaitable[None]] | None


class Draft(Protocol):
    """An artefact in the making, in a staging directory of its own. Uncommitted drafts of a dead process are removed at the next start."""

    @property
    def state_path(self) -> Path:
        """Where the VMM is to write its device state: a path that does not exist yet."""
        ...

    @property
    def memory_path(self) -> Path:
        """For a cold boot: a sparse file of the shape's size to become guest RAM, made by `prepare_memory`."""
        ...

    async def prepare_memory(self, size_bytes: int, *, owner_uid: int | None = None) -> Path:
        """Makes `memory_path`: sparse, `size_bytes` long, writable by `owner_uid`. The VMM must have ended before the commit. Raises NoSpace."""
        ...

    async def capture(self, region: MemoryRegion, memory_id: str, *, starts: int = 0) -> None:
        """Needs the machine paused. Scans the region for pages that are no longer the base file's, writes them as one layer (data and zero runs, base to now).
        `starts`: how many machines will soon start from it. Where putting the layer into each would cost more than copying the base's data once, the pages
        become a memory file of the draft's own instead, of which only they are written now: the rest follows in `commit` or `offer`, when the machine may
        run again. Work of hundreds of MB runs in threads. Raises NoSpace, GuestLost (the process ended); the draft can then only be aborted."""
        ...

    async def commit(self, commit: Commit) -> Artefact:
        """fsyncs layer or memory, state, manifest and directories, then makes the artefact real by one rename. When it returns, a power cut loses
        nothing; when it
        raises (NoSpace), nothing was committed; when cancelled, one of the two holds and the store knows which."""
        ...

    async def offer(self, commit: Commit) -> Artefact:
        """Instead of `commit`, for copies of a running machine: what is returned is known to `Snapshots.take` until `abort`, and to nothing else;
        it never becomes an artefact. Nothing is durable yet. Memory of the draft's own has its place in the store, where `hold` keeps it. Raises as commit."""
        ...

    async def keep(self) -> None:
        """After `offer`: makes durable what artefacts of the machines started from it will refer to. Safe while they start. Raises NoSpace."""
        ...

    async def abort(self) -> None:
        """Removes the draft, also an offered one: machines that started from it run on. Idempotent; no error after a commit."""
        ...


class Snapshots(Protocol):
    """The artefact store."""

    async def open(self) -> None:
        """Recovers after a crash: removes stale drafts, reads all manifests; a damaged one is set aside, never deleted, and listed by `damaged`."""
        ...

    def damaged(self) -> Mapping[str, str]:
        """Artefact directory name -> what is wrong with it."""
        ...

    def salvage(self, artefact_id: str) -> Artefact:
        """What the manifest of a damaged artefact still says (of a sound one too): its disk may be good. Raises NotFound, Corrupt (nothing readable)."""
        ...

    def draft(self, artefact_id: str) -> Draft:
        """Begins an artefact. Raises InvalidInput when the id is taken or malformed, NoSpace."""
        ...

    def get(self, artefact_id: str) -> Artefact:
        """Raises NotFound, Corrupt (when damaged)."""
        ...

    def list(self, kind: ArtefactKind | None = None, owner: str | None = None) -> Sequence[Artefact]:
        """Newest first."""
        ...

    async def verify(self, artefact_id: str) -> None:
        """Checks sizes and digests once; the verdict is kept for as long as the files' identity (inode, size, mtime) holds. Raises Corrupt."""
        ...

    def take(self, holder: str, artefact_id: str) -> Parts:
        """What `holder` (a machine id) is to start from, as it is in this moment, and held as by `hold` from this moment on. An artefact that was read earlier
        will not do: background work may have given it another disk chain or memory file since, and collected the old. Marks it as used now (for LRU). Raises
        NotFound, Corrupt; then nothing is held."""
        ...

    def hold(self, holder: str, memory_id: str, chain: DiskChain) -> None:
        """Keeps what `holder` runs on, the memory file and the disk layers, until `unpin`: whatever becomes of the artefact it started from.
        Once more when a snapshot made its chain longer. Holds live in this process; a new one holds again while adopting, before the first collect. Raises
        NotFound when the memory file is gone."""
        ...

    def unpin(self, holder: str) -> None:
        """Ends all holds of `holder`. Idempotent."""
        ...

    async def zero_memory(self, size_bytes: int) -> str:
        """The id of a memory file of nothing but a hole: the base to capture against for a machine that booted on private memory of its own. Made when
        missing; keep it by `hold`. Raises NoSpace."""
        ...

    async def rebase(self, artefact_id: str) -> Artefact:
        """Flattens base and layer into a memory file of the artefact's own (reflink where the file system can, else a sparse copy in a thread), so
        that the next restore
        maps it and copies nothing. Readers of the old files are not disturbed. When cancelled or killed, the artefact is as before."""
        ...

    async def duplicate(self, artefact_id: str, new_id: str, name: str, created_at: float) -> Artefact:
        """A SNAPSHOT named `name` of the same content, durable, independent of the first; their files are shared. Raises NotFound, Corrupt, NoSpace; then
        nothing is left. When cancelled, it is there or not, and the store knows which."""
        ...

    async def delete(self, artefact_id: str) -> None:
        """Removes the artefact; files still pinned or referred to stay until they are not. Idempotent."""
        ...

    def referenced_disks(self) -> Sequence[DiskChain]:
        """Disk chains of all artefacts, holds and drafts being committed, for Disks.collect and for `shared` in Disks.merge."""
        ...

    async def replace_disk(self, artefact_id: str, chain: DiskChain) -> Artefact:
        """Rewrites the manifest with a chain of equal content (a finished merge). Atomic and durable."""
        ...

    async def collect(self, warm_budget_bytes: int) -> int:
        """Removes memory files nobody refers to, and least recently used WARM artefacts until they fit the budget (pinned ones stay). Returns bytes freed."""
        ...

    def usage(self) -> Mapping[ArtefactKind, int]:
        """Bytes really occupied on disk, by kind, shared files counted once."""
        ...
