"""What QEMU can do here. KVM counts as usable when a tiny program has run under it in time; the verdict is kept in $home/probe.json.

A /dev/kvm may exist, create a machine and still be useless: a nested hypervisor that emulates privileged code instruction by instruction takes minutes where
hardware takes milliseconds. So the program counts down from 20 million in real mode, prints a letter and ends by a triple fault, with seconds to do it in.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torpor.durable import files
from torpor.model.errors import MissingTool, NoPermission, TimedOut
from torpor.ports.processes import Bind, Processes
from torpor.ports.vmm import Accelerator, Probe
from torpor.vmm.qemu import plan, tsc
from torpor.vmm.qemu.jail import parse_libraries, program_binds

OLDEST = (8, 2)
KVM_DEVICE = Path("/dev/kvm")
CAPABILITIES = frozenset({"cold_boot", "restore", "fill", "swap_disk", "resize_disk", "adopt", "network"})
_TRIAL_SECONDS = 3.0
_TCG_SECONDS = 20.0
_COUNT = 20_000_000
_FIRMWARE_BYTES = 65536
_FACTS = {"version", "libraries", "kvm", "tcg", "tsc_khz"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer for ports.vmm, and what a launch needs: the binary, what a jail must show of it, and the frequency of the guests' time stamp counter."""

    probe: Probe
    tsc_khz: int
    binary: Path
    program: tuple[Bind, ...]


class Prober:
    """Asks once per process, and once per kernel, QEMU binary and /dev/kvm ever."""

    def __init__(self, processes: Processes, home: Path, binary: str) -> None:
        self._processes = processes
        self._store = home / "probe.json"
        self._name = binary
        self._verdict: Verdict | None = None
        self._asking = asyncio.Lock()

    async def verdict(self) -> Verdict:
        """Raises MissingTool."""
        async with self._asking:
            if self._verdict is None:
                self._verdict = await self._find()
            return self._verdict

    async def _find(self) -> Verdict:
        found = shutil.which(self._name)
        if found is None:
            raise MissingTool(f"There is no {self._name}.", mend="Install qemu-system-x86.")
        binary = Path(found).resolve()
        key = _key(binary)
        facts = _load(self._store, key)
        if facts is None:
            facts = await self._examine(binary)
            facts["tsc_khz"] = tsc.settle_khz(facts["tsc_khz"], _earlier_khz(self._store))
            _save(self._store, key, facts)
        return _conclude(binary, facts)

    async def _examine(self, binary: Path) -> dict[str, Any]:
        said = (await self._processes.run([str(binary), "--version"], timeout=_TCG_SECONDS)).stdout.decode("utf-8", "replace")
        libraries = (await self._processes.run(["ldd", str(binary)], timeout=_TCG_SECONDS)).stdout.decode("utf-8", "replace")
        match = re.search(r"version (\d+(?:\.\d+)+)", said)
        version = match.group(1) if match else ""
        kvm = _kvm_refused() or await self._trial(binary, Accelerator.KVM)
        tcg = await self._trial(binary, Accelerator.TCG) if kvm else ""
        khz = await tsc.measure_khz() if kvm else tsc.kvm_khz(KVM_DEVICE)
        return {"version": version, "libraries": parse_libraries(libraries), "kvm": kvm, "tcg": tcg, "tsc_khz": khz}

    async def _trial(self, binary: Path, accelerator: Accelerator) -> str:
        """'' when the tiny program ran to its end in time, else why not."""
        with tempfile.TemporaryDirectory(prefix="torpor-probe-") as directory:
            firmware = Path(directory) / "firmware"
            firmware.write_bytes(trial_firmware(_COUNT))
            argv = [
                *(str(binary), "-M", "microvm,acpi=on,ioapic2=off", "-accel", plan.accelerator_option(accelerator), "-cpu", plan.cpu_model(accelerator)),
                *("-m", "16M", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-bios", str(firmware)),
                *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
            ]
            try:
                ended = await self._processes.run(argv, timeout=_TRIAL_SECONDS if accelerator is Accelerator.KVM else _TCG_SECONDS)
            except TimedOut:
                return "a tiny program did not end in time: virtualisation is there but emulated"
            except NoPermission as error:
                return error.message
        if ended.code == 0 and b"K" in ended.stdout:
            return ""
        return ended.stderr.decode("utf-8", "replace").strip()[-500:] or f"QEMU ended with code {ended.code}"


def trial_firmware(count: int) -> bytes:
    """64 KiB that end at the reset vector: count down, write 'K' to the first serial port, triple fault (which ends QEMU under -no-reboot)."""
    image = bytearray(_FIRMWARE_BYTES)
    program = (
        b"\x66\xb9"
        + count.to_bytes(4, "little")  # mov ecx, count
        + b"\x66\x49\x75\xfc"  # again: dec ecx; jnz again
        + b"\xba\xf8\x03\xb0\x4b\xee"  # mov dx, 0x3f8; mov al, 'K'; out dx, al
        + b"\x2e\x0f\x01\x1e\x00\xfe"  # lidt cs:[0xfe00], six zero bytes
        + b"\xcc\xf4\xeb\xfd"  # int3; hlt; jmp back to the hlt
    )
    image[0xFF00 : 0xFF00 + len(program)] = program
    image[0xFFF0:0xFFF3] = b"\xe9\x0d\xff"  # jmp 0xff00
    return bytes(image)


def _kvm_refused() -> str:
    """'' when /dev/kvm can be opened, else why not."""
    try:
        os.close(os.open(KVM_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return "there is no /dev/kvm"
    except OSError as error:
        return f"/dev/kvm: {error.strerror}"
    return ""


def _key(binary: Path) -> dict[str, str]:
    status = binary.stat()
    try:
        kvm = KVM_DEVICE.stat()
        device = f"{kvm.st_rdev}:{kvm.st_mode}:{kvm.st_uid}:{kvm.st_gid}:{os.geteuid()}"
    except FileNotFoundError:
        device = ""
    release = os.uname()
    return {
        "kernel": f"{release.release} {release.version}",
        "binary": f"{binary}:{status.st_size}:{status.st_mtime_ns}",
        "kvm": device,
        "trial": hashlib.sha256(trial_firmware(_COUNT) + plan.TCG_CPU.encode() + plan.KVM_CPU.encode()).hexdigest()[:16],
    }


def _read(store: Path) -> dict[str, Any]:
    """A damaged or foreign file counts as none: it only saves time."""
    try:
        kept = json.loads(store.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    if not isinstance(kept, dict) or not isinstance(kept.get("facts"), dict) or kept["facts"].keys() != _FACTS:
        return {}
    return kept


def _load(store: Path, key: dict[str, str]) -> dict[str, Any] | None:
    kept = _read(store)
    return kept["facts"] if kept.get("key") == key else None


def _earlier_khz(store: Path) -> int:
    kept = _read(store)
    return int(kept["facts"]["tsc_khz"]) if kept else 0


def _save(store: Path, key: dict[str, str], facts: dict[str, Any]) -> None:
    temporary = store.with_suffix(".new")
    with files.disk_errors("keeping what is known of the VMM here"):
        temporary.write_text(json.dumps({"key": key, "facts": facts}, indent=1))
        os.replace(temporary, store)


def _conclude(binary: Path, facts: dict[str, Any]) -> Verdict:
    accelerator = Accelerator.TCG if facts["kvm"] else Accelerator.KVM
    problems = []
    if tuple(int(part) for part in facts["version"].split(".")[:2]) < OLDEST:
        raise MissingTool(f"QEMU {facts['version'] or 'of an unknown version'} is too old.", mend=f"Install QEMU {OLDEST[0]}.{OLDEST[1]} or newer.")
    if facts["tcg"]:
        raise MissingTool(f"QEMU runs neither under KVM ({facts['kvm']}) nor by itself ({facts['tcg']}).", mend="Install QEMU 8.2 or newer.")
    if facts["kvm"]:
        problems.append(f"KVM is not usable ({facts['kvm']}); microVMs are emulated, which is slower.")
    hard = {"vmm": "qemu", "profile": str(plan.PROFILE), "accelerator": accelerator.value, "cpu": _cpu_fingerprint(accelerator)}
    hard["tsc_mhz"] = str(round(facts["tsc_khz"] / 1000))
    soft = {"qemu": facts["version"]}
    probe = Probe("qemu", facts["version"], accelerator, CAPABILITIES, hard, soft, tuple(problems))
    return Verdict(probe, facts["tsc_khz"], binary, program_binds(binary, facts["libraries"]))


def _cpu_fingerprint(accelerator: Accelerator) -> str:
    """Under TCG the model names every feature; under KVM it is the host's, so its flags belong to it."""
    text = plan.cpu_model(accelerator)
    if accelerator is Accelerator.KVM:
        cpuinfo = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
        kept = [line for line in cpuinfo.splitlines() if line.split("\t")[0].strip() in ("vendor_id", "cpu family", "model", "flags")]
        text += "\n".join(kept)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
