"""The machine a run was made on, and readings of processes from /proc."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass

_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Machine:
    """Goes into every result. `load` is the one-minute load average before the run: above the number of cores, others were at work too."""

    processor: str
    cores: int
    memory_gib: float
    kernel: str
    accelerator: str
    vmm: str
    python: str
    date: str
    load: float

    @property
    def kind(self) -> str:
        """Short, for file names."""
        return f"{platform.machine()}-{self.cores}c-{self.accelerator}"

    def line(self) -> str:
        return (
            f"{self.processor}, {self.cores} cores, {self.memory_gib:.0f} GiB, Linux {self.kernel}, {self.vmm}, {self.accelerator}, "
            f"Python {self.python}, load {self.load:.1f} at the start"
        )

    def fields(self) -> dict[str, object]:
        return asdict(self)


def look(accelerator: str, vmm: str, date: str) -> Machine:
    """`accelerator` and `vmm` as the engine's probe has them; `date` as YYYY-MM-DD."""
    with open("/proc/cpuinfo") as cpuinfo:
        processor = next((line.split(":", 1)[1].strip() for line in cpuinfo if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Machine(processor, os.cpu_count() or 1, memory, platform.release(), accelerator, vmm, platform.python_version(), date, os.getloadavg()[0])


def cpu_seconds(pid: int) -> float:
    """CPU time of a process since its start, its own threads only."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def private_bytes(pid: int) -> int:
    """Memory that would be free without this process: what it alone has mapped."""
    total = 0
    with open(f"/proc/{pid}/smaps_rollup") as rollup:
        for line in rollup:
            if line.startswith(("Private_Clean:", "Private_Dirty:")):
                total += int(line.split()[1]) * 1024
    return total


def parent(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as stat:
        return int(stat.read().rpartition(")")[2].split()[1])
