"""What lies on the host's disk: how much of it, in what state, and what happens when it was damaged or came from elsewhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from vm_world import NewHome, open_engine, run, shell
from writers import install, start_writers, verify

from torpor.apps.engine import Engine
from torpor.host.agent import CreateSpec
from torpor.host.sandbox import Sandbox
from torpor.model.errors import ArtefactError, Corrupt, Incompatible, VmmError
from torpor.model.sandbox import Condition, MachineState
from torpor.model.shapes import Shape
from torpor.ports.store import Artefact
from torpor.snapshot.manifest import seal

pytestmark = [pytest.mark.vm, pytest.mark.root]

SMALL = Shape(1, 256, 1024)
USE_AND_FREE = """
import os
block = os.urandom(1 << 20)
with open("/root/big", "wb") as file:
    for _ in range(200):
        file.write(block)
    os.fsync(file.fileno())
os.unlink("/root/big")
"""


def occupied(*places: Path) -> int:
    """Bytes on the disk below these."""
    return sum(path.lstat().st_blocks * 512 for place in places for path in place.rglob("*"))


@pytest.mark.parametrize("cycles", [8, pytest.param(100, marks=pytest.mark.soak)])
async def test_disk_use_stays_flat(engine: Engine, cycles: int) -> None:
    """A sandbox that writes and frees 200 MB between pauses needs after many cycles at most 1.3 times what it needed after five."""
    home = engine.settings.home
    sandbox = await engine.agent.create(CreateSpec("minimal", SMALL))
    after_five = 0
    for cycle in range(1, cycles + 1):
        result = await run(await sandbox.guest(), "python3", "-c", USE_AND_FREE)
        assert result.ok, result
        await engine.agent.pause(sandbox.id)
        await engine.agent.idle()
        now = occupied(home / "store", home / "sandboxes", home / "staging")
        if cycle == 5:
            after_five = now
        assert cycle <= 5 or now <= 1.3 * after_five
        await engine.agent.resume(sandbox.id)


async def test_a_fork_while_writing_leaves_two_clean_file_systems(engine: Engine) -> None:
    """Each boots from its own disk as the fork left it, in the middle of writing: the journal is replayed, and a full check finds nothing to mend."""
    parent = await engine.agent.create(CreateSpec("minimal", Shape(1, 512, 1024)))
    guest = await parent.guest()
    await install(guest)
    await start_writers(guest)
    counts = await verify(guest)
    (child,) = await engine.agent.fork(parent.id)
    for sandbox in (parent, child):
        later = await verify(await sandbox.guest())
        assert all(later[kind] > counts[kind] for kind in counts)
        await engine.agent.pause(sandbox.id)
        await engine.agent.cold_boot(sandbox.id)
        await check_file_system(sandbox)


async def check_file_system(sandbox: Sandbox) -> None:
    """With the host's own e2fsck, which the templates do not have, carried into memory with its libraries."""
    guest = await sandbox.guest()
    tool = shutil.which("e2fsck", path="/usr/sbin:/sbin:/usr/bin")
    assert tool is not None
    needed = re.findall(r"(/\S+) \(0x", subprocess.run(["ldd", tool], check=True, capture_output=True, text=True).stdout)
    for path in (tool, *needed):
        await guest.write_file(f"/dev/shm/check/{Path(path).name}", Path(path).read_bytes(), mode=0o755)
    await shell(guest, "echo u > /proc/sysrq-trigger; until grep -q ' / ext4 ro' /proc/mounts; do :; done")
    loader = next(Path(path).name for path in needed if "ld-linux" in path)
    checked = await run(guest, f"/dev/shm/check/{loader}", "--library-path", "/dev/shm/check", "/dev/shm/check/e2fsck", "-f", "-n", "/dev/vda")
    assert checked.exited.code == 0, checked
    assert (await shell(guest, "dmesg | grep -ci 'ext4-fs error' || true")).strip() == "0"


# Frozen is frozen


def ways(sandbox: Sandbox) -> dict[tuple[int, int], set[int]]:
    """How the VMM has each of its files open: (device, inode) -> access modes, as the kernel says."""
    assert sandbox.machine is not None
    found: dict[tuple[int, int], set[int]] = {}
    process = Path(f"/proc/{sandbox.machine.region.pid}")
    for entry in (process / "fd").iterdir():
        status = os.stat(entry)
        flags = next(line.split()[1] for line in (process / "fdinfo" / entry.name).read_text().splitlines() if line.startswith("flags"))
        found.setdefault((status.st_dev, status.st_ino), set()).add(int(flags, 8) & os.O_ACCMODE)
    return found


def layers(engine: Engine, sandbox: Sandbox) -> list[tuple[int, int]]:
    """The files of the frozen layers under its live overlay, nearest first."""
    paths = [engine.settings.home / "store" / "disks" / f"{layer}.qcow2" for layer in sandbox.record.disk.layers]
    return [(path.stat().st_dev, path.stat().st_ino) for path in paths]


async def test_a_frozen_layer_is_open_for_writing_nowhere(engine: Engine) -> None:
    """A VMM goes on from an overlay that others stand on now: its own descriptors say that it cannot change it."""
    parent = await engine.agent.create(CreateSpec("minimal", SMALL))
    booted = parent.record.disk.layers  # what the warm image's boot wrote
    for turn in range(2):
        await shell(await parent.guest(), f"echo {turn} > /root/note; sync")
        await engine.agent.snapshot(parent.id, f"turn-{turn}")
    children = await engine.agent.fork(parent.id, 2)
    assert len(parent.record.disk.layers) == len(booted) + 3
    for sandbox in (parent, *children):
        assert sandbox.record.running is not None
        overlay = engine.agent.context.records.directory(sandbox.id) / sandbox.record.running.run_dir / sandbox.record.running.overlay
        modes = ways(sandbox)
        assert modes[overlay.stat().st_dev, overlay.stat().st_ino] == {os.O_RDWR}
        assert [modes[layer] for layer in layers(engine, sandbox)] == [{os.O_RDONLY}] * (len(booted) + 3)
        await shell(await sandbox.guest(), "echo mine > /root/note; sync")


async def test_a_snapshot_is_refused_while_somebody_can_write_to_its_disk(engine: Engine) -> None:
    """As a VMM would that a guest took over: it keeps a descriptor that it was told to close."""
    sandbox = await engine.agent.create(CreateSpec("minimal", SMALL))
    assert sandbox.record.running is not None
    overlay = engine.agent.context.records.directory(sandbox.id) / sandbox.record.running.run_dir / sandbox.record.running.overlay
    with overlay.open("r+b"):
        for attempt in (engine.agent.snapshot(sandbox.id, "named"), engine.agent.fork(sandbox.id, 2)):
            with pytest.raises(VmmError, match="open for writing"):
                await attempt
            assert await shell(await sandbox.guest(), "echo still > /root/note; sync; cat /root/note") == "still\n"
    snapshot = await engine.agent.snapshot(sandbox.id, "named")
    copy = await engine.agent.create(CreateSpec(snapshot.id))
    assert await shell(await copy.guest(), "cat /root/note") == "still\n"


async def test_a_disk_that_cannot_grow_is_on_record_until_it_has_grown(engine: Engine) -> None:
    """Its root is mounted read-only when it wakes to a larger disk: it runs, and says what is wrong; mounted for writing, it has all of it after a resume."""
    small = await engine.agent.create(CreateSpec("minimal", SMALL))
    await shell(await small.guest(), "echo kept > /root/note; sync; echo u > /proc/sysrq-trigger; until grep -q ' / ext4 ro' /proc/mounts; do :; done")
    snapshot = await engine.agent.snapshot(small.id, "read-only")
    large = await engine.agent.create(CreateSpec(snapshot.id, Shape(1, 256, 2048)))
    assert set(large.record.conditions) == {Condition.DISK_NOT_GROWN}
    assert "could not be grown" in large.record.conditions[Condition.DISK_NOT_GROWN]
    size = "python3 -c 'import os; s = os.statvfs(\"/\"); print(s.f_blocks * s.f_frsize >> 20)'"
    assert int(await shell(await large.guest(), f"cat /root/note > /dev/null; {size}")) < 1024
    await engine.agent.pause(large.id)
    await engine.agent.resume(large.id)
    assert set(large.record.conditions) == {Condition.DISK_NOT_GROWN}
    await shell(await large.guest(), "mount -o remount,rw /")
    await engine.agent.pause(large.id)
    await engine.agent.resume(large.id)
    assert large.record.conditions == {}
    assert int(await shell(await large.guest(), size)) > 1800


# Damage


@dataclass(frozen=True)
class Damaged:
    home: Path
    sandbox: str
    artefact: Artefact


def flip(path: Path) -> None:
    """One bit in the middle of what the file really holds."""
    path.chmod(0o644)
    fd = os.open(path, os.O_RDWR)
    at = os.lseek(fd, os.fstat(fd).st_size // 2, os.SEEK_DATA)
    byte = os.pread(fd, 1, at)[0]
    os.pwrite(fd, bytes([byte ^ 1]), at)
    os.close(fd)
    path.chmod(0o444)


PARTS: dict[str, Callable[[Path, Artefact], Path]] = {
    "layer": lambda store, artefact: store / "artefacts" / artefact.id / "layer",
    "state": lambda store, artefact: store / "artefacts" / artefact.id / "state",
    "memory": lambda store, artefact: store / "memory" / f"{artefact.memory_id}.mem",
    "manifest": lambda store, artefact: store / "artefacts" / artefact.id / "manifest.json",
}


@pytest.fixture
async def damaged_home(new_homes: NewHome) -> Damaged:
    """A home of its own, for its warm image is shared with what is damaged."""
    home = new_homes()
    async with open_engine(home, keep=True) as engine:
        sandbox = await engine.agent.create(CreateSpec("minimal", SMALL))
        await shell(await sandbox.guest(), "echo precious > /root/kept; sync")
        return Damaged(home, sandbox.id, await engine.agent.pause(sandbox.id))


@pytest.mark.parametrize("part", PARTS)
async def test_damage_is_found_and_the_files_are_still_reached(damaged_home: Damaged, part: str) -> None:
    flip(PARTS[part](damaged_home.home / "store", damaged_home.artefact))
    async with open_engine(damaged_home.home) as engine:
        await still_reached(engine, damaged_home.sandbox, Corrupt)


async def still_reached(engine: Engine, sandbox_id: str, error: type[ArtefactError], match: str = ".") -> None:
    """The sandbox does not resume, says why, and boots from its own disk."""
    for _ in range(2):
        with pytest.raises(error, match=match):
            await engine.agent.resume(sandbox_id)
        assert engine.agent.get(sandbox_id).record.state is MachineState.PAUSED
    sandbox = await engine.agent.cold_boot(sandbox_id)
    assert await shell(await sandbox.guest(), "cat /root/kept") == "precious\n"
    await engine.agent.pause(sandbox_id)
    await engine.agent.resume(sandbox_id)
    assert await shell(await sandbox.guest(), "cat /root/kept") == "precious\n"


async def test_a_snapshot_of_another_machine_is_refused_by_name(damaged_home: Damaged) -> None:
    manifest = damaged_home.home / "store" / "artefacts" / damaged_home.artefact.id / "manifest.json"
    tree = json.loads(manifest.read_text())
    tree["fingerprint"]["hard"]["cpu_model"] = "another make"
    manifest.chmod(0o644)
    manifest.write_bytes(seal(tree))
    async with open_engine(damaged_home.home) as engine:
        await still_reached(engine, damaged_home.sandbox, Incompatible, "cpu_model another make")
