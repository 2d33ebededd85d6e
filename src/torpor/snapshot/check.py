"""Checks an artefact's files against its manifest. Files already checked, and unchanged since, are not read again."""

from __future__ import annotations

import os

from torpor.durable.threads import Stop
from torpor.model.errors import Corrupt
from torpor.snapshot.digest import digest_file
from torpor.snapshot.layerfile import read_index
from torpor.snapshot.manifest import Manifest
from torpor.snapshot.places import LAYER, STATE, Places, is_verified, mark_verified
from torpor.snapshot.recovery import check_parts


def check_digests(places: Places, manifest: Manifest, stop: Stop) -> None:
    """Blocking. Raises Corrupt with what is wrong, Stopped."""
    directory = places.artefact(manifest.artefact.id)
    check_parts(places, directory, manifest)
    parts = {directory / STATE: manifest.state, places.memory(manifest.artefact.memory_id): manifest.memory}
    if manifest.layer is not None:
        parts[directory / LAYER] = manifest.layer
    for path, part in parts.items():
        if is_verified(path):
            continue
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if digest_file(fd, part.size, stop) != part.digest:
                raise Corrupt(f"{path.name} is damaged: its digest is not the manifest's.")
            if path.name == LAYER:
                read_index(fd, manifest.artefact.layer_bytes)
        except EOFError as error:
            raise Corrupt(f"{path.name} is cut off: {error}.") from error
        finally:
            os.close(fd)
        mark_verified(path)
