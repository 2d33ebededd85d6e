"""The seam to virtual machine monitors: probe, launch, adopt; and, on a machine, pause, resume, save, swap the disk, stop, wait, stats, events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from torpor.model.shapes import Shape
from torpor.model.snapshots import MemoryRegion
from torpor.ports.processes import ExitRecord


class Accelerator(Enum):
    KVM = "kvm"
    TCG = "tcg"


@dataclass(frozen=True, slots=True)
class Probe:
    """What this driver can do here. `problems` are lines a human can act on. `fingerprint_hard`/`_soft`: this driver's share of an artefact's fingerprint."""

    kind: str
    version: str
    accelerator: Accelerator
    capabilities: frozenset[str]
    fingerprint_hard: Mapping[str, str]
    fingerprint_soft: Mapping[str, str]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ColdBoot:
    """Boots `kernel` and `initrd` with fresh memory. `memory_file`: a new file of the shape's size that becomes guest RAM, shared and writable, so that
    after `pause` and an fsync it *is* the memory image; None boots on anonymous-like private memory backed by a throw-away file."""

    kernel: Path
    initrd: Path
    command_line: str
    memory_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Restore:
    """Maps `memory_file` privately (it is never written), calls `fill` with the region once RAM exists and before the device state is loaded, then loads
    `state` and runs. `fill` puts changed pages back; None when there are none.

    `about_to_run` is called once, with the agent's socket, after `fill` and right before `state` is loaded. It must not block; a task it starts may connect in
    its first step and write: the guest then finds its channel connected as when it was saved, and the words there when it runs. After a launch that failed
    nobody answers them. None: who connects when launch has returned is as welcome, only the guest is told first that its channel closed and opened."""

    memory_file: Path
    state: Path
    fill: Callable[[MemoryRegion], Awaitable[None]] | None = None
    about_to_run: Callable[[Path], None] | None = None


@dataclass(frozen=True, slots=True)
class DiskSpec:
    """The sandbox's disk: `overlay` is qcow2 and writable, `chain` its backing files from nearest to base (the last raw or qcow2), all in the store."""

    overlay: Path
    chain: tuple[Path, ...]
    base_format: str = "raw"


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """Everything a VMM needs. `run_dir` is the machine's own empty directory, on the store's file system. `agent_disk` is read-only.
    `netns` and `tap_fd` (an open tap descriptor, duplicated by launch; the caller closes its own) come together or not at all
    (network off: the card is there, nothing behind it)."""

    machine_id: str
    shape: Shape
    profile: int
    boot: ColdBoot | Restore
    disk: DiskSpec
    agent_disk: Path
    run_dir: Path
    uid: int | None = None
    netns: Path | None = None
    tap_fd: int | None = None
    leash: int | None = None
    cache_strict: bool = False


@dataclass(frozen=True, slots=True)
class Handle:
    """Everything needed to take a running machine back, JSON-able, complete before launch returns. `version` of the format; `kind` of the driver."""

    version: int
    kind: str
    machine_id: str
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Stats:
    """One reading of a VMM process. Times in seconds of CPU since start, memory in bytes: `private` is what only this VMM holds."""

    cpu_seconds: float
    resident_bytes: int
    private_bytes: int


class VmmEvent(Enum):
    GUEST_SHUTDOWN = "guest_shutdown"
    GUEST_PANIC = "guest_panic"
    MONITOR_LOST = "monitor_lost"
    DISK_FULL = "disk_full"
    """The host's disk took a write of the guest no more: the vCPUs stand still, nothing is lost, and `resume` tries the write again."""


class Machine(Protocol):
    """One running microVM. Only its owner task calls it."""

    @property
    def handle(self) -> Handle: ...

    @property
    def region(self) -> MemoryRegion:
        """Where guest RAM lies in the VMM's memory. Valid until the process ends."""
        ...

    @property
    def agent_socket(self) -> Path:
        """Unix stream socket of the guest channel's host end. One connection at a time; reconnecting is allowed at any time."""
        ...

    async def pause(self) -> None:
        """Stops the vCPUs; returns when they stand still. Idempotent. Raises VmmError, GuestLost (the process ended)."""
        ...

    async def resume(self) -> None:
        """Lets the vCPUs run. Idempotent. Raises as pause."""
        ...

    async def save_state(self, into: Path) -> None:
        """Needs paused. Writes the device state (neither RAM nor disk) to the new file `into`, not fsynced. On error (NoSpace, VmmError) the file is
        removed and the machine stays paused and can resume."""
        ...

    async def swap_disk(self, disk: DiskSpec) -> None:
        """Needs paused. Continues on `disk.overlay`, whose nearest backing file is the present overlay; that one is written no more and flushed to its
        file (not fsynced). On error the old overlay stays in use."""
        ...

    async def overlay(self) -> str:
        """The file name of the overlay that the guest's disk is on, asked of the VMM: an owner that died may have changed it and noted nothing. Raises as
        pause."""
        ...

    async def resize_disk(self, size_bytes: int) -> None:
        """Tells the guest the disk's size, at least the present one."""
        ...

    async def stop(self, grace_seconds: float) -> ExitRecord:
        """Asks the VMM to quit, kills it after `grace_seconds` (0 kills at once); returns when it is reaped. Idempotent; completes even when cancelled once."""
        ...

    async def wait(self) -> ExitRecord:
        """Returns how the VMM ended. Many may wait."""
        ...

    def stats(self) -> Stats:
        """A reading from /proc. Raises GuestLost when the process is gone."""
        ...

    def events(self) -> AsyncIterator[VmmEvent]:
        """What the monitor reports from now on; bounded (oldest dropped), ends when the process ends."""
        ...

    def console_tail(self) -> str:
        """The last bytes (at most 16 KiB) of what the guest's serial console and the VMM itself printed: for error messages."""
        ...

    async def detach(self) -> None:
        """Lets go of the running machine (closes the monitor), for a restart of ours. The microVM runs on and can be adopted."""
        ...


class Vmm(Protocol):
    """A driver. Held to testing.conformance.vmm."""

    async def probe(self) -> Probe:
        """Kind, version, accelerator, capabilities, problems. Time-boxed; the verdict on the accelerator is kept per kernel and VMM version. Raises
        MissingTool."""
        ...

    async def launch(self, spec: LaunchSpec) -> Machine:
        """Boots or restores, as spec.boot says; returns with the vCPUs running and the handle complete. `fill` runs before the device state is loaded.
        Raises VmmError (with the console's tail), NoSpace, NoPermission, MissingTool, TimedOut; on any error, and when cancelled, no process, socket or
        file of the launch stays behind, other than the disk and memory files that the caller named."""
        ...

    async def adopt(self, handle: Handle, run_dir: Path) -> Machine | ExitRecord:
        """The running machine again, or how it ended. Raises Incompatible for a handle of an unknown version: never guesses."""
        ...
