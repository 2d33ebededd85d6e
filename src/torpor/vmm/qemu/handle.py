"""The QEMU driver's handle: everything needed to take a running machine back, as JSON-able fields. Version 1.

Paths are relative to the machine's run directory, which may be found anywhere by whoever adopts.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from torpor.model.errors import Incompatible
from torpor.model.snapshots import MemoryRegion
from torpor.ports.vmm import Handle

KIND = "qemu"
VERSION = 1

QMP_SOCKET = "qmp.sock"
AGENT_SOCKET = "agent.sock"
EXIT_FILE = "exit.json"
OUTPUT = "console.log"
SCRATCH_MEMORY = "memory"


@dataclass(frozen=True, slots=True)
class QemuFields:
    """`process` is the name given to the processes room; `pid` and `start_time` identify the VMM on this boot; `ram_*` is where guest RAM lies in it."""

    process: str
    pid: int
    start_time: int
    ram_address: int
    ram_size: int
    cache_strict: bool

    @property
    def region(self) -> MemoryRegion:
        return MemoryRegion(self.pid, self.ram_address, self.ram_size)


def to_handle(machine_id: str, fields: QemuFields) -> Handle:
    return Handle(VERSION, KIND, machine_id, asdict(fields))


def from_handle(handle: Handle) -> QemuFields:
    """Raises Incompatible for another driver's handle or another version's: nothing is guessed."""
    wanted, found = {"kind": KIND, "version": str(VERSION)}, {"kind": handle.kind, "version": str(handle.version)}
    if wanted != found:
        different = {key: (found[key], wanted[key]) for key in wanted if found[key] != wanted[key]}
        raise Incompatible(f"The handle of {handle.machine_id} is not of this driver's version.", different)
    names = QemuFields.__dataclass_fields__
    if set(handle.fields) != set(names):
        odd = ", ".join(sorted(set(handle.fields) ^ set(names)))
        raise Incompatible(f"The handle of {handle.machine_id} has other fields than version {VERSION}: {odd}.", {"fields": (odd, "")})
    return QemuFields(**handle.fields)
