"""Small parts of the QEMU driver: handles, regions, jails, probe."""

from __future__ import annotations

import json
import mmap
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.model.errors import GuestLost, Incompatible, MissingTool, TimedOut, VmmError
from torpor.model.shapes import Shape
from torpor.ports.processes import Completed
from torpor.ports.vmm import Accelerator, DiskSpec, LaunchSpec, Restore
from torpor.vmm.qemu import handle as handles
from torpor.vmm.qemu.jail import limits, make_jail, parse_libraries, program_binds
from torpor.vmm.qemu.probe import Prober, trial_firmware
from torpor.vmm.qemu.region import find_region, read_stats
from torpor.vmm.qemu.tsc import measure_khz, settle_khz

FIELDS = handles.QemuFields("m1", 12, 34, 0x7F0000000000, 1 << 29, False)


def test_a_handle_survives_json() -> None:
    handle = handles.to_handle("m1", FIELDS)
    again = replace(handle, fields=json.loads(json.dumps(handle.fields)))
    assert handles.from_handle(again) == FIELDS
    assert FIELDS.region.size == 1 << 29


@pytest.mark.parametrize("change", [{"version": 2}, {"kind": "firecracker"}, {"fields": {}}])
def test_a_foreign_handle_is_not_guessed(change: dict[str, object]) -> None:
    with pytest.raises(Incompatible):
        handles.from_handle(replace(handles.to_handle("m1", FIELDS), **change))  # type: ignore[arg-type]


def test_a_region_is_found_by_inode_even_when_split(tmp_path: Path) -> None:
    file = tmp_path / "memory"
    size = 16 * mmap.PAGESIZE
    file.write_bytes(bytes(size))
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as mapping:
        mapping[: 4 * mmap.PAGESIZE] = b"x" * 4 * mmap.PAGESIZE
        mapping.madvise(mmap.MADV_DONTDUMP, 0, 4 * mmap.PAGESIZE)  # splits the mapping in /proc/PID/maps
        region = find_region(os.getpid(), file, size)
        with open(f"/proc/{os.getpid()}/mem", "rb") as memory:
            memory.seek(region.address)
            assert memory.read(2) == b"xx"
        with pytest.raises(VmmError):
            find_region(os.getpid(), file, size * 2)


def test_a_process_that_is_gone_is_lost(tmp_path: Path) -> None:
    (tmp_path / "memory").touch()
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    with pytest.raises(GuestLost):
        find_region(pid, tmp_path / "memory", 4096)
    with pytest.raises(GuestLost):
        read_stats(pid)


def test_stats_of_a_live_process() -> None:
    stats = read_stats(os.getpid())
    assert stats.resident_bytes >= stats.private_bytes > 1 << 20
    assert stats.cpu_seconds > 0


def test_libraries_in_a_listing() -> None:
    listing = "\tlinux-vdso.so.1 (0x1)\n\tlibz.so.1 => /lib/x/libz.so.1 (0x2)\n\tlibnone.so => not found\n\t/lib64/ld-linux-x86-64.so.2 (0x3)\n"
    assert parse_libraries(listing) == ("/lib/x/libz.so.1", "/lib64/ld-linux-x86-64.so.2")


def test_the_loader_is_bound_alone_and_libraries_by_directory() -> None:
    targets = [bind.target for bind in program_binds(Path("/usr/bin/true"), ("/lib/x/libz.so.1", "/lib/x/liba.so.1", "/lib64/ld-linux-x86-64.so.2"))]
    assert targets[:3] == ["/usr/bin/true", "/lib/x", "/lib64/ld-linux-x86-64.so.2"]


def test_a_jail_shows_each_file_once_and_writes_only_where_it_must() -> None:
    disk = DiskSpec(Path("/run/m/disk"), (Path("/store/base"),))
    spec = LaunchSpec("m", Shape(), 1, Restore(Path("/store/memory"), Path("/store/state")), disk, Path("/store/agent"), Path("/run/m"), uid=7)
    files = [(Path("/store/memory"), False), (Path("/store/agent"), False), (Path("/store/base"), False), (Path("/run/m/scratch"), True)]
    jail = make_jail(spec, Accelerator.KVM, (), files)
    assert [(bind.target, bind.writable) for bind in jail.binds] == [
        ("/run/m", True),
        ("/store/memory", False),
        ("/store/agent", False),
        ("/store/base", False),
    ]
    assert (jail.uid, jail.devices) == (7, ("/dev/kvm",))
    assert jail.limits == limits(Shape())
    assert jail.limits.memory_bytes > Shape().memory_bytes


@given(st.integers(1, 2**32 - 1))
def test_the_trial_program_is_a_firmware_image(count: int) -> None:
    image = trial_firmware(count)
    assert len(image) == 65536
    assert image[0xFFF0:0xFFF3] == b"\xe9\x0d\xff"
    assert int.from_bytes(image[0xFF02:0xFF06], "little") == count


async def test_the_counter_frequency_is_steady() -> None:
    first, second = await measure_khz(), await measure_khz()
    assert settle_khz(second, first) == first
    assert settle_khz(2_000_000, 2_600_000) == 2_000_000


class ScriptedProcesses:
    """Answers `run` as a QEMU would: `kvm` None hangs."""

    def __init__(self, version: str, kvm: Completed | None) -> None:
        self.version = version
        self.kvm = kvm
        self.calls: list[list[str]] = []

    async def run(self, argv: list[str], *, timeout: float, **_: object) -> Completed:
        self.calls.append(list(argv))
        if "--version" in argv:
            return Completed(0, f"QEMU emulator version {self.version} (Debian)".encode(), b"")
        if argv[0] == "ldd":
            return Completed(0, b"libc.so.6 => /lib/x/libc.so.6 (0x1)", b"")
        if "kvm" in argv:
            if self.kvm is None:
                raise TimedOut("too slow")
            return self.kvm
        return Completed(0, b"K", b"")


@pytest.fixture
def binary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A program to be found, and a /dev/kvm that opens."""
    program = tmp_path / "qemu"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setattr("torpor.vmm.qemu.probe.KVM_DEVICE", Path("/dev/null"))
    return str(program)


@pytest.mark.parametrize("answer", [None, Completed(1, b"", b"no"), Completed(0, b"", b"")], ids=["hangs", "fails", "prints nothing"])
async def test_a_useless_kvm_is_found_out_once(tmp_path: Path, binary: str, answer: Completed | None) -> None:
    processes = ScriptedProcesses("10.0.2", answer)
    probe = (await Prober(processes, tmp_path, binary).verdict()).probe  # type: ignore[arg-type]
    assert probe.accelerator is Accelerator.TCG
    assert "KVM is not usable" in probe.problems[0]
    asked = len(processes.calls)
    again = (await Prober(processes, tmp_path, binary).verdict()).probe  # type: ignore[arg-type]
    assert again == probe
    assert len(processes.calls) == asked


async def test_a_changed_binary_is_examined_again(tmp_path: Path, binary: str) -> None:
    first = ScriptedProcesses("10.0.2", None)
    await Prober(first, tmp_path, binary).verdict()  # type: ignore[arg-type]
    Path(binary).write_text("#!/bin/sh\n# another one\n")
    second = ScriptedProcesses("10.1.0", None)
    assert (await Prober(second, tmp_path, binary).verdict()).probe.version == "10.1.0"  # type: ignore[arg-type]


async def test_a_damaged_verdict_is_made_anew(tmp_path: Path, binary: str) -> None:
    (tmp_path / "probe.json").write_text('{"key": ')
    assert (await Prober(ScriptedProcesses("9.2.1", None), tmp_path, binary).verdict()).probe.version == "9.2.1"  # type: ignore[arg-type]


async def test_too_old_or_not_there(tmp_path: Path, binary: str) -> None:
    with pytest.raises(MissingTool, match="too old"):
        await Prober(ScriptedProcesses("7.2.0", None), tmp_path, binary).verdict()  # type: ignore[arg-type]
    with pytest.raises(MissingTool, match="no such-qemu"):
        await Prober(ScriptedProcesses("10.0", None), tmp_path, "such-qemu").verdict()  # type: ignore[arg-type]
