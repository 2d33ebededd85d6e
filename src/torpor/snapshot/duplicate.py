"""A second artefact of the same content: hard links to the parts of the first, a manifest of its own. A kill before the rename leaves a stale draft, which
the next start removes; from then on the two do not depend on each other."""

from __future__ import annotations

import dataclasses
import os
import shutil

from torpor.durable import files
from torpor.ports.store import Artefact
from torpor.snapshot import manifest as manifests
from torpor.snapshot.manifest import Manifest
from torpor.snapshot.places import LAYER, MANIFEST, STATE, Places


def duplicate(places: Places, manifest: Manifest, copy: Artefact) -> Manifest:
    """Blocking and short: no content is copied. Durable when it returns; on an error nothing is left. Raises OSError."""
    source, staged, target = places.artefact(manifest.artefact.id), places.draft(copy.id), places.artefact(copy.id)
    new = dataclasses.replace(manifest, artefact=copy)
    staged.mkdir(mode=0o700)
    try:
        for part in (STATE, LAYER) if manifest.layer else (STATE,):
            os.link(source / part, staged / part)
        files.write_new(staged / MANIFEST, manifests.encode(new))
        files.sync(staged / MANIFEST)
        staged.chmod(0o755)
        files.sync(staged)
        os.rename(staged, target)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    files.sync(places.artefacts)
    return new
