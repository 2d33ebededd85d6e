"""What every part of the host agent works with: the ports it was handed, its policy, its records."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torpor.host.home import Uids
from torpor.host.record import Records
from torpor.host.turns import Turns
from torpor.model.errors import NotFound
from torpor.model.sandbox import base36
from torpor.ports.guest import GuestLink
from torpor.ports.images import Images, Service
from torpor.ports.network import Networks
from torpor.ports.processes import Processes
from torpor.ports.store import Disks, Snapshots
from torpor.ports.vmm import Vmm

PROFILE = 1
"""The hardware profile of everything started now. A profile's device list never changes; a new list is a new number."""


def new_id() -> str:
    """25 base-36 digits of 128 random bits: for sandboxes, artefacts, everything that names a file."""
    return base36(secrets.randbits(128))


@dataclass(frozen=True, slots=True)
class Policy:
    """Bounds and budgets. Seconds and bytes."""

    boot_timeout: float = 30.0
    boot_attempts: int = 4
    answer_timeout: float = 30.0
    adoption_patience: float = 5.0
    silence_pause: float = 1.0
    stop_grace: float = 0.0
    rebase_above: int = 64 << 20
    warm_budget: int = 10 << 30
    warm_disk_mib: int = 4096
    pool_size: int = 0
    pool_memory: int = 2 << 30
    cache_strict: bool = False


@dataclass(frozen=True, slots=True)
class Context:
    """The ports, by name, with the policy. `now` is seconds since the epoch. `scratch`: a directory for cold boots, emptied at each start of the host agent."""

    processes: Processes
    vmm: Vmm
    guests: GuestLink
    disks: Disks
    snapshots: Snapshots
    networks: Networks
    images: Images
    records: Records
    uids: Uids
    scratch: Path
    policy: Policy = field(default_factory=Policy)
    turns: Turns = field(default_factory=Turns)
    now: Callable[[], float] = time.time

    def service(self, template: str) -> Service | None:
        """What runs in every sandbox of a template; nothing where the name is not, or no longer, one of a template."""
        try:
            return self.images.template(template).service
        except NotFound:
            return None
