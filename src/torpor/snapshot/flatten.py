"""Re-base: base and layer become a memory file of the artefact's own. A kill after each step leaves

copy made and fsynced in staging           the artefact as before; the copy goes at the next start
copy renamed to store/memory/<id>.mem      the artefact as before, and a file that is collected, or replaced by the next re-base
manifest replaced                          the re-based artefact; the layer that is left goes at the next start
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from contextlib import ExitStack

from torpor.durable import files
from torpor.durable.threads import Stop
from torpor.snapshot import manifest as manifests
from torpor.snapshot import memory as memories
from torpor.snapshot.digest import digest_file
from torpor.snapshot.layerfile import read_index
from torpor.snapshot.manifest import Manifest, Part
from torpor.snapshot.places import LAYER, MANIFEST, Places, mark_verified


def flatten(places: Places, manifest: Manifest, step: Callable[[str], None], done: dict[str, Manifest], stop: Stop) -> None:
    """Blocking. Enters the new manifest in `done` once it is in place; on any error before, nothing changed. Raises OSError (disk full), Corrupt, Stopped."""
    artefact = manifest.artefact
    fresh, own = places.staging / f"rebase-{artefact.id}", places.memory(artefact.id)
    layer_path = places.artefact(artefact.id) / LAYER
    fresh.unlink(missing_ok=True)
    try:
        memory = _copy(places, manifest, fresh, stop)
        step("copy durable")
        os.rename(fresh, own)
        files.sync(places.memories)
        step("copy renamed")
        stored = artefact.stored_bytes - (manifest.layer.size if manifest.layer else 0) + files.allocated(own)
        flat = dataclasses.replace(artefact, memory_id=artefact.id, layer_bytes=0, stored_bytes=stored)
        new = Manifest(flat, manifest.state, memory, None)
        files.replace(places.artefact(artefact.id) / MANIFEST, manifests.encode(new))
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    done[artefact.id] = new
    mark_verified(own)
    step("manifest replaced")
    layer_path.unlink()


def _copy(places: Places, manifest: Manifest, fresh: os.PathLike[str], stop: Stop) -> Part:
    artefact, length = manifest.artefact, manifest.memory.size
    with ExitStack() as undo:

        def opened(path: os.PathLike[str], flags: int, mode: int = 0) -> int:
            fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
            undo.callback(os.close, fd)
            return fd

        base = opened(places.memory(artefact.memory_id), os.O_RDONLY)
        layer = opened(places.artefact(artefact.id) / LAYER, os.O_RDONLY)
        target = opened(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        memories.clone(base, target, length, stop)
        memories.apply_layer(read_index(layer, artefact.layer_bytes), layer, target, stop)
        os.fchmod(target, 0o444)
        digest = digest_file(target, length, stop)
        os.fsync(target)
        return Part(length, digest)
