"""The QEMU driver with real microVMs: the conformance suite, and what a live QEMU's /proc says about its jail."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from vm_world import shell

from torpor.guestlink.link import Link
from torpor.images.local import LocalImages
from torpor.model.errors import GuestLost, InvalidInput
from torpor.model.sandbox import Identity
from torpor.model.shapes import Shape
from torpor.ports.guest import Guest, Wake
from torpor.ports.vmm import ColdBoot, DiskSpec, LaunchSpec, Machine, Restore
from torpor.proc import LocalProcesses
from torpor.proc.keeper import syscalls
from torpor.proc.keeper.cgroups import PARENT, hierarchies
from torpor.testing.conformance import vmm as suite
from torpor.vmm.qemu import QemuVmm
from torpor.vmm.qemu.jail import limits

pytestmark = [pytest.mark.vm, pytest.mark.root]

SHAPE = Shape(1, 256, 1024)
UID = 64001
BOOTS = 4
"""A cold boot under TCG hangs for ever now and then; so many are tried."""
ANSWER_SECONDS = 60.0
IDENTITY = Identity("vmm-test", "vmm-test", "0" * 32)


def make_overlay(at: Path, below: Path, format: str) -> None:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(below), "-F", format, str(at)], check=True)
    os.chown(at, UID, UID)


class QemuRig:
    """Specs over one booted base; each machine gets a run directory of its own. `woken`: the VMMs whose guest has begun its new life, by pid."""

    def __init__(self, home: Path, images_home: Path) -> None:
        self.home = home
        self.images_home = images_home
        self.processes = LocalProcesses(home)
        self.vmm = QemuVmm(self.processes, home)
        images = LocalImages(images_home, self.processes)
        self.boot = images.boot()
        self.template = images.template("minimal").disk
        self.woken: list[int] = []
        self._link = Link()
        self._sleepers: dict[int, subprocess.Popen[bytes]] = {}

    def restarted(self) -> QemuRig:
        """What a daemon that starts anew has: the same files and what it wrote down, another connection to the keeper."""
        rig = QemuRig(self.home, self.images_home)
        rig.woken = self.woken
        return rig

    def spec(self, machine_id: str, boot: ColdBoot | Restore, below: DiskSpec | None) -> LaunchSpec:
        run_dir = self.home / "run" / machine_id
        run_dir.mkdir(parents=True)
        overlay = run_dir / "disk.qcow2"
        if below is None:
            make_overlay(overlay, self.template, "raw")
            disk = DiskSpec(overlay, (self.template,))
        else:
            make_overlay(overlay, below.overlay, "qcow2")
            disk = DiskSpec(overlay, (below.overlay, *below.chain))
        return LaunchSpec(machine_id, SHAPE, 1, boot, disk, self.boot.agent_disk, run_dir, uid=UID, leash=os.getpid())

    async def boot_base(self) -> None:
        """Boots once and takes the base snapshot, as a warm image is made. Raises GuestLost when no attempt answered."""
        for attempt in range(1, BOOTS + 1):
            try:
                await self._boot()
                return
            except GuestLost:
                if attempt == BOOTS:
                    raise
                shutil.rmtree(self.home / "run" / "base")

    async def _boot(self) -> None:
        memory = self.home / "memory"
        memory.write_bytes(b"")
        os.truncate(memory, SHAPE.memory_bytes)
        spec = self.spec("base", ColdBoot(self.boot.kernel, self.boot.initrd, self.boot.command_line, memory), None)
        machine = await self.vmm.launch(spec)
        try:
            guest = await self._link.connect(machine.agent_socket, generation=None, timeout=ANSWER_SECONDS)
            await shell(guest, "true")
            await guest.sync()
            assert (await guest.quiesce()).frozen
            await machine.pause()
            await machine.save_state(self.home / "state")
            await guest.close()
        finally:
            await machine.stop(0)
        memory.chmod(0o444)
        spec.disk.overlay.chmod(0o444)

    @contextlib.asynccontextmanager
    async def guest(self, machine: Machine) -> AsyncIterator[Guest]:
        """A conversation of its own. The first one with a restored machine wakes the guest: until then nothing runs in it."""
        pid = machine.region.pid
        if pid in self.woken:
            guest = await self._link.connect(machine.agent_socket, generation=None, timeout=ANSWER_SECONDS)
        else:
            self.woken.append(pid)
            wake = Wake(len(self.woken), time.time(), secrets.token_bytes(64), IDENTITY)
            guest = await self._link.connect_and_wake(machine.agent_socket, wake, timeout=ANSWER_SECONDS)
        try:
            yield guest
        finally:
            await guest.close()

    def base_disk(self) -> DiskSpec:
        return DiskSpec(self.home / "run" / "base" / "disk.qcow2", (self.template,))

    def restore_spec(self, machine_id: str) -> LaunchSpec:
        return self.spec(machine_id, Restore(self.home / "memory", self.home / "state"), self.base_disk())

    def overlay(self, spec: LaunchSpec, name: str, below: DiskSpec) -> DiskSpec:
        at = spec.run_dir / name
        make_overlay(at, below.overlay, "qcow2")
        return DiskSpec(at, (below.overlay, *below.chain))

    async def poke(self, machine: Machine, text: str) -> None:
        async with self.guest(machine) as guest:
            await shell(guest, f"echo '{text}' > /dev/poked; cp /dev/poked /poked; sync")

    async def peek(self, machine: Machine) -> str:
        async with self.guest(machine) as guest:
            return (await shell(guest, "cat /dev/poked")).strip()

    async def shut_down(self, machine: Machine) -> None:
        async with self.guest(machine) as guest:
            await guest.shutdown()

    def sleeper(self) -> int:
        process = subprocess.Popen(["sleep", "1000"])
        self._sleepers[process.pid] = process
        return process.pid

    def kill_sleeper(self, pid: int) -> None:
        self._sleepers[pid].kill()
        self._sleepers.pop(pid).wait()


@pytest.fixture(scope="module")
def home(images_home: Path) -> Iterator[Path]:
    """A home with a base snapshot, booted once for all tests of this file."""
    path = Path(tempfile.mkdtemp(prefix="torpor-vmm-"))

    async def boot() -> None:
        rig = QemuRig(path, images_home)
        try:
            await rig.boot_base()
        finally:
            rig.processes.close()

    asyncio.run(boot())
    yield path
    shutil.rmtree(path)


@pytest.fixture
async def rig(home: Path, images_home: Path) -> AsyncIterator[QemuRig]:
    rig = QemuRig(home, images_home)
    yield rig
    rig.processes.close()
    for run in (home / "run").iterdir():
        if run.name != "base":
            shutil.rmtree(run)


@pytest.mark.parametrize("check", suite.CHECKS, ids=lambda check: check.__name__)
async def test_conformance(rig: QemuRig, check: object) -> None:
    await check(rig)  # type: ignore[operator]


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


async def test_a_live_qemu_is_confined(rig: QemuRig) -> None:
    spec = rig.restore_spec("jail")
    machine = await rig.vmm.launch(spec)
    pid = machine.region.pid
    status = status_of(pid)
    assert status["Uid"].split() == [str(UID)] * 4
    assert status["Gid"].split() == [str(UID)] * 4
    assert status["Groups"] == ""
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[kind], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    for kind in ("mnt", "net", "ipc", "uts", "pid"):
        assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
    assert int(Path(f"/proc/{pid}/oom_score_adj").read_text()) > int(Path("/proc/self/oom_score_adj").read_text())
    root = Path(f"/proc/{pid}/root")
    own = {path.parts[1] for path in (spec.run_dir, rig.home, rig.images_home)}
    assert {entry.name for entry in root.iterdir()} == {"dev", "etc", "lib", "lib64", "proc", "tmp", "usr"} | own
    assert sorted(entry.name for entry in (root / "dev").iterdir()) == ["null", "urandom", "zero"]
    assert [entry.name for entry in (root / "etc").iterdir()] == ["ld.so.cache"]
    for mount in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
        fields = mount.split()
        writable = "ro" not in fields[5].split(",")
        assert not writable or fields[4] in (str(spec.run_dir), "/tmp", "/proc") or fields[4].startswith("/dev/")
    await machine.stop(0)


async def test_a_live_qemu_is_limited(rig: QemuRig) -> None:
    """Its cgroups hold the limits that the driver asked for, and go with it."""
    machine = await rig.vmm.launch(rig.restore_spec("limits"))
    wanted = limits(SHAPE)
    groups = [path for mount in hierarchies().values() for path in (Path(mount) / PARENT).glob("*-limits")]
    assert all(str(machine.region.pid) in (group / "cgroup.procs").read_text().split() for group in groups)
    values = {}
    for group in groups:
        for file in ("memory.max", "memory.limit_in_bytes", "pids.max", "cpu.max", "cpu.cfs_quota_us"):
            if (group / file).exists():
                values[file.partition(".")[0]] = int((group / file).read_text().split()[0])
    assert values == {"memory": wanted.memory_bytes, "pids": wanted.pids, "cpu": int(wanted.cpu_cores * 100_000)}
    await machine.stop(0)
    assert not any(group.exists() for group in groups)


async def test_a_console_flood_neither_stalls_the_guest_nor_fills_the_disk(rig: QemuRig) -> None:
    spec = rig.restore_spec("flood")
    machine = await rig.vmm.launch(spec)
    async with rig.guest(machine) as guest:
        await shell(guest, "head -c 300000 /dev/zero | tr '\\0' x > /dev/ttyS0; echo done > /dev/ttyS0")
    await rig.poke(machine, "after the flood")
    await machine.stop(10)
    assert (spec.run_dir / "console.log").stat().st_size < 80_000
    assert "xxxx" in machine.console_tail()


async def test_a_machine_outlives_its_daemon(rig: QemuRig) -> None:
    """Another connection to the keeper, as after a restart, adopts it; then the keeper dies too, and it is adopted once more."""
    spec = rig.restore_spec("outlive")
    machine = await rig.vmm.launch(spec)
    await rig.poke(machine, "across restarts")
    handle = suite.json_copy(machine.handle)
    await machine.detach()
    rig.processes.close()

    second = rig.restarted()
    adopted = await second.vmm.adopt(handle, spec.run_dir)
    assert await second.peek(adopted) == "across restarts"
    keeper = int(status_of(machine.region.pid)["PPid"])
    await adopted.detach()
    second.processes.close()
    os.kill(keeper, signal.SIGKILL)

    third = second.restarted()
    again = await third.vmm.adopt(handle, spec.run_dir)
    assert await third.peek(again) == "across restarts"
    record = await again.stop(10)
    assert (record.code, record.signal) == (None, None)
    third.processes.close()


@pytest.fixture
def tap() -> Iterator[tuple[Path, int]]:
    """A network namespace of the test's own with a tap in it: (namespace file, tap descriptor)."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        syscalls.unshare(syscalls.CLONE_NEWNET)
        fd = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", b"tap0", 0x0002 | 0x1000))  # TUNSETIFF, IFF_TAP | IFF_NO_PI
        socket.send_fds(theirs, [b"x"], [fd])
        theirs.recv(1)
        os._exit(0)
    theirs_copy = theirs
    _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    yield Path(f"/proc/{pid}/ns/net"), fds[0]
    os.close(fds[0])
    ours.close()
    theirs_copy.close()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


async def test_device_state_fits_with_and_without_a_tap(rig: QemuRig, tap: tuple[Path, int]) -> None:
    """The base, booted without a tap, starts with one; what is saved with one starts without."""
    spec = rig.restore_spec("tapped")
    machine = await rig.vmm.launch(replace(spec, netns=tap[0], tap_fd=tap[1]))
    assert os.readlink(f"/proc/{machine.region.pid}/ns/net") == os.readlink(tap[0])
    await rig.poke(machine, "with a tap")
    await machine.pause()
    await machine.save_state(spec.run_dir / "state")
    assert isinstance(spec.boot, Restore)
    pages = suite.dirty_pages(machine.region, spec.boot.memory_file)
    await machine.stop(10)
    bare = rig.restore_spec("bare")
    disk = rig.overlay(bare, "resumed.qcow2", spec.disk)
    boot = Restore(spec.boot.memory_file, spec.run_dir / "state", suite.filler(pages))
    again = await rig.vmm.launch(replace(bare, boot=boot, disk=disk))
    assert await rig.peek(again) == "with a tap"
    await again.stop(0)


async def test_a_network_namespace_and_a_tap_come_together(rig: QemuRig, tap: tuple[Path, int]) -> None:
    with pytest.raises(InvalidInput):
        await rig.vmm.launch(replace(rig.restore_spec("half"), netns=tap[0]))
