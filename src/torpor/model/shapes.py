"""Shapes: how many vCPUs, how much memory, how large a disk. Other wishes are rounded up to a shape, and the answer says so."""

from __future__ import annotations

from dataclasses import dataclass

from torpor.model.errors import InvalidInput

VCPUS = (1, 2, 4, 8)
MIN_MEMORY_MIB = 256
MEMORY_STEP_MIB = 512
MAX_MEMORY_MIB = 65536
MIN_DISK_MIB = 1024
DISK_STEP_MIB = 1024
MAX_DISK_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """One allowed combination. Memory and disk in MiB. Construct through `fit` unless the numbers are known to be allowed."""

    vcpus: int = 1
    memory_mib: int = 512
    disk_mib: int = 4096

    def __post_init__(self) -> None:
        if self.vcpus not in VCPUS:
            raise InvalidInput(f"{self.vcpus} vCPUs is no shape; allowed are {', '.join(map(str, VCPUS))}.")
        memory_fits = self.memory_mib == MIN_MEMORY_MIB or self.memory_mib % MEMORY_STEP_MIB == 0
        if not memory_fits or not MIN_MEMORY_MIB <= self.memory_mib <= MAX_MEMORY_MIB:
            raise InvalidInput(
                f"{self.memory_mib} MiB of memory is no shape; allowed are {MIN_MEMORY_MIB} and multiples of {MEMORY_STEP_MIB} up to {MAX_MEMORY_MIB}."
            )
        if not MIN_DISK_MIB <= self.disk_mib <= MAX_DISK_MIB:
            raise InvalidInput(f"{self.disk_mib} MiB of disk is no shape; allowed are {MIN_DISK_MIB} to {MAX_DISK_MIB}.")

    @property
    def memory_bytes(self) -> int:
        return self.memory_mib << 20

    @property
    def disk_bytes(self) -> int:
        return self.disk_mib << 20

    def __str__(self) -> str:
        return f"{self.vcpus} vCPU, {self.memory_mib} MiB memory, {self.disk_mib} MiB disk"

    @classmethod
    def fit(cls, vcpus: int = 1, memory_mib: int = 512, disk_mib: int = 4096) -> Shape:
        """The smallest shape that holds the wish. Raises InvalidInput below 1 or above the largest shape."""
        for name, value, top in (
            ("vCPUs", vcpus, VCPUS[-1]),
            ("MiB of memory", memory_mib, MAX_MEMORY_MIB),
            ("MiB of disk", disk_mib, MAX_DISK_MIB),
        ):
            if not 1 <= value <= top:
                raise InvalidInput(f"{value} {name} is out of range; allowed are 1 to {top}.")
        cpus = next(n for n in VCPUS if n >= vcpus)
        memory = MIN_MEMORY_MIB if memory_mib <= MIN_MEMORY_MIB else -(-memory_mib // MEMORY_STEP_MIB) * MEMORY_STEP_MIB
        disk = max(MIN_DISK_MIB, -(-disk_mib // DISK_STEP_MIB) * DISK_STEP_MIB)
        return cls(cpus, memory, disk)
