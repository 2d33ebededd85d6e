"""One running QEMU. Implements ports.vmm.Machine over a child process and its monitor."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torpor.model.errors import GuestLost, InternalError, NoPermission, NoSpace, TimedOut, VmmError
from torpor.model.snapshots import MemoryRegion
from torpor.ports.processes import Child, ExitRecord
from torpor.ports.vmm import DiskSpec, Handle, Stats, VmmEvent
from torpor.vmm.qemu import handle as handles
from torpor.vmm.qemu import plan
from torpor.vmm.qemu.qmp import QmpClient, connect
from torpor.vmm.qemu.region import read_stats

STEP_SECONDS = 60.0
TAIL_BYTES = 16 << 10
_EVENTS_KEPT = 64
_STATE_FDSET = 1

_T = TypeVar("_T")


class QemuMachine:
    """The monitor is connected by `attach`. Only the owner task calls the verbs."""

    def __init__(self, machine_id: str, run_dir: Path, child: Child) -> None:
        self._id = machine_id
        self._run_dir = run_dir
        self._child = child
        self._fields: handles.QemuFields | None = None
        self._qmp: QmpClient | None = None
        self._streams: list[EventStream] = []
        self._expected: list[tuple[str, asyncio.Future[dict[str, Any]]]] = []
        self._stopping = False
        self._overlay = 0
        self._end = asyncio.ensure_future(self._await_end())

    # --- life with the monitor

    async def attach(self) -> None:
        """Connects the monitor and negotiates; the VMM is set up then, and writes to guest RAM no more. Raises GuestLost, VmmError, TimedOut."""
        try:
            connection = connect(self._run_dir / handles.QMP_SOCKET)
        except OSError as error:
            raise GuestLost(f"The monitor of {self._id} cannot be reached: {error}.") from error
        self._qmp = QmpClient(connection, self._on_event, self._on_monitor_lost)
        await self.bounded(self._qmp.negotiate(), "answer on its monitor")

    def complete(self, fields: handles.QemuFields) -> None:
        self._fields = fields

    @property
    def child(self) -> Child:
        return self._child

    @property
    def ended(self) -> bool:
        return self._end.done()

    @property
    def qmp(self) -> QmpClient:
        if self._qmp is None:
            raise GuestLost(f"The monitor of {self._id} is not connected.")
        return self._qmp

    async def bounded(self, step: Awaitable[_T], what: str) -> _T:
        """Awaits `step`, ending it when QEMU ends or the step takes too long. Raises GuestLost (how QEMU ended), TimedOut, and what the step raises."""
        doing = asyncio.ensure_future(step)
        try:
            await asyncio.wait({doing, self._end}, timeout=STEP_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if doing.done():
                return doing.result()
            if self._end.done():
                raise GuestLost(f"The microVM {self._id} ended: {describe(self._end.result())}.")
            raise TimedOut(f"The VMM of {self._id} did not {what} within {STEP_SECONDS:g} s.")
        finally:
            if not doing.done():
                doing.cancel()
                await asyncio.wait({doing})

    async def command(self, name: str, arguments: dict[str, Any] | None = None, fds: Sequence[int] = ()) -> Any:
        """One monitor command. Raises VmmError, GuestLost, TimedOut."""
        return await self.bounded(self.qmp.execute(name, arguments, fds), f"answer {name}")

    def expect(self, event: str) -> asyncio.Future[dict[str, Any]]:
        """The next `event`'s data. Ask before the command that causes it."""
        expected: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._expected.append((event, expected))
        return expected

    def _on_event(self, name: str, data: dict[str, Any]) -> None:
        for entry in [e for e in self._expected if e[0] == name]:
            self._expected.remove(entry)
            if not entry[1].done():
                entry[1].set_result(data)
        if name == "SHUTDOWN" and data.get("guest"):
            self._publish(VmmEvent.GUEST_SHUTDOWN)
        elif name == "GUEST_PANICKED":
            self._publish(VmmEvent.GUEST_PANIC)
        elif name == "BLOCK_IO_ERROR" and data.get("action") == "stop":  # QEMU's default (werror=enospc): any other error is the guest's to see
            self._publish(VmmEvent.DISK_FULL)

    def _on_monitor_lost(self) -> None:
        if not self._stopping:
            self._publish(VmmEvent.MONITOR_LOST)

    def _publish(self, event: VmmEvent) -> None:
        for stream in self._streams:
            stream.put(event)

    async def _await_end(self) -> ExitRecord:
        record = await self._child.wait()
        if self._qmp is not None:
            self._qmp.finish()
        for stream in self._streams:
            stream.put(None)
        return record

    # --- ports.vmm.Machine

    @property
    def handle(self) -> Handle:
        return handles.to_handle(self._id, self.fields)

    @property
    def fields(self) -> handles.QemuFields:
        if self._fields is None:
            raise InternalError("The handle of a machine was read before its launch returned.")
        return self._fields

    @property
    def region(self) -> MemoryRegion:
        return self.fields.region

    @property
    def agent_socket(self) -> Path:
        return self._run_dir / handles.AGENT_SOCKET

    async def pause(self) -> None:
        await self.command("stop")

    async def resume(self) -> None:
        await self.command("cont")

    async def save_state(self, into: Path) -> None:
        """QEMU gets a write-only descriptor, so it needs no writable directory; QEMU's own error for a full disk has no number, so the disk is asked."""
        try:
            fd = os.open(into, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _os_failure(error, into) from error
        try:
            try:
                await self.command("add-fd", {"fdset-id": _STATE_FDSET}, (fd,))
            finally:
                os.close(fd)
            try:
                await self.command("xen-save-devices-state", {"filename": f"/dev/fdset/{_STATE_FDSET}", "live": False})
            finally:
                await self._forget_fdset()
        except BaseException as error:
            into.unlink(missing_ok=True)
            if isinstance(error, VmmError) and is_full(into.parent, error):
                raise NoSpace(f"The device state of {self._id} does not fit on the disk of {into.parent}.") from error
            raise

    async def _forget_fdset(self) -> None:
        try:
            await asyncio.shield(self.command("remove-fd", {"fdset-id": _STATE_FDSET}))
        except VmmError:
            return  # already gone with its last user
        except GuestLost:
            return  # and everything with it; the caller's own command says so

    async def swap_disk(self, disk: DiskSpec) -> None:
        number = self._overlay + 1
        (node,) = plan.overlay_nodes(disk.overlay, number, self.fields.cache_strict, None)
        await self.command("blockdev-add", node)
        try:
            await self.command("blockdev-snapshot", {"node": plan.overlay_name(self._overlay), "overlay": plan.overlay_name(number)})
        except BaseException:
            await asyncio.shield(self.command("blockdev-del", {"node-name": plan.overlay_name(number)}))
            raise
        self._overlay = number

    async def resize_disk(self, size_bytes: int) -> None:
        await self.command("block_resize", {"node-name": plan.overlay_name(self._overlay), "size": size_bytes})

    async def find_overlay(self) -> None:
        """After an adoption: which overlay is on top."""
        top = await self._top()
        self._overlay = int(top["node-name"].removeprefix(plan.OVERLAY))

    async def overlay(self) -> str:
        """QEMU names a node by its file, or, when there is more to say than that, as JSON of its options."""
        name = (await self._top())["file"]
        try:
            return Path(json.loads(name.removeprefix("json:"))["file"]["filename"] if name.startswith("json:") else name).name
        except (ValueError, KeyError, TypeError) as error:
            raise VmmError(f"{self._id} names its disk {name[:200]!r}.") from error

    async def _top(self) -> dict[str, Any]:
        """The node that the guest's disk is on."""
        for device in await self.command("query-block"):
            if device.get("qdev", "").endswith(plan.ROOT_DEVICE):
                inserted: dict[str, Any] = device["inserted"]
                return inserted
        raise VmmError(f"{self._id} has no device {plan.ROOT_DEVICE}.")

    async def stop(self, grace_seconds: float) -> ExitRecord:
        """A cancel does not leave a process behind: it is killed, reaped, and then the cancel goes on."""
        self._stopping = True
        try:
            if grace_seconds > 0 and not self._end.done():
                await self._ask_to_quit(grace_seconds)
        finally:
            self._child.kill(signal.SIGKILL)
            record = await finish(self._end)
        return record

    async def _ask_to_quit(self, grace_seconds: float) -> None:
        try:
            async with asyncio.timeout(grace_seconds):
                await self.qmp.execute("quit")
                await asyncio.shield(self._end)
        except (GuestLost, VmmError, TimeoutError):
            return  # it is killed next

    async def wait(self) -> ExitRecord:
        return await asyncio.shield(self._end)

    def stats(self) -> Stats:
        return read_stats(self._child.pid)

    def events(self) -> AsyncIterator[VmmEvent]:
        stream = EventStream(self._streams)
        if self._end.done():
            stream.put(None)
        return stream

    def console_tail(self) -> str:
        return read_tail(self._run_dir / handles.OUTPUT)

    async def detach(self) -> None:
        if self._qmp is not None:
            self._qmp.close()
        self._end.cancel()
        for stream in self._streams:
            stream.put(None)


class EventStream:
    """An iterator over events, from its making on; keeps the newest few. Ends with the process."""

    def __init__(self, registry: list[EventStream]) -> None:
        self._events: deque[VmmEvent] = deque(maxlen=_EVENTS_KEPT)
        self._ended = False
        self._news = asyncio.Event()
        self._registry = registry
        registry.append(self)

    def put(self, event: VmmEvent | None) -> None:
        """None ends the stream."""
        if event is None:
            self._ended = True
        else:
            self._events.append(event)
        self._news.set()

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> VmmEvent:
        while not self._events:
            if self._ended:
                if self in self._registry:
                    self._registry.remove(self)
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._events.popleft()


async def finish(task: asyncio.Future[_T]) -> _T:
    """Awaits `task` to its end, however often the caller is cancelled; then the cancel goes on."""
    cancelled = False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
    return task.result()


def describe(record: ExitRecord) -> str:
    if record.oom:
        return "out of memory"
    if record.signal is not None:
        return f"signal {record.signal}"
    return "for an unseen reason" if record.code is None else f"exit code {record.code}"


def read_tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            return file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""


def is_full(directory: Path, error: VmmError) -> bool:
    """Whether `error` came from a full file system: by its words, or because nothing more fits there."""
    return os.strerror(errno.ENOSPC) in error.message or os.statvfs(directory).f_bavail == 0


def _os_failure(error: OSError, path: Path) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"{path}: {error.strerror}.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return NoPermission(f"{path}: {error.strerror}.")
    return VmmError(f"{path}: {error.strerror}.")
