"""Where disk layers lie, what they are called, and which merges are on record.

    store/disks/<id>.qcow2     a frozen layer, 0444, never changed
    store/disks/<id>.merged    JSON: this layer holds the same content as the run of layers it replaces; written before the layer gets its name
    store/disks/<id>.part      a merge being written; belongs to nobody once its process is gone

A layer's header names its backing file relative to this directory, for humans with qemu-img. The chain kept in manifests decides, never the header: after
a merge the two differ.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torpor.disk import qcow2
from torpor.durable import files
from torpor.model.errors import Corrupt, InvalidInput, NotFound
from torpor.model.sandbox import base36, check_id
from torpor.ports.store import DiskChain

_DIGEST = re.compile(r"[A-Za-z0-9][A-Za-z0-9:._-]{0,127}\Z")


@dataclass(frozen=True, slots=True)
class Base:
    """An immutable base image. `size`: bytes the guest would see of it."""

    path: Path
    format: str
    size: int


@dataclass(slots=True)
class Layers:
    """The directory and the records in it. `merged` maps a merged layer to the run of layers that it equals, nearest first."""

    directory: Path
    bases: dict[str, Base] = field(default_factory=dict)
    merged: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def path(self, layer: str) -> Path:
        return self.directory / f"{check_id(layer)}.qcow2"

    def record_path(self, layer: str) -> Path:
        return self.directory / f"{check_id(layer)}.merged"

    def part_path(self, layer: str) -> Path:
        return self.directory / f"{check_id(layer)}.part"

    def new_id(self) -> str:
        return base36(uuid.uuid4().int)

    def add_base(self, digest: str, path: Path, format: str) -> None:
        """Raises InvalidInput, Corrupt; see ports.store.Disks.register_base."""
        if not _DIGEST.match(digest) or format not in ("raw", "qcow2"):
            raise InvalidInput(f"{digest[:140]!r} as {format!r} is no base image: a digest and 'raw' or 'qcow2' are.")
        try:
            status = path.stat()
        except OSError as error:
            raise Corrupt(f"The base image {path} cannot be read ({error.strerror}).", mend="Build the template again.") from error
        if not os.path.isfile(path) or status.st_mode & 0o222:
            raise Corrupt(f"The base image {path} is not a read-only file.", mend="Base images are 0444 once made; build the template again.")
        size = status.st_size
        if format == "qcow2":
            with path.open("rb") as image:
                header = qcow2.read_header(image.fileno(), path)
            if header.backing:
                raise Corrupt(f"The base image {path} has a backing file.")
            size = header.size
        self.bases[digest] = Base(path.resolve(), format, size)

    def base(self, digest: str) -> Base:
        try:
            return self.bases[digest]
        except KeyError:
            raise NotFound(f"The base image {digest[:140]} is not known here.", mend="Build or import its template.") from None

    def paths(self, chain: DiskChain) -> tuple[Path, ...]:
        """All files below an overlay, nearest first, base last. Raises NotFound when one is missing."""
        base = self.base(chain.base)
        layers = tuple(self.path(layer) for layer in chain.layers)
        for path in (*layers, base.path):
            if not path.is_file():
                raise NotFound(f"The disk layer {path} is missing.")
        return (*layers, base.path)

    def backing(self, chain: DiskChain) -> tuple[str, str]:
        """(name, format) that an overlay on `chain` carries in its header."""
        if chain.layers:
            return f"{check_id(chain.layers[0])}.qcow2", "qcow2"
        base = self.base(chain.base)
        return os.path.relpath(base.path, self.directory), base.format

    def check_backing(self, header: qcow2.Header, chain: DiskChain, path: Path) -> None:
        """Raises Corrupt unless the header's backing name is one that we gave: `chain`'s, or that of the run which a merged layer replaced."""
        allowed = {self.backing(chain)}
        if chain.layers:
            allowed |= {(f"{run[0]}.qcow2", "qcow2") for run in self._spellings(chain.layers[0])}
        if (header.backing, header.backing_format) not in allowed:
            raise Corrupt(f"{path}: the qcow2 header names {header.backing[:200]!r} as its backing file, which we did not write.")

    def _spellings(self, layer: str) -> list[tuple[str, ...]]:
        """`layer` as runs of the layers it was merged from, also over several merges."""
        found: list[tuple[str, ...]] = [(layer,)]
        for run in found:
            if run[0] in self.merged:
                found.append((*self.merged[run[0]], *run[1:]))
        return found

    def shorten(self, layers: Sequence[str]) -> tuple[str, ...]:
        """`layers` with every run that was merged replaced by its merged layer."""
        result = tuple(layers)
        changed = True
        while changed:
            changed = False
            for layer, run in self.merged.items():
                for at in range(len(result) - len(run) + 1):
                    if result[at : at + len(run)] == run:
                        result = (*result[:at], layer, *result[at + len(run) :])
                        changed = True
                        break
        return result

    def load(self) -> None:
        """Reads the records. One whose layer never got its name is dropped; a damaged one too, as it only saves space."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for path in self.directory.glob("*.merged.new"):  # a crash in the middle of write_record
            path.unlink()
        for path in self.directory.glob("*.merged"):
            run = _read_record(path)
            if run is None or not self.path(path.stem).is_file():
                path.unlink()
                continue
            self.merged[path.stem] = run

    def write_record(self, layer: str, run: Sequence[str]) -> None:
        files.replace(self.record_path(layer), json.dumps({"format": 1, "replaces": list(run)}).encode())


def _read_record(path: Path) -> tuple[str, ...] | None:
    try:
        check_id(path.stem)
        record = json.loads(path.read_bytes())
        run = tuple(check_id(layer) for layer in record["replaces"])
        return run if record["format"] == 1 and len(run) > 1 else None
    except (ValueError, KeyError, TypeError, InvalidInput):
        return None
