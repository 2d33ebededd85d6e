"""What every driver behind ports.vmm must do. A rig makes specs and talks to the guest; CHECKS lists the checks in a good order.

    async def test(...): await check(rig)

Every check ends with no machine running.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Protocol

import pytest

from torpor.model.errors import GuestLost, Incompatible, TorporError, VmmError
from torpor.model.snapshots import PAGE, MemoryRegion
from torpor.ports.processes import ExitRecord
from torpor.ports.vmm import DiskSpec, Handle, LaunchSpec, Machine, Restore, Vmm, VmmEvent
from torpor.testing.conformance.cancel import cancel_everywhere

_CHUNK = 1 << 20
GRACE = 20.0


class VmmRig(Protocol):
    """What a driver's test supplies."""

    @property
    def vmm(self) -> Vmm: ...

    def restore_spec(self, machine_id: str) -> LaunchSpec:
        """A spec that restores the rig's base snapshot, with a fresh run directory that holds only its overlay."""
        ...

    def overlay(self, spec: LaunchSpec, name: str, below: DiskSpec) -> DiskSpec:
        """A fresh overlay called `name` in the spec's run directory, on top of `below`."""
        ...

    async def poke(self, machine: Machine, text: str) -> None:
        """Has the guest remember `text` in its memory."""
        ...

    async def peek(self, machine: Machine) -> str:
        """What the guest remembers."""
        ...

    async def shut_down(self, machine: Machine) -> None:
        """Has the guest switch its machine off; may return before it is."""
        ...

    def sleeper(self) -> int:
        """A process of the test's own, for a leash; killed by `kill_sleeper`."""
        ...

    def kill_sleeper(self, pid: int) -> None: ...


def leftovers(spec: LaunchSpec) -> list[str]:
    """What a failed launch left in the run directory, other than its overlay."""
    return sorted(path.name for path in spec.run_dir.iterdir() if path != spec.disk.overlay)


def is_alive(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}/stat")


def processes_of(spec: LaunchSpec) -> list[int]:
    """Processes that name the spec's overlay on their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.fsencode(spec.disk.overlay) in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


def json_copy(handle: Handle) -> Handle:
    return Handle(**json.loads(json.dumps(asdict(handle))))


def dirty_pages(region: MemoryRegion, memory_file: Path) -> list[tuple[int, bytes]]:
    """Pages of guest RAM that differ from the file, by comparing all of it."""
    changed = []
    with open(f"/proc/{region.pid}/mem", "rb", buffering=0) as memory, memory_file.open("rb") as file:
        for start in range(0, region.size, _CHUNK):
            memory.seek(region.address + start)
            mine, theirs = memory.read(_CHUNK), file.read(_CHUNK)
            if mine != theirs:
                for page in range(0, _CHUNK, PAGE):
                    if mine[page : page + PAGE] != theirs[page : page + PAGE]:
                        changed.append((start + page, mine[page : page + PAGE]))
    return changed


def filler(pages: list[tuple[int, bytes]]) -> Callable[[MemoryRegion], Awaitable[None]]:
    async def fill(region: MemoryRegion) -> None:
        with open(f"/proc/{region.pid}/mem", "r+b", buffering=0) as memory:
            for offset, page in pages:
                memory.seek(region.address + offset)
                memory.write(page)

    return fill


async def check_probe(rig: VmmRig) -> None:
    probe = await rig.vmm.probe()
    assert probe.kind
    assert probe.version
    assert probe.fingerprint_hard["profile"] == "1"
    assert await rig.vmm.probe() == probe


async def check_launch(rig: VmmRig) -> None:
    """The handle is complete, the region is guest RAM, the process is there, the guest answers."""
    spec = rig.restore_spec("launch")
    machine = await rig.vmm.launch(spec)
    assert machine.handle.machine_id == spec.machine_id
    assert json_copy(machine.handle) == machine.handle
    assert machine.region.size == spec.shape.memory_bytes
    assert is_alive(machine.region.pid)
    await rig.poke(machine, "hello")
    assert await rig.peek(machine) == "hello"
    stats = machine.stats()
    assert stats.resident_bytes >= stats.private_bytes > 0
    assert isinstance(machine.console_tail(), str)
    pid = machine.region.pid
    assert await machine.stop(GRACE) == ExitRecord(0, None, False)
    assert not is_alive(pid)
    with pytest.raises(GuestLost):
        machine.stats()


async def check_the_guest_is_reached_before_it_runs(rig: VmmRig) -> None:
    """`about_to_run` is called once, after `fill`, with a socket that can be connected; the machine is as any other then."""
    spec = rig.restore_spec("reached")
    assert isinstance(spec.boot, Restore)
    calls: list[str] = []
    early = socket.socket(socket.AF_UNIX)

    async def fill(_: MemoryRegion) -> None:
        calls.append("fill")

    def about_to_run(at: Path) -> None:
        calls.append(str(at))
        early.connect(str(at))

    machine = await rig.vmm.launch(replace(spec, boot=replace(spec.boot, fill=fill, about_to_run=about_to_run)))
    assert calls == ["fill", str(machine.agent_socket)]
    early.close()
    await rig.poke(machine, "reached")
    assert await rig.peek(machine) == "reached"
    await machine.stop(0)


async def check_pause_is_idempotent(rig: VmmRig) -> None:
    machine = await rig.vmm.launch(rig.restore_spec("pause"))
    await machine.pause()
    await machine.pause()
    await machine.resume()
    await machine.resume()
    await rig.poke(machine, "still here")
    await machine.stop(0)


async def check_save_and_restore(rig: VmmRig) -> None:
    """Device state and changed pages make the same machine again, twice; the memory file is never written."""
    spec = rig.restore_spec("save")
    assert isinstance(spec.boot, Restore)
    before = spec.boot.memory_file.stat()
    machine = await rig.vmm.launch(spec)
    await rig.poke(machine, "kept over a pause")
    await machine.pause()
    state = spec.run_dir / "state"
    await machine.save_state(state)
    pages = dirty_pages(machine.region, spec.boot.memory_file)
    assert pages
    await machine.stop(GRACE)
    for name in ("again-1", "again-2"):
        fresh = rig.restore_spec(name)
        disk = rig.overlay(fresh, "resumed.qcow2", spec.disk)
        again = await rig.vmm.launch(replace(fresh, boot=Restore(spec.boot.memory_file, state, filler(pages)), disk=disk))
        assert await rig.peek(again) == "kept over a pause"
        await again.stop(0)
    after = spec.boot.memory_file.stat()
    assert (after.st_mtime_ns, after.st_size) == (before.st_mtime_ns, before.st_size)


async def check_refused_save_changes_nothing(rig: VmmRig) -> None:
    """Without a place for the state there is an error, no file, and a machine that runs on."""
    spec = rig.restore_spec("refused")
    machine = await rig.vmm.launch(spec)
    await rig.poke(machine, "unharmed")
    await machine.pause()
    with pytest.raises(TorporError):
        await machine.save_state(spec.run_dir / "no" / "such" / "directory")
    await machine.save_state(spec.run_dir / "state")
    await machine.resume()
    assert await rig.peek(machine) == "unharmed"
    await machine.stop(0)


async def check_swap_disk(rig: VmmRig) -> None:
    """The old overlay is no longer written, the new one is used, twice in a row; a refused swap leaves the old one in use."""
    spec = rig.restore_spec("swap")
    machine = await rig.vmm.launch(spec)
    disk = spec.disk
    for name in ("second.qcow2", "third.qcow2"):
        await machine.pause()
        upper = rig.overlay(spec, name, disk)
        frozen = disk.overlay
        await machine.swap_disk(upper)
        assert await machine.overlay() == name
        content = frozen.read_bytes()
        await machine.resume()
        await rig.poke(machine, name)
        assert frozen.read_bytes() == content
        disk = upper
    await machine.pause()
    with pytest.raises(VmmError):
        await machine.swap_disk(DiskSpec(spec.run_dir / "missing.qcow2", (disk.overlay, *disk.chain)))
    assert await machine.overlay() == "third.qcow2"
    await machine.resume()
    assert await rig.peek(machine) == "third.qcow2"
    await machine.stop(0)


async def check_stop_is_idempotent(rig: VmmRig) -> None:
    machine = await rig.vmm.launch(rig.restore_spec("stop"))
    first = await machine.stop(0)
    assert first.signal == signal.SIGKILL
    assert await machine.stop(GRACE) == first
    assert await machine.wait() == first
    with pytest.raises(GuestLost):
        await machine.pause()


async def check_cancelled_stop_completes(rig: VmmRig) -> None:
    machine = await rig.vmm.launch(rig.restore_spec("cancelled-stop"))
    stopping = asyncio.ensure_future(machine.stop(GRACE))
    await asyncio.sleep(0)
    stopping.cancel()
    await asyncio.wait({stopping})
    assert not is_alive(machine.region.pid)
    await machine.wait()


async def check_kill_is_seen(rig: VmmRig) -> None:
    """kill -9 of the VMM: everybody who waits learns it, the event stream ends, the exit file says it."""
    machine = await rig.vmm.launch(rig.restore_spec("killed"))
    events = machine.events()
    waiting = [asyncio.ensure_future(machine.wait()) for _ in range(3)]
    os.kill(machine.region.pid, signal.SIGKILL)
    assert {record.signal for record in await asyncio.gather(*waiting)} == {signal.SIGKILL}
    assert VmmEvent.GUEST_SHUTDOWN not in [event async for event in events]
    with pytest.raises(GuestLost):
        await machine.resume()


async def check_guest_shutdown_is_told(rig: VmmRig) -> None:
    machine = await rig.vmm.launch(rig.restore_spec("shutdown"))
    events = machine.events()
    await rig.shut_down(machine)
    assert VmmEvent.GUEST_SHUTDOWN in [event async for event in events]
    assert await machine.wait() == ExitRecord(0, None, False)


async def check_adopt_running(rig: VmmRig) -> None:
    """Detached, adopted from the handle's JSON, and the same machine: memory, pause, disk swap and end all work."""
    spec = rig.restore_spec("adopt")
    machine = await rig.vmm.launch(spec)
    await rig.poke(machine, "before")
    await machine.pause()
    upper = rig.overlay(spec, "swapped.qcow2", spec.disk)
    await machine.swap_disk(upper)
    await machine.resume()
    handle = json_copy(machine.handle)
    await machine.detach()
    adopted = await rig.vmm.adopt(handle, spec.run_dir)
    assert not isinstance(adopted, ExitRecord)
    assert adopted.region == machine.region
    assert await rig.peek(adopted) == "before"
    await adopted.pause()
    await adopted.swap_disk(rig.overlay(spec, "swapped-again.qcow2", upper))
    await adopted.save_state(spec.run_dir / "state")
    await adopted.resume()
    assert await rig.peek(adopted) == "before"
    assert (await adopted.stop(GRACE)).code == 0


async def check_adopt_ended(rig: VmmRig) -> None:
    spec = rig.restore_spec("ended")
    machine = await rig.vmm.launch(spec)
    handle = json_copy(machine.handle)
    ended = asyncio.ensure_future(machine.wait())
    os.kill(machine.region.pid, signal.SIGKILL)
    await ended
    await machine.detach()
    assert await rig.vmm.adopt(handle, spec.run_dir) == ExitRecord(None, signal.SIGKILL, False)


async def check_adopt_never_guesses(rig: VmmRig) -> None:
    spec = rig.restore_spec("guess")
    machine = await rig.vmm.launch(spec)
    for odd in (
        replace(machine.handle, version=99),
        replace(machine.handle, kind="other"),
        replace(machine.handle, fields={**machine.handle.fields, "new": 1}),
    ):
        with pytest.raises(Incompatible):
            await rig.vmm.adopt(odd, spec.run_dir)
    recycled = replace(machine.handle, fields={**machine.handle.fields, "start_time": machine.handle.fields["start_time"] - 1})
    await machine.stop(0)
    assert isinstance(await rig.vmm.adopt(recycled, spec.run_dir), ExitRecord)


async def check_failed_launch_leaves_nothing(rig: VmmRig) -> None:
    """A state that is none, a fill that fails: an error with a reason, no process, an empty run directory."""
    spec = rig.restore_spec("broken")
    assert isinstance(spec.boot, Restore)
    broken = spec.boot.state.with_name("broken-state")
    broken.write_bytes(b"this is no device state")
    with pytest.raises(VmmError):
        await rig.vmm.launch(replace(spec, boot=replace(spec.boot, state=broken)))
    assert leftovers(spec) == []

    async def refuse(_: MemoryRegion) -> None:
        raise VmmError("no pages today")

    def about_to_run(_: Path) -> None:
        raise AssertionError("it will not run")

    with pytest.raises(VmmError, match="no pages today"):
        await rig.vmm.launch(replace(spec, boot=replace(spec.boot, fill=refuse, about_to_run=about_to_run)))
    assert leftovers(spec) == []
    assert processes_of(spec) == []


async def check_cancelled_launch_leaves_nothing(rig: VmmRig) -> None:
    """Cancelled at every await in turn."""
    spec = rig.restore_spec("cancelled")

    async def nothing_left() -> None:
        assert processes_of(spec) == []
        for name in leftovers(spec):
            raise AssertionError(f"{name} stayed behind")

    async def completed(machine: Machine) -> None:
        await machine.stop(0)
        for path in spec.run_dir.iterdir():
            if path != spec.disk.overlay:
                path.unlink()

    async def launch() -> Machine:
        return await rig.vmm.launch(spec)

    assert await cancel_everywhere(launch, completed, nothing_left) > 0


async def check_leash(rig: VmmRig) -> None:
    """The machine ends with the process it is leashed to."""
    pid = rig.sleeper()
    machine = await rig.vmm.launch(replace(rig.restore_spec("leash"), leash=pid))
    await rig.poke(machine, "leashed")
    rig.kill_sleeper(pid)
    assert (await machine.wait()).signal == signal.SIGKILL


CHECKS: tuple[Callable[[VmmRig], Awaitable[None]], ...] = (
    check_probe,
    check_launch,
    check_the_guest_is_reached_before_it_runs,
    check_pause_is_idempotent,
    check_save_and_restore,
    check_refused_save_changes_nothing,
    check_swap_disk,
    check_stop_is_idempotent,
    check_cancelled_stop_completes,
    check_kill_is_seen,
    check_guest_shutdown_is_told,
    check_adopt_running,
    check_adopt_ended,
    check_adopt_never_guesses,
    check_failed_launch_leaves_nothing,
    check_cancelled_launch_leaves_nothing,
    check_leash,
)
