"""What this machine has, what of it is free, and when it must take nothing new."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from torpor.ports.hosts import Capacity

_MEMINFO = Path("/proc/meminfo")
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True, slots=True)
class Marks:
    """Low-water marks in bytes. Below `warn_disk` a host says so; below `refuse_disk` or `refuse_memory` it takes nothing new. It never deletes for them."""

    warn_disk: int = 10 << 30
    refuse_disk: int = 2 << 30
    refuse_memory: int = 256 << 20


def capacity(home: Path, marks: Marks) -> Capacity:
    """Read now. vCPUs are those this process may run on; memory is the machine's, or the container's limit where that is less."""
    disk = shutil.disk_usage(home)
    total, free = _memory()
    accepts, problem = True, ""
    if disk.free < marks.refuse_disk:
        accepts, problem = False, f"{disk.free >> 20} MiB are free on the disk of the home; below {marks.refuse_disk >> 20} nothing new is started."
    elif free < marks.refuse_memory:
        accepts, problem = False, f"{free >> 20} MiB of memory are free; below {marks.refuse_memory >> 20} nothing new is started."
    elif disk.free < marks.warn_disk:
        problem = f"{disk.free >> 20} MiB are free on the disk of the home; below {marks.refuse_disk >> 20} nothing new will be started."
    return Capacity(len(os.sched_getaffinity(0)), total >> 20, disk.total, free >> 20, disk.free, accepts, problem)


def _memory() -> tuple[int, int]:
    """(total, available) in bytes."""
    lines = (line.split() for line in _MEMINFO.read_text().splitlines())
    found = {name.rstrip(":"): int(value) << 10 for name, value, *_ in lines}
    total = found["MemTotal"]
    try:
        limit = _CGROUP_LIMIT.read_text().strip()
    except OSError:
        limit = "max"
    return (min(total, int(limit)) if limit.isdigit() else total), found["MemAvailable"]
