"""What a jailed QEMU sees: its own files, its libraries and firmware, nothing else. Paths are the same inside and outside."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from torpor.model.shapes import Shape
from torpor.ports.processes import Bind, Jail, Limits
from torpor.ports.vmm import Accelerator, LaunchSpec
from torpor.vmm.qemu.plan import TCG_BUFFER_MIB

FIRMWARE = ("/usr/share/qemu", "/usr/share/seabios", "/usr/lib/ipxe/qemu")
_OVERHEAD = 160 + TCG_BUFFER_MIB << 20
_OVERHEAD_PER_VCPU = 48 << 20
_TASKS = 128
"""QEMU's pool for disk requests alone grows to 64 threads (THREAD_POOL_MAX_THREADS_DEFAULT, include/block/thread-pool.h) when a guest reads and writes much at
once, and a thread that cannot be made ends QEMU with all that the guest held."""


def limits(shape: Shape) -> Limits:
    """Guest RAM and what QEMU itself needs (TCG's buffers, queues of the disks). One core more than vCPUs would let the I/O thread overtake; half is enough."""
    return Limits(shape.memory_bytes + _OVERHEAD + _OVERHEAD_PER_VCPU * shape.vcpus, shape.vcpus + 0.5, _TASKS + shape.vcpus)


def parse_libraries(listing: str) -> tuple[str, ...]:
    """Paths in the output of ldd, such as `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x...)` and the loader's own line."""
    paths = []
    for line in listing.splitlines():
        for word in line.replace("=>", " ").split():
            if word.startswith("/"):
                paths.append(word)
    return tuple(dict.fromkeys(paths))


def program_binds(binary: Path, libraries: Iterable[str]) -> tuple[Bind, ...]:
    """The program, the directories of its libraries, the loader with its cache, the firmware."""
    targets: dict[str, None] = {str(binary): None}
    for library in libraries:
        directory, name = os.path.split(library)
        targets[library if name.startswith("ld-") else directory] = None
    for extra in ("/etc/ld.so.cache", *FIRMWARE):
        if os.path.exists(extra):
            targets[extra] = None
    return tuple(Bind(Path(os.path.realpath(target)), target) for target in targets)


def make_jail(spec: LaunchSpec, accelerator: Accelerator, program: tuple[Bind, ...], files: Iterable[tuple[Path, bool]]) -> Jail:
    """The run directory is visible and writable, so that a new overlay made there later can be opened; everything else is bound file by file."""
    binds = [*program, Bind(spec.run_dir, str(spec.run_dir), writable=True)]
    for path, writable in dict(files).items():
        if not path.is_relative_to(spec.run_dir):
            binds.append(Bind(path, str(path), writable))
    if not spec.disk.overlay.is_relative_to(spec.run_dir):
        binds.append(Bind(spec.disk.overlay, str(spec.disk.overlay), writable=True))
    devices = ("/dev/kvm",) if accelerator is Accelerator.KVM else ()
    return Jail(tuple(binds), limits(spec.shape), uid=spec.uid, gid=spec.uid, netns=spec.netns, devices=devices)
