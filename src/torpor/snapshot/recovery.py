"""What the store does when it opens: clears what no crash should leave, reads every manifest, and sets aside what is damaged without touching it."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from torpor.model.errors import ArtefactError, Corrupt, InvalidInput
from torpor.model.sandbox import check_id
from torpor.ports.store import DiskChain
from torpor.snapshot import manifest as manifests
from torpor.snapshot.manifest import Manifest
from torpor.snapshot.places import LAYER, MANIFEST, STATE, Places

_ID = re.compile(rb"(?<![a-z0-9])(?:[a-z0-9]{25}|zero[0-9]{1,6})(?![a-z0-9])")


@dataclass(frozen=True, slots=True)
class Damage:
    """Why an artefact cannot be used, its manifest if that can still be read, and the ids of files that it may need: nothing of it may be collected."""

    reason: str
    manifest: Manifest | None
    needs: frozenset[str]

    def chain(self) -> DiskChain:
        """A chain that keeps every disk layer the artefact may need."""
        return self.manifest.artefact.disk if self.manifest else DiskChain("", tuple(sorted(i for i in self.needs if len(i) == 25)), 0)


@dataclass(slots=True)
class Found:
    """The store's content as read from disk."""

    sound: dict[str, Manifest] = field(default_factory=dict)
    damaged: dict[str, Damage] = field(default_factory=dict)


def recover(places: Places) -> Found:
    """Blocking. Removes staging's content and reads the artefacts; a damaged one stays where it is."""
    places.make()
    for left in places.staging.iterdir():
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        else:
            left.unlink()
    found = Found()
    for directory in sorted(places.artefacts.iterdir()):
        raw = b""
        manifest = None
        try:
            raw = _read_manifest(directory)
            manifest = manifests.decode(raw)
            check_parts(places, directory, manifest)
        except (ArtefactError, InvalidInput) as error:
            found.damaged[directory.name] = Damage(error.message, manifest, _needs(places, raw))
            continue
        found.sound[directory.name] = manifest
        if manifest.layer is None:
            (directory / LAYER).unlink(missing_ok=True)  # a re-base was killed after its manifest was in place
    return found


def _read_manifest(directory: Path) -> bytes:
    check_id(directory.name)
    try:
        return (directory / MANIFEST).read_bytes()
    except OSError as error:
        raise Corrupt(f"The manifest cannot be read ({error.strerror}).") from error


def check_parts(places: Places, directory: Path, manifest: Manifest) -> None:
    """Raises Corrupt unless every file the manifest names is there with the right size."""
    if manifest.artefact.id != directory.name:
        raise Corrupt(f"The manifest belongs to artefact {manifest.artefact.id}.")
    wanted = {directory / STATE: manifest.state.size, places.memory(manifest.artefact.memory_id): manifest.memory.size}
    if manifest.layer is not None:
        wanted[directory / LAYER] = manifest.layer.size
    for path, size in wanted.items():
        found = path.lstat().st_size if path.is_file() else None
        if found != size:
            raise Corrupt(f"{path.name} is missing." if found is None else f"{path.name} has {found} bytes, the manifest says {size}.")
    for layer in manifest.artefact.disk.layers:
        if not places.disk_layer(layer).is_file():
            raise Corrupt(f"The disk layer {layer} is missing.")


def _needs(places: Places, raw: bytes) -> frozenset[str]:
    """Every id in the remains of a manifest; all files of the store when nothing is left to read."""
    ids = frozenset(match.decode() for match in _ID.findall(raw))
    return ids or frozenset(path.stem for directory in (places.memories, places.disks) for path in directory.iterdir())
