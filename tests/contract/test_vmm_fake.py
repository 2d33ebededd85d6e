"""The fake VMM against the same suite as QEMU, and its faults."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from torpor.model.errors import GuestLost, NoSpace, VmmError
from torpor.model.shapes import Shape
from torpor.ports.vmm import ColdBoot, DiskSpec, LaunchSpec, Machine, Restore, VmmEvent
from torpor.proc import LocalProcesses
from torpor.testing.conformance import vmm as suite
from torpor.testing.fake_vmm import FakeVmm, Fault

SHAPE = Shape(1, 256, 1024)


async def ask(machine: Machine, **request: object) -> dict[str, object]:
    reader, writer = await asyncio.open_unix_connection(str(machine.agent_socket))
    writer.write(json.dumps(request).encode() + b"\n")
    answer = json.loads(await reader.readline() or b"{}")
    writer.close()
    assert isinstance(answer, dict)
    return answer


class FakeRig:
    """Overlays are plain files: the fake only appends to them."""

    def __init__(self, home: Path, processes: LocalProcesses) -> None:
        self.home = home
        self.vmm = FakeVmm(processes)
        self._sleepers: dict[int, subprocess.Popen[bytes]] = {}
        (home / "memory").touch()
        os.truncate(home / "memory", SHAPE.memory_bytes)
        (home / "memory").chmod(0o444)
        (home / "state").write_text('{"word": "torpor fake device state"}')

    def restore_spec(self, machine_id: str) -> LaunchSpec:
        run_dir = self.home / machine_id
        run_dir.mkdir()
        overlay = run_dir / "disk.qcow2"
        overlay.touch()
        boot = Restore(self.home / "memory", self.home / "state")
        return LaunchSpec(machine_id, SHAPE, 1, boot, DiskSpec(overlay, ()), self.home / "state", run_dir)

    def overlay(self, spec: LaunchSpec, name: str, below: DiskSpec) -> DiskSpec:
        at = spec.run_dir / name
        at.touch()
        return DiskSpec(at, (below.overlay, *below.chain))

    async def poke(self, machine: Machine, text: str) -> None:
        assert (await ask(machine, poke=text))["text"] == text

    async def peek(self, machine: Machine) -> str:
        return str((await ask(machine, peek=True))["text"])

    async def shut_down(self, machine: Machine) -> None:
        await ask(machine, off=True)

    def sleeper(self) -> int:
        process = subprocess.Popen(["sleep", "1000"])
        self._sleepers[process.pid] = process
        return process.pid

    def kill_sleeper(self, pid: int) -> None:
        self._sleepers[pid].kill()
        self._sleepers.pop(pid).wait()


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[FakeRig]:
    processes = LocalProcesses(tmp_path)
    yield FakeRig(tmp_path, processes)
    processes.close()


@pytest.mark.parametrize("check", suite.CHECKS, ids=lambda check: check.__name__)
async def test_conformance(rig: FakeRig, check: object) -> None:
    await check(rig)  # type: ignore[operator]


async def test_a_cold_boot_writes_its_memory_file(rig: FakeRig) -> None:
    spec = rig.restore_spec("cold")
    memory = rig.home / "fresh-memory"
    memory.touch()
    os.truncate(memory, SHAPE.memory_bytes)
    cold = ColdBoot(rig.home / "state", rig.home / "state", "", memory)
    machine = await rig.vmm.launch(LaunchSpec("cold", SHAPE, 1, cold, spec.disk, spec.agent_disk, spec.run_dir))
    await rig.poke(machine, "shared")
    await machine.stop(5)
    with memory.open("rb") as file:
        assert file.read(6) == b"shared"


@pytest.mark.parametrize("fault", [Fault.LAUNCH_REFUSED, Fault.LAUNCH_DIES])
async def test_a_launch_that_fails_leaves_nothing(rig: FakeRig, fault: Fault) -> None:
    rig.vmm.faults.add(fault)
    spec = rig.restore_spec("fails")
    with pytest.raises(VmmError):
        await rig.vmm.launch(spec)
    assert suite.leftovers(spec) == []
    assert suite.processes_of(spec) == []


async def test_it_refuses_what_it_is_told_to(rig: FakeRig) -> None:
    spec = rig.restore_spec("refuses")
    machine = await rig.vmm.launch(spec)
    rig.vmm.faults |= {Fault.SAVE_NO_SPACE, Fault.SWAP_FAILS, Fault.RESUME_FAILS}
    await machine.pause()
    with pytest.raises(NoSpace):
        await machine.save_state(spec.run_dir / "state")
    with pytest.raises(VmmError):
        await machine.swap_disk(rig.overlay(spec, "next", spec.disk))
    with pytest.raises(VmmError):
        await machine.resume()
    rig.vmm.faults.clear()
    await machine.resume()
    await rig.poke(machine, "runs on")
    await machine.stop(0)


async def test_it_dies_soon_and_hangs_in_pause(rig: FakeRig) -> None:
    rig.vmm.faults |= {Fault.DIES_SOON, Fault.PAUSE_HANGS}
    rig.vmm.lifetime_ms = 300
    machine = await rig.vmm.launch(rig.restore_spec("dies"))
    pausing = asyncio.ensure_future(machine.pause())
    record = await machine.wait()
    assert record.signal == signal.SIGALRM
    assert not pausing.done()
    pausing.cancel()


async def test_a_lost_monitor_is_told_and_a_crash_ends_it(rig: FakeRig) -> None:
    machine = await rig.vmm.launch(rig.restore_spec("lost"))
    events = machine.events()
    machine.lose_monitor()
    assert await anext(events) is VmmEvent.MONITOR_LOST
    with pytest.raises(GuestLost):
        await machine.pause()
    machine.crash()
    assert (await machine.wait()).signal == signal.SIGKILL


async def test_stop_kills_what_does_not_quit(rig: FakeRig) -> None:
    rig.vmm.faults.add(Fault.STOP_IGNORES_QUIT)
    machine = await rig.vmm.launch(rig.restore_spec("stubborn"))
    assert (await machine.stop(5)).signal == signal.SIGKILL
