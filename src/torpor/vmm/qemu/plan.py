"""From a launch spec to QEMU's command line. Pure: no file is looked at, nothing is opened.

Hardware profile 1. Its device list is fixed for ever, because a snapshot only fits the devices it was taken with:

    microvm, one IO-APIC, ACPI, RTC, PIT, PIC      serial console on standard output (drained by the keeper)
    virtio-blk x 4    vda the sandbox's disk, vdb the agent disk (read-only), vdc and vdd spare and empty
    virtio-serial     one port named torpor.agent
    virtio-net        always there, with or without a tap behind it; offloads off on both sides, so that its state is the same
    virtio-rng        fed from /dev/urandom

Traps this file knows: QEMU hands out virtio-mmio slots from the last to the first, the guest names its disks in slot order; a backing file's name in a qcow2
header is never followed; memory of a template is mapped readonly=on,rom=off, so that nothing in the guest or in QEMU can change it for the others.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torpor.model.errors import InvalidInput
from torpor.ports.vmm import Accelerator, ColdBoot, DiskSpec, LaunchSpec

PROFILE = 1
QMP_FD = 3
AGENT_FD = 4
TAP_FD = 5
STATE_FD = 6
STATE_URI = "file:/dev/fdset/2"
"""How QEMU names the device state it was born with, descriptor STATE_FD."""
MAC = "02:74:72:70:00:01"
AGENT_PORT = "torpor.agent"
TCG_BUFFER_MIB = 128
"""Most that one VMM keeps of translated code. Memory is used as code is translated; a full buffer is thrown away whole, and everything is translated again: a
shell, a Python and a git do not fit into 32 MiB together."""
SPARE_DISK_BYTES = 1 << 20
RAM_ID = "ram"
OVERLAY = "root-"
ROOT_DEVICE = "disk-root"

# Under TCG every feature is emulated, so the set is ours to fix: what TCG of QEMU 8.2, the oldest we support, has, and a guest's user code profits from.
# Not erms: with it the kernel and libc copy and clear by REP MOVSB and STOSB, which TCG does byte by byte: copies take three times as long, a command a third
# longer. `enforce` makes a QEMU that lacks one refuse to start instead of showing the guest another CPU.
_TCG_FEATURES = (
    "cx16 lahf-lm popcnt aes pclmulqdq movbe rdrand rdseed abm bmi1 bmi2 avx avx2 fma f16c xsave xsaveopt xgetbv1 fsgsbase "
    "smep smap adx sha-ni clflushopt clwb rdtscp pdpe1gb 3dnowprefetch umip arat vaes"
)
TCG_CPU = "Nehalem-v1," + ",".join(f"{name}=on" for name in _TCG_FEATURES.split()) + ",enforce=on"
KVM_CPU = "host,migratable=on"


@dataclass(frozen=True, slots=True)
class Plan:
    """`argv` for QEMU; descriptors QMP_FD and AGENT_FD, TAP_FD with a tap and STATE_FD for a restore must be there. `files`: what QEMU opens, and whether it
    writes there."""

    argv: tuple[str, ...]
    files: tuple[tuple[Path, bool], ...]


def cpu_model(accelerator: Accelerator) -> str:
    return TCG_CPU if accelerator is Accelerator.TCG else KVM_CPU


def accelerator_option(accelerator: Accelerator) -> str:
    return f"tcg,thread=multi,tb-size={TCG_BUFFER_MIB}" if accelerator is Accelerator.TCG else "kvm"


def guest_command_line(text: str, accelerator: Accelerator, tsc_khz: int) -> str:
    """Under TCG with the frequency of the time stamp counter, so that the guest's kernel need not find it (see tsc.py); KVM tells its guests itself."""
    return f"{text} tsc_early_khz={tsc_khz}" if accelerator is Accelerator.TCG else text


def make_plan(spec: LaunchSpec, binary: Path, accelerator: Accelerator, memory_file: Path, tsc_khz: int) -> Plan:
    """`memory_file`: guest RAM; for a cold boot written and shared, else mapped privately. Raises InvalidInput for an unknown profile."""
    if spec.profile != PROFILE:
        raise InvalidInput(f"Hardware profile {spec.profile} is unknown; this version knows {PROFILE}.")
    cold = isinstance(spec.boot, ColdBoot)
    argv = [str(binary), *_machine(spec, accelerator), *_memory(spec.shape.memory_bytes, memory_file, cold)]
    files: list[tuple[Path, bool]] = [(memory_file, cold), (spec.agent_disk, False), *((layer, False) for layer in spec.disk.chain)]
    if isinstance(spec.boot, ColdBoot):
        command_line = guest_command_line(spec.boot.command_line, accelerator, tsc_khz)
        argv += ["-kernel", str(spec.boot.kernel), "-initrd", str(spec.boot.initrd), "-append", command_line]
        files += [(spec.boot.kernel, False), (spec.boot.initrd, False)]
    else:
        argv += ["-add-fd", f"fd={STATE_FD},set=2", "-incoming", "defer"]
    argv += [*_disks(spec), *_channels(), *_network(spec.tap_fd is not None), *_entropy()]
    return Plan(tuple(argv), tuple(files))


def _machine(spec: LaunchSpec, accelerator: Accelerator) -> Sequence[str]:
    machine = f"microvm,memory-backend={RAM_ID},acpi=on,ioapic2=off,pic=on,pit=on,rtc=on,isa-serial=on,auto-kernel-cmdline=off,suppress-vmdesc=on"
    return (
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-vga", "none"),
        *("-M", machine),
        *("-accel", accelerator_option(accelerator)),
        *("-cpu", cpu_model(accelerator)),
        *("-smp", str(spec.shape.vcpus)),
        *("-m", f"{spec.shape.memory_mib}M"),
        *("-global", "migration.send-configuration=off"),
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
    )


def _memory(size: int, file: Path, cold: bool) -> Sequence[str]:
    backend: dict[str, Any] = {"qom-type": "memory-backend-file", "id": RAM_ID, "size": size, "mem-path": str(file), "share": cold}
    if not cold:
        backend |= {"readonly": True, "rom": "off"}
    return ("-object", _json(backend))


def _disks(spec: LaunchSpec) -> Sequence[str]:
    argv: list[str] = []
    nodes = (*chain_nodes(spec.disk), *overlay_nodes(spec.disk.overlay, 0, spec.cache_strict, top_of_chain(spec.disk)))
    for node in nodes:
        argv += ["-blockdev", _json(node)]
    agent: dict[str, Any] = {"driver": "raw", "node-name": "agent", "read-only": True, "file": _file(spec.agent_disk, writable=False)}
    argv += ["-blockdev", _json(agent)]
    for spare in ("spare-0", "spare-1"):
        argv += ["-blockdev", _json({"driver": "null-co", "node-name": spare, "size": SPARE_DISK_BYTES, "read-zeroes": True})]
    for identifier, top in ((ROOT_DEVICE, overlay_name(0)), ("disk-agent", "agent"), ("disk-spare-0", "spare-0"), ("disk-spare-1", "spare-1")):
        argv += ["-device", f"virtio-blk-device,id={identifier},drive={top},serial={identifier},discard=on"]
    return argv


def _channels() -> Sequence[str]:
    return (
        *("-chardev", f"socket,id=monitor,fd={QMP_FD},server=on,wait=off", "-mon", "chardev=monitor,mode=control"),
        *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
        *("-device", "virtio-serial-device,max_ports=2"),
        *("-chardev", f"socket,id=agent,fd={AGENT_FD},server=on,wait=off"),
        *("-device", f"virtserialport,chardev=agent,name={AGENT_PORT},nr=1"),
    )


def _network(tap: bool) -> Sequence[str]:
    # Every feature that depends on the other end is off, with a tap or without, so that the guest negotiates the same in both.
    off = "csum gso guest_csum guest_tso4 guest_tso6 guest_ecn guest_ufo guest_uso4 guest_uso6 host_tso4 host_tso6 host_ecn host_ufo host_uso mrg_rxbuf mq"
    features = ",".join(f"{name}=off" for name in off.split())
    backend = ("-netdev", f"tap,id=net,fd={TAP_FD},vhost=off") if tap else ()
    return (*backend, "-device", f"virtio-net-device,mac={MAC},{features}" + (",netdev=net" if tap else ""))


def _entropy() -> Sequence[str]:
    return ("-object", "rng-random,id=entropy,filename=/dev/urandom", "-device", "virtio-rng-device,rng=entropy")


# --- block nodes


def overlay_name(number: int) -> str:
    return f"{OVERLAY}{number}"


def chain_name(depth: int) -> str:
    """`depth` 0 is the layer right below the overlay."""
    return f"layer-{depth}"


def top_of_chain(disk: DiskSpec) -> str | None:
    return chain_name(0) if disk.chain else None


def chain_nodes(disk: DiskSpec) -> list[dict[str, Any]]:
    """The backing files, base first, each with an explicit format and an explicit backing node."""
    nodes: list[dict[str, Any]] = []
    below: str | None = None
    for depth in reversed(range(len(disk.chain))):
        is_base = depth == len(disk.chain) - 1
        driver = disk.base_format if is_base else "qcow2"
        node: dict[str, Any] = {"driver": driver, "node-name": chain_name(depth), "read-only": True, "file": _file(disk.chain[depth], writable=False)}
        if driver == "qcow2":
            node["backing"] = below
        nodes.append(node)
        below = chain_name(depth)
    return nodes


def overlay_nodes(overlay: Path, number: int, strict: bool, backing: str | None) -> list[dict[str, Any]]:
    """The writable top. `strict`: the guest's flushes reach the disk; else they end in the host's page cache. `backing` None: attached by a snapshot later."""
    cache = {"direct": False, "no-flush": not strict}
    file = _file(overlay, writable=True) | {"cache": cache}
    return [
        {
            "driver": "qcow2",
            "node-name": overlay_name(number),
            "read-only": False,
            "file": file,
            "backing": backing,
            "cache": cache,
            "discard": "unmap",
            "detect-zeroes": "unmap",
        }
    ]


def _file(path: Path, *, writable: bool) -> dict[str, Any]:
    """An overlay is open for writing only while it is the top: one that says otherwise is opened anew, by a name that is gone by then, at the next snapshot."""
    how: dict[str, Any] = {"auto-read-only": True, "discard": "unmap"} if writable else {"read-only": True}
    return {"driver": "file", "filename": str(path), "locking": "off"} | how


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))
