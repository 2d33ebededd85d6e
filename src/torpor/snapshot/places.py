"""Where the store's files lie under a home, and the marks on them.

store/memory/<id>.mem              base memory files, 0444, shared by mapping
store/artefacts/<id>/              one committed artefact: manifest.json, state, and layer when it has one
store/disks/<layer>.qcow2          disk layers (the disk room's; here only looked at)
staging/<id>/                      a draft: state, memory or layer, manifest.json; removed at the next start
staging/rebase-<id>, staging/trash-<id>-*   a memory file being flattened; an artefact being removed
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from torpor.model.sandbox import check_id
from torpor.snapshot.manifest import check_memory_id

MANIFEST, STATE, LAYER, MEMORY = "manifest.json", "state", "layer", "memory"
_VERIFIED, _DIGEST = b"user.torpor.verified", b"user.torpor.digest"


@dataclass(frozen=True, slots=True)
class Places:
    """Paths under one home. Every id is checked before it becomes part of a path."""

    home: Path

    @property
    def artefacts(self) -> Path:
        return self.home / "store" / "artefacts"

    @property
    def memories(self) -> Path:
        return self.home / "store" / "memory"

    @property
    def disks(self) -> Path:
        return self.home / "store" / "disks"

    @property
    def staging(self) -> Path:
        return self.home / "staging"

    def artefact(self, artefact_id: str) -> Path:
        return self.artefacts / check_id(artefact_id)

    def memory(self, memory_id: str) -> Path:
        return self.memories / f"{check_memory_id(memory_id)}.mem"

    def disk_layer(self, layer: str) -> Path:
        return self.disks / f"{check_id(layer)}.qcow2"

    def draft(self, artefact_id: str) -> Path:
        return self.staging / check_id(artefact_id)

    def make(self) -> None:
        for directory in (self.artefacts, self.memories, self.disks, self.staging):
            directory.mkdir(parents=True, exist_ok=True)


def _identity(path: Path) -> bytes:
    status = path.stat()
    return f"{status.st_ino}:{status.st_size}:{status.st_mtime_ns}".encode()


def mark_verified(path: Path) -> None:
    """Notes on the file itself that its digest was checked, for as long as it is this very file unchanged. Where the file system takes no
    such note the check is made again by the next process."""
    try:
        os.setxattr(path, _VERIFIED, _identity(path))
    except OSError:
        return


def is_verified(path: Path) -> bool:
    """True when `mark_verified` was called on this file and neither inode, size nor modification time changed since."""
    try:
        return os.getxattr(path, _VERIFIED) == _identity(path)
    except OSError:
        return False


def note_digest(path: Path, digest: str) -> None:
    """Keeps a memory file's digest on the file itself, for as long as it is this very file unchanged: one that no manifest names yet has no other place."""
    try:
        os.setxattr(path, _DIGEST, _identity(path) + b" " + digest.encode())
    except OSError:
        return


def noted_digest(path: Path) -> str | None:
    """What `note_digest` said of this file, None when it did not or the file changed since."""
    try:
        identity, _, digest = os.getxattr(path, _DIGEST).partition(b" ")
        return digest.decode() if identity == _identity(path) else None
    except OSError:
        return None
