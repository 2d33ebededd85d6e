"""The manifest: the whole truth about one artefact, as JSON with names. docs/artefact-format.md describes every field.

Reading is strict: an unknown format is Incompatible; content that is not what its digest was taken of, and a missing, foreign or ill-typed field, which is
named, are Corrupt. Ids are checked before they can become part of a path.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from blake3 import blake3

from torpor.model.errors import Corrupt, Incompatible, InvalidInput
from torpor.model.sandbox import check_id
from torpor.model.shapes import Shape
from torpor.model.snapshots import ArtefactKind, Fingerprint
from torpor.ports.store import Artefact, DiskChain

FORMAT = 2
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_BASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9:._-]{0,127}\Z")
_MEMORY = re.compile(r"[a-z0-9]{25}\Z|zero[0-9]{1,6}\Z")


@dataclass(frozen=True, slots=True)
class Part:
    """One file of an artefact: its length in bytes and its digest (see snapshot.digest)."""

    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """An artefact and its files. `layer` is None when the memory file alone is the memory. `memory` describes that file, also a shared one."""

    artefact: Artefact
    state: Part
    memory: Part
    layer: Part | None


def check_memory_id(text: str) -> str:
    """A memory file's id: an artefact's, or `zero` and a size in MiB for memory that nobody booted. Raises InvalidInput."""
    if not _MEMORY.match(text):
        raise InvalidInput(f"{text[:40]!r} is not the id of a memory file.")
    return text


def encode(manifest: Manifest) -> bytes:
    """The manifest's bytes, stable for equal content."""
    artefact = manifest.artefact
    tree = {
        "format": FORMAT,
        "id": artefact.id,
        "kind": artefact.kind.value,
        "owner": artefact.owner,
        "created_at": artefact.created_at,
        "template": artefact.template,
        "shape": dataclasses.asdict(artefact.shape),
        "fingerprint": {"hard": dict(artefact.fingerprint.hard), "soft": dict(artefact.fingerprint.soft)},
        "generation": artefact.generation,
        "exact_freeze": artefact.exact_freeze,
        "stored_bytes": artefact.stored_bytes,
        "memory": {"id": artefact.memory_id, **dataclasses.asdict(manifest.memory)},
        "layer": None if manifest.layer is None else {"data_bytes": artefact.layer_bytes, **dataclasses.asdict(manifest.layer)},
        "state": dataclasses.asdict(manifest.state),
        "disk": {"base": artefact.disk.base, "layers": list(artefact.disk.layers), "size_bytes": artefact.disk.size_bytes},
        "extra": dict(artefact.extra),
    }
    return seal(tree)


def seal(tree: Mapping[str, Any]) -> bytes:
    """A manifest's bytes: the tree with the digest of everything else in it."""
    return _bytes({**tree, "digest": _digest(tree)})


def _bytes(tree: Mapping[str, Any]) -> bytes:
    return json.dumps(tree, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def _digest(tree: Mapping[str, Any]) -> str:
    """Of the bytes that the manifest would have without the field `digest`."""
    return blake3(_bytes({name: value for name, value in tree.items() if name != "digest"})).hexdigest()


def decode(raw: bytes) -> Manifest:
    """Reads a manifest. Raises Corrupt naming the field, Incompatible for another format."""
    try:
        tree = json.loads(raw)
        digest = _digest(tree) if isinstance(tree, dict) else ""
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"The manifest is not JSON: {error}.") from error
    if not isinstance(tree, dict) or "format" not in tree:
        raise Corrupt("The manifest has no format.")
    if tree["format"] != FORMAT:
        found = str(tree["format"])[:20]
        raise Incompatible(f"The manifest has format {found}.", {"format": (found, str(FORMAT))}, mend="Use the release that wrote it, or a newer one.")
    if tree.get("digest") != digest:
        raise Corrupt("The manifest was changed: its digest is not that of its content.")
    try:
        return _manifest(_Fields(tree, "manifest"))
    except InvalidInput as error:
        raise Corrupt(f"The manifest is wrong: {error.message}") from error


def _manifest(top: _Fields) -> Manifest:
    top.take("format", int)
    top.take("digest", str)
    memory = _Fields(top.take("memory", dict), "memory")
    layer_tree = top.take("layer", dict, type(None))
    layer = None if layer_tree is None else _Fields(layer_tree, "layer")
    memory_id = check_memory_id(memory.take("id", str))
    layer_bytes = 0 if layer is None else layer.count("data_bytes")
    parts = (_part(memory), None if layer is None else _part(layer))
    shape, prints, disk = (_Fields(top.take(name, dict), name) for name in ("shape", "fingerprint", "disk"))
    artefact = Artefact(
        id=check_id(top.take("id", str)),
        kind=_kind(top.take("kind", str)),
        owner=top.take("owner", str),
        created_at=float(top.take("created_at", int, float)),
        template=top.take("template", str),
        shape=Shape(shape.count("vcpus"), shape.count("memory_mib"), shape.count("disk_mib")),
        fingerprint=Fingerprint(prints.strings("hard"), prints.strings("soft")),
        memory_id=memory_id,
        layer_bytes=layer_bytes,
        stored_bytes=top.count("stored_bytes"),
        disk=_chain(disk),
        generation=top.count("generation"),
        exact_freeze=top.take("exact_freeze", bool),
        extra=top.strings("extra"),
    )
    state_tree = _Fields(top.take("state", dict), "state")
    manifest = Manifest(artefact, _part(state_tree), *parts)
    for fields in (top, memory, shape, prints, disk, state_tree, *([layer] if layer else [])):
        fields.end()
    return manifest


def _part(fields: _Fields) -> Part:
    digest = fields.take("digest", str)
    if not _DIGEST.match(digest):
        raise Corrupt(f"The manifest's {fields.name} has no proper digest.")
    return Part(fields.count("size"), digest)


def _kind(text: str) -> ArtefactKind:
    try:
        return ArtefactKind(text)
    except ValueError:
        raise Corrupt(f"The manifest's kind {text[:20]!r} is unknown.") from None


def _chain(fields: _Fields) -> DiskChain:
    base = fields.take("base", str)
    if not _BASE.match(base):
        raise Corrupt("The manifest's disk base is no digest.")
    layers = fields.take("layers", list)
    if not all(isinstance(layer, str) for layer in layers):
        raise Corrupt("The manifest's disk layers are no ids.")
    return DiskChain(base, tuple(check_id(layer) for layer in layers), fields.count("size_bytes"))


class _Fields:
    """A JSON object of which every field must be taken once, with its type."""

    def __init__(self, tree: Mapping[str, Any], name: str) -> None:
        self.name = name
        self._left = dict(tree)

    def take(self, field: str, *types: type) -> Any:
        if field not in self._left:
            raise Corrupt(f"The manifest's {self.name} has no {field}.")
        value = self._left.pop(field)
        if type(value) not in types:  # exactly: True is no number
            raise Corrupt(f"The manifest's {self.name}.{field} has the wrong type.")
        return value

    def count(self, field: str) -> int:
        value: int = self.take(field, int)
        if not 0 <= value < 1 << 63:
            raise Corrupt(f"The manifest's {self.name}.{field} is out of range.")
        return value

    def strings(self, field: str) -> dict[str, str]:
        value: dict[str, str] = self.take(field, dict)
        if not all(type(item) is str for item in value.values()):
            raise Corrupt(f"The manifest's {self.name}.{field} holds something else than strings.")
        return value

    def end(self) -> None:
        if self._left:
            raise Corrupt(f"The manifest's {self.name} has the unknown field {min(self._left)[:40]!r}.")
