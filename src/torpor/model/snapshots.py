"""Words of artefacts: memory runs, layers, fingerprints, manifests. A manifest is the whole truth about one artefact; its JSON form is snapshot.manifest's."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

PAGE = 4096


class RunKind(Enum):
    DATA = "data"
    ZERO = "zero"


@dataclass(frozen=True, slots=True)
class Run:
    """`length` bytes of guest memory from `start` (offset in guest RAM, both multiples of 4096). DATA stands at `offset` in the layer's file; ZERO
    has offset 0 and no bytes."""

    start: int
    length: int
    kind: RunKind
    offset: int = 0


class ArtefactKind(Enum):
    """WARM: a template booted once for a shape. PAUSED: private to its sandbox. SNAPSHOT: named, or the source of forks."""

    WARM = "warm"
    PAUSED = "paused"
    SNAPSHOT = "snapshot"


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What must agree for a memory snapshot to run here. `hard` differing refuses; `soft` differing asks for a canary first."""

    hard: dict[str, str]
    soft: dict[str, str] = field(default_factory=dict)

    def differences(self, here: Fingerprint) -> tuple[dict[str, tuple[str, str]], dict[str, tuple[str, str]]]:
        """(hard, soft) fields whose values differ, each (stored, here); a field missing on one side counts as ''."""
        return _differ(self.hard, here.hard), _differ(self.soft, here.soft)


def _differ(stored: dict[str, str], here: dict[str, str]) -> dict[str, tuple[str, str]]:
    return {k: (stored.get(k, ""), here.get(k, "")) for k in sorted(stored.keys() | here.keys()) if stored.get(k, "") != here.get(k, "")}


@dataclass(frozen=True, slots=True)
class MemoryRegion:
    """Guest RAM inside a VMM process: `size` bytes mapped at `address` of process `pid`, a private mapping of the base memory file."""

    pid: int
    address: int
    size: int
