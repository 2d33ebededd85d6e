"""A Vmm without QEMU that misbehaves on request. Its machines are real processes (fake_vmm_child.py) with a real mapping of guest RAM, so that scans, adoption
and kill -9 are real too; they start in some 20 ms and need neither root nor images."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from torpor.model.errors import GuestLost, Incompatible, InternalError, NoSpace, VmmError
from torpor.model.snapshots import MemoryRegion
from torpor.ports.processes import Child, ChildSpec, ExitRecord, Processes
from torpor.ports.vmm import Accelerator, DiskSpec, Handle, LaunchSpec, Probe, Restore, Stats, VmmEvent

_PROGRAM = Path(__file__).with_name("fake_vmm_child.py")
_VERSION = 1


class Fault(Enum):
    """What goes wrong. Set in FakeVmm.faults; each stays until it is taken out."""

    LAUNCH_REFUSED = "launch raises VmmError before a process exists"
    LAUNCH_DIES = "the process ends before launch returns"
    DIES_SOON = "the process is killed by a signal FakeVmm.lifetime_ms after its start"
    PAUSE_HANGS = "pause does not return until it is cancelled"
    RESUME_FAILS = "resume raises VmmError"
    SAVE_NO_SPACE = "save_state raises NoSpace"
    SWAP_FAILS = "swap_disk raises VmmError"
    STOP_IGNORES_QUIT = "the process does not quit when asked, only when killed"


@dataclass(frozen=True, slots=True)
class _Fields:
    pid: int
    start_time: int
    address: int
    size: int


@dataclass
class FakeVmm:
    """Held to testing.conformance.vmm while `faults` is empty. `launched` collects the specs, `machines` the machines, for a test to look at."""

    processes: Processes
    faults: set[Fault] = field(default_factory=set)
    lifetime_ms: int = 50
    launched: list[LaunchSpec] = field(default_factory=list)
    machines: list[FakeVmMachine] = field(default_factory=list)
    accelerator: Accelerator = Accelerator.TCG

    async def probe(self) -> Probe:
        hard = {"vmm": "fake", "profile": "1", "accelerator": self.accelerator.value, "cpu": "fake"}
        return Probe("fake", "1.0", self.accelerator, frozenset({"cold_boot", "restore", "fill", "swap_disk", "adopt"}), hard, {"fake": "1.0"})

    async def launch(self, spec: LaunchSpec) -> FakeVmMachine:
        self.launched.append(spec)
        if Fault.LAUNCH_REFUSED in self.faults:
            raise VmmError("The fake refuses to launch.")
        async with AsyncExitStack() as undo:
            memory_file = _memory_file(spec, undo)
            child = await self._start(spec, memory_file, undo)
            machine = FakeVmMachine(self, spec.machine_id, spec.run_dir, child)
            undo.push_async_callback(machine.stop, 0)
            if Fault.LAUNCH_DIES in self.faults:
                child.kill(signal.SIGKILL)
                raise VmmError(f"The fake VMM of {spec.machine_id} ended: {await child.wait()}.")
            try:
                await machine.bring_up(spec)
            except GuestLost as error:
                raise VmmError(f"{error.message} It said: {machine.console_tail()}") from error
            if memory_file.parent == spec.run_dir:
                memory_file.unlink()
            undo.pop_all()
        self.machines.append(machine)
        return machine

    async def _start(self, spec: LaunchSpec, memory_file: Path, undo: AsyncExitStack) -> Child:
        with ExitStack() as ours:
            fds = {}
            for number, name in ((3, "monitor.sock"), (4, "agent.sock")):
                listener = ours.enter_context(socket.socket(socket.AF_UNIX))
                undo.callback((spec.run_dir / name).unlink, missing_ok=True)
                listener.bind(str(spec.run_dir / name))
                listener.listen(4)
                fds[number] = listener.fileno()
            for name in ("exit.json", "console.log"):
                undo.callback((spec.run_dir / name).unlink, missing_ok=True)
            sharing = "private" if isinstance(spec.boot, Restore) else "shared"
            lifetime = str(self.lifetime_ms) if Fault.DIES_SOON in self.faults else "0"
            argv = [sys.executable, "-I", "-S", str(_PROGRAM), str(memory_file), sharing, lifetime, str(spec.disk.overlay)]
            return await self.processes.spawn(
                ChildSpec(spec.machine_id, argv, spec.run_dir / "exit.json", spec.run_dir / "console.log", fds=fds, leash=spec.leash)
            )

    async def adopt(self, handle: Handle, run_dir: Path) -> FakeVmMachine | ExitRecord:
        if (handle.kind, handle.version) != ("fake", _VERSION) or set(handle.fields) != set(_Fields.__dataclass_fields__):
            raise Incompatible("This is no handle of the fake.", {"kind": (handle.kind, "fake"), "version": (str(handle.version), str(_VERSION))})
        fields = _Fields(**handle.fields)
        child = await self.processes.adopt(handle.machine_id, fields.pid, fields.start_time, run_dir / "exit.json")
        if isinstance(child, ExitRecord):
            return child
        machine = FakeVmMachine(self, handle.machine_id, run_dir, child)
        try:
            await machine.connect()
        except ConnectionRefusedError:  # it was ending: nothing else closes its listener
            return await machine.wait()
        machine.fields = fields
        self.machines.append(machine)
        return machine


class FakeVmMachine:
    """One fake microVM. `crash`, `emit` and `lose_monitor` are the test's own levers."""

    def __init__(self, vmm: FakeVmm, machine_id: str, run_dir: Path, child: Child) -> None:
        self._vmm = vmm
        self._id = machine_id
        self._run_dir = run_dir
        self._child = child
        self._streams: list[asyncio.Queue[VmmEvent | None]] = []
        self._answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._end = asyncio.ensure_future(self._await_end())
        self.fields: _Fields | None = None
        self.paused = False

    # --- levers

    def crash(self) -> None:
        """kill -9."""
        self._child.kill(signal.SIGKILL)

    def emit(self, event: VmmEvent) -> None:
        for stream in self._streams:
            stream.put_nowait(event)

    def lose_monitor(self) -> None:
        """The monitor connection breaks; the machine runs on."""
        self._hang_up()
        self.emit(VmmEvent.MONITOR_LOST)

    # --- the monitor

    async def connect(self) -> None:
        reader, self._writer = await asyncio.open_unix_connection(str(self._run_dir / "monitor.sock"))
        self._reading = asyncio.ensure_future(self._read(reader))

    async def bring_up(self, spec: LaunchSpec) -> None:
        await self.connect()
        answer = await self._order("disk", path=str(spec.disk.overlay))
        region = MemoryRegion(self._child.pid, answer["address"], answer["size"])
        if isinstance(spec.boot, Restore):
            if spec.boot.fill is not None:
                await spec.boot.fill(region)
            if spec.boot.about_to_run is not None:
                spec.boot.about_to_run(self.agent_socket)
            await self._order("load", path=str(spec.boot.state))
        await self._order("resume")
        self.fields = _Fields(self._child.pid, self._child.start_time, region.address, region.size)

    async def _order(self, do: str, **arguments: str) -> dict[str, Any]:
        if self._writer is None or self._end.done():
            raise GuestLost(f"The fake VMM of {self._id} is gone.")
        self._writer.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        answering = asyncio.ensure_future(self._answers.get())
        try:
            await asyncio.wait({answering, self._end}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                raise GuestLost(f"The fake VMM of {self._id} ended.")
            answer = answering.result()
        finally:
            answering.cancel()
        if "error" in answer:
            raise VmmError(answer["error"])
        return answer

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            message = json.loads(line)
            if "event" in message:
                self.emit(VmmEvent(message["event"]))
            else:
                self._answers.put_nowait(message)

    async def _await_end(self) -> ExitRecord:
        record = await self._child.wait()
        if self._reading is not None:
            await asyncio.wait({self._reading})
        self._hang_up()
        for stream in self._streams:
            stream.put_nowait(None)
        return record

    def _hang_up(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    # --- ports.vmm.Machine

    @property
    def handle(self) -> Handle:
        if self.fields is None:
            raise InternalError("The handle was read before launch returned.")
        return Handle(_VERSION, "fake", self._id, asdict(self.fields))

    @property
    def region(self) -> MemoryRegion:
        if self.fields is None:
            raise InternalError("The region was read before launch returned.")
        return MemoryRegion(self.fields.pid, self.fields.address, self.fields.size)

    @property
    def agent_socket(self) -> Path:
        return self._run_dir / "agent.sock"

    async def pause(self) -> None:
        if Fault.PAUSE_HANGS in self._vmm.faults:
            await asyncio.Event().wait()
        await self._order("pause")
        self.paused = True

    async def resume(self) -> None:
        if Fault.RESUME_FAILS in self._vmm.faults:
            raise VmmError("The fake refuses to resume.")
        await self._order("resume")
        self.paused = False

    async def save_state(self, into: Path) -> None:
        if Fault.SAVE_NO_SPACE in self._vmm.faults:
            raise NoSpace("The fake's disk is full.")
        await self._order("save", path=str(into))

    async def swap_disk(self, disk: DiskSpec) -> None:
        if Fault.SWAP_FAILS in self._vmm.faults:
            raise VmmError("The fake refuses to swap disks.")
        await self._order("disk", path=str(disk.overlay))

    async def overlay(self) -> str:
        return Path((await self._order("look"))["overlay"]).name

    async def resize_disk(self, size_bytes: int) -> None:
        await self._order("size")

    async def stop(self, grace_seconds: float) -> ExitRecord:
        stopping = asyncio.ensure_future(self._stop(grace_seconds))
        cancelled = False
        while not stopping.done():
            try:
                await asyncio.shield(stopping)
            except asyncio.CancelledError:
                cancelled = True
                self._child.kill(signal.SIGKILL)
        if cancelled:
            raise asyncio.CancelledError
        return stopping.result()

    async def _stop(self, grace_seconds: float) -> ExitRecord:
        if grace_seconds > 0 and self._writer is not None and Fault.STOP_IGNORES_QUIT not in self._vmm.faults:
            self._writer.write(b'{"do": "quit"}\n')
            await asyncio.wait({self._end}, timeout=grace_seconds)
        self._child.kill(signal.SIGKILL)
        return await asyncio.shield(self._end)

    async def wait(self) -> ExitRecord:
        return await asyncio.shield(self._end)

    def stats(self) -> Stats:
        try:
            pages = int(Path(f"/proc/{self._child.pid}/statm").read_text().split()[1])
        except (FileNotFoundError, ProcessLookupError) as error:
            raise GuestLost(f"The fake VMM of {self._id} is gone.") from error
        resident = pages * os.sysconf("SC_PAGE_SIZE")
        return Stats(0.0, resident, resident)

    def events(self) -> AsyncIterator[VmmEvent]:
        stream: asyncio.Queue[VmmEvent | None] = asyncio.Queue()
        self._streams.append(stream)
        if self._end.done():
            stream.put_nowait(None)

        async def iterate() -> AsyncIterator[VmmEvent]:
            while (event := await stream.get()) is not None:
                yield event

        return iterate()

    def console_tail(self) -> str:
        path = self._run_dir / "console.log"
        return path.read_text(errors="replace")[-16384:] if path.exists() else ""

    async def detach(self) -> None:
        self._hang_up()
        self._end.cancel()


def _memory_file(spec: LaunchSpec, undo: AsyncExitStack) -> Path:
    if spec.boot.memory_file is not None:
        return spec.boot.memory_file
    memory_file = spec.run_dir / "memory"
    undo.callback(memory_file.unlink, missing_ok=True)
    with open(memory_file, "xb") as file:
        file.truncate(spec.shape.memory_bytes)
    return memory_file
