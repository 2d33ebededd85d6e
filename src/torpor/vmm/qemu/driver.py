"""The QEMU driver: probe, launch, adopt. Implements ports.vmm.Vmm.

launch:  sockets and device state opened -> QEMU started in its jail with them -> monitor answers (RAM exists) -> [region found -> fill]
         -> whoever speaks with the guest is told, so that the guest finds them connected -> device state in -> vCPUs run
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import socket
import struct
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

from torpor.model.errors import GuestLost, InvalidInput, NoPermission, NoSpace, VmmError
from torpor.ports.processes import ChildSpec, ExitRecord, Jail, Processes
from torpor.ports.vmm import Handle, LaunchSpec, Probe, Restore
from torpor.vmm.qemu import handle as handles
from torpor.vmm.qemu import plan
from torpor.vmm.qemu.jail import make_jail
from torpor.vmm.qemu.machine import QemuMachine, read_tail
from torpor.vmm.qemu.probe import Prober
from torpor.vmm.qemu.qmp import listen
from torpor.vmm.qemu.region import find_region

OUTPUT_LIMIT = 64 << 10
_TUNGETIFF = 0x800454D2  # include/uapi/linux/if_tun.h
_IFF_VNET_HDR = 0x4000


class QemuVmm:
    """`home`: where the probe's verdicts are kept."""

    def __init__(self, processes: Processes, home: Path, binary: str = "qemu-system-x86_64") -> None:
        self._processes = processes
        self._prober = Prober(processes, home, binary)

    async def probe(self) -> Probe:
        """ports.vmm.Vmm.probe."""
        return (await self._prober.verdict()).probe

    async def launch(self, spec: LaunchSpec) -> QemuMachine:
        """ports.vmm.Vmm.launch."""
        verdict = await self._prober.verdict()
        _check_tap(spec)
        async with AsyncExitStack() as undo:
            memory_file = _memory_file(spec, undo)
            planned = plan.make_plan(spec, verdict.binary, verdict.probe.accelerator, memory_file, verdict.tsc_khz)
            jail = make_jail(spec, verdict.probe.accelerator, verdict.program, planned.files)
            machine = await self._start(spec, planned, jail, undo)
            try:
                await _bring_up(spec, machine, memory_file)
            except (GuestLost, VmmError) as error:
                raise _launch_failure(spec, error) from error
            if memory_file.parent == spec.run_dir:
                memory_file.unlink()  # the scratch memory of a cold boot lives as long as its mapping
            undo.pop_all()
            return machine

    async def adopt(self, handle: Handle, run_dir: Path) -> QemuMachine | ExitRecord:
        """ports.vmm.Vmm.adopt."""
        fields = handles.from_handle(handle)
        child = await self._processes.adopt(fields.process, fields.pid, fields.start_time, run_dir / handles.EXIT_FILE)
        if isinstance(child, ExitRecord):
            return child
        machine = QemuMachine(handle.machine_id, run_dir, child)
        machine.complete(fields)
        try:
            await machine.attach()
            await machine.find_overlay()
        except GuestLost:
            if machine.ended:
                return await machine.wait()
            await machine.detach()
            raise
        except BaseException:
            await machine.detach()
            raise
        return machine

    async def _start(self, spec: LaunchSpec, planned: plan.Plan, jail: Jail, undo: AsyncExitStack) -> QemuMachine:
        """The process, with its sockets listening before it exists: a connection can wait for it, nothing polls."""
        with ExitStack() as ours:
            fds = {}
            for number, name in ((plan.QMP_FD, handles.QMP_SOCKET), (plan.AGENT_FD, handles.AGENT_SOCKET)):
                listener = ours.enter_context(_listen(spec.run_dir / name))
                undo.callback((spec.run_dir / name).unlink, missing_ok=True)
                fds[number] = listener.fileno()
            if spec.tap_fd is not None:
                fds[plan.TAP_FD] = spec.tap_fd
            if isinstance(spec.boot, Restore):
                fds[plan.STATE_FD] = _open_state(spec.boot.state)
                ours.callback(os.close, fds[plan.STATE_FD])
            for name in (handles.OUTPUT, handles.EXIT_FILE):
                undo.callback((spec.run_dir / name).unlink, missing_ok=True)
            child = await self._processes.spawn(
                ChildSpec(
                    name=spec.machine_id,
                    argv=planned.argv,
                    exit_file=spec.run_dir / handles.EXIT_FILE,
                    output=spec.run_dir / handles.OUTPUT,
                    output_limit=OUTPUT_LIMIT,
                    fds=fds,
                    jail=jail,
                    leash=spec.leash,
                )
            )
        machine = QemuMachine(spec.machine_id, spec.run_dir, child)
        undo.push_async_callback(machine.stop, 0)
        return machine


async def _bring_up(spec: LaunchSpec, machine: QemuMachine, memory_file: Path) -> None:
    child = machine.child
    await machine.attach()
    if isinstance(spec.boot, Restore):
        if spec.boot.fill is not None:
            await spec.boot.fill(find_region(child.pid, memory_file, spec.shape.memory_bytes))
        if spec.boot.about_to_run is not None:
            spec.boot.about_to_run(machine.agent_socket)
            await asyncio.sleep(0)  # the round of the loop in which a task that this started takes its first step, and connects
        await _load_state(machine)
    region = find_region(child.pid, memory_file, spec.shape.memory_bytes)
    machine.complete(handles.QemuFields(spec.machine_id, child.pid, child.start_time, region.address, region.size, spec.cache_strict))


async def _load_state(machine: QemuMachine) -> None:
    """A broken state makes QEMU exit with its reason on standard error; a good one ends in the RESUME event, when the vCPUs run."""
    running = machine.expect("RESUME")
    await machine.command("migrate-incoming", {"uri": plan.STATE_URI})
    await machine.bounded(running, "load the device state")


def _open_state(state: Path) -> int:
    try:
        return os.open(state, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise VmmError(f"The device state {state} cannot be opened: {error.strerror}.") from error


def _memory_file(spec: LaunchSpec, undo: AsyncExitStack) -> Path:
    """Guest RAM's file, accessible for the VMM's uid. Also opens the run directory for that uid to pass through."""
    if spec.uid is not None and os.geteuid() == 0:
        spec.run_dir.chmod(0o711)
    if isinstance(spec.boot, Restore):
        return spec.boot.memory_file
    memory_file = spec.boot.memory_file
    if memory_file is None:
        memory_file = spec.run_dir / handles.SCRATCH_MEMORY
        undo.callback(memory_file.unlink, missing_ok=True)
        with open(memory_file, "xb") as file:
            file.truncate(spec.shape.memory_bytes)
    if spec.uid is not None and os.geteuid() == 0:
        os.chown(memory_file, spec.uid, spec.uid)
    return memory_file


def _listen(path: Path) -> socket.socket:
    try:
        return listen(path)
    except PermissionError as error:
        raise NoPermission(f"{path}: {error.strerror}.") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(f"{path}: {error.strerror}.") from error
        raise VmmError(f"{path}: {error.strerror}. A run directory serves one launch.") from error


def _check_tap(spec: LaunchSpec) -> None:
    """A tap with vnet headers would put that into the device state, which then could not be restored without a tap."""
    if (spec.netns is None) != (spec.tap_fd is None):
        raise InvalidInput("A network namespace and a tap come together or not at all.")
    if spec.tap_fd is None:
        return
    request = bytearray(40)
    fcntl.ioctl(spec.tap_fd, _TUNGETIFF, request)
    (flags,) = struct.unpack_from("=H", request, 16)
    if flags & _IFF_VNET_HDR:
        raise InvalidInput("The tap was opened with IFF_VNET_HDR; open it without.")


def _launch_failure(spec: LaunchSpec, error: GuestLost | VmmError) -> VmmError:
    tail = read_tail(spec.run_dir / handles.OUTPUT).strip()
    return VmmError(f"{error.message} It said: {tail or 'nothing'}")
