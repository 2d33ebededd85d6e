"""What a sandbox is told at its start, how it ends, and the states its machine goes through on the host."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum

from torpor.model.errors import InvalidInput

_ID = re.compile(r"[a-z0-9]{25}\Z")
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def base36(value: int) -> str:
    """A UUID's integer as 25 base-36 digits (36**25 > 2**128): the sandbox id on every wire."""
    digits = ""
    for _ in range(25):
        value, rest = divmod(value, 36)
        digits = _DIGITS[rest] + digits
    return digits


def check_id(text: str) -> str:
    """Returns `text` if it has the form of an id (25 base-36 digits), else raises InvalidInput. Ids name files: nothing else may reach a path."""
    if not _ID.match(text):
        raise InvalidInput(f"{text[:40]!r} is not an id: 25 digits or lower-case letters.")
    return text


class NetworkMode(Enum):
    OFF = "off"
    ON = "on"


@dataclass(frozen=True, slots=True)
class Egress:
    """Where a sandbox with a network may go, beyond what no sandbox may. IPv4 and IPv6 networks and addresses as they were
    given; `allow` also takes domains (model.domains), where `deny` holds everything. `allow` beats `deny`. What is not the public internet stays closed
    whatever is allowed. Where `deny` holds everything, names that are not allowed are not resolved either: questions carry data out."""

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()


class EndReason(Enum):
    """Why a sandbox ended; kept with its record. Names are stable."""

    USER = "user"
    TIMEOUT = "timeout"
    IDLE = "idle"
    OOM = "oom"
    GUEST_CRASH = "guest_crash"
    VMM_CRASH = "vmm_crash"
    HOST_LOST = "host_lost"
    ERROR = "error"


class Condition(Enum):
    """What is not as it should be with a sandbox that is there all the same; kept with its record, with a line for a human. Names are stable."""

    DISK_NOT_GROWN = "disk_not_grown"
    """Its file system could not be grown to its disk; tried again at each wake."""
    HOST_DISK_FULL = "host_disk_full"
    """The host's disk took its writes no more: it stands still, and goes on when there is room again."""


class MachineState(Enum):
    """The host's view of one machine. The drawing stands in lifecycle.machine."""

    LAUNCHING = "launching"
    READY = "ready"
    QUIESCED = "quiesced"
    PAUSED = "paused"
    STOPPING = "stopping"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Identity:
    """What makes one sandbox differ from its clones. `hostname` is also the guest's; `machine_id` 32 hex digits; `mac` is the same everywhere and is
    not here."""

    sandbox_id: str
    hostname: str
    machine_id: str
    names: dict[str, str] = field(default_factory=dict)
