"""ports.guest.Guest over a channel: each operation of the port as one request of the protocol."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from torpor.guestlink import convert, older
from torpor.guestlink.channel import Channel, Request
from torpor.guestlink.process import RemoteProcess, begin
from torpor.guestlink.streams import Stream
from torpor.log import Log
from torpor.model.errors import Denied, DenyReason, GuestLost, GuestProtocolError, InvalidInput
from torpor.ports.guest import ExecSpec, FileInfo, Metrics, ProcessInfo, Quiesced, Terminal, Wake, WatchEvent
from torpor.wire import guest as wire

log = Log()

Json = dict[str, Any]
T = TypeVar("T")
_MOST_LISTED = 64 << 20
"""Bytes of JSON lines that an answer may have in all; the agent refuses to list more than 48 MiB."""
_MOST_LINE = 1 << 20
_WAKE_SECONDS = 10.0
_DISK = "disk"
"""The step of a wake that grows the file system, as the agent names it."""


class RemoteGuest:
    """A session. Made by Link."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    @property
    def generation(self) -> int:
        return self._channel.generation

    @property
    def disk_fault(self) -> str:
        return "; ".join(str(item.get("message", "no reason given"))[:300] for item in self._failures() if item.get("step") == _DISK)

    @property
    def default_user(self) -> str:
        return str(self._channel.welcome.get("user", "root"))

    @property
    def default_home(self) -> str:
        home = self._channel.welcome.get("home")
        return home if isinstance(home, str) and home.startswith("/") else "/root"

    async def ping(self) -> None:
        await self._channel.call("ping")

    # Commands

    async def exec(self, spec: ExecSpec) -> RemoteProcess:
        if not spec.argv:
            raise InvalidInput("A command needs at least its name.")
        return await begin(self._channel, "exec", convert.exec_args(spec))

    async def attach(self, exec_id: str, *, stdout_offset: int = 0, stderr_offset: int = 0, present: bool = False) -> RemoteProcess:
        if present and self._level < 3:
            return await older.attach(self, exec_id, stdout_offset, stderr_offset)
        return await begin(self._channel, "attach", {"exec_id": exec_id, "stdout": stdout_offset, "stderr": stderr_offset})

    async def processes(self) -> Sequence[ProcessInfo]:
        return [self._convert(convert.process, line) async for line in self._lines("processes", {})]

    async def signal(self, exec_id: str, number: int) -> None:
        await self._channel.call("signal", exec_id=exec_id, number=number)

    async def kill_tree(self, exec_id: str) -> None:
        await self._channel.call("kill", exec_id=exec_id)

    async def send_input(self, exec_id: str, source: AsyncIterator[bytes] | bytes) -> None:
        self._demand_level(2, "take input for a command that nobody is attached to")
        await self._upload("input", {"exec_id": exec_id}, source)

    async def close_input(self, exec_id: str) -> None:
        self._demand_level(2, "close the input of a command that nobody is attached to")
        await self._channel.call("close_input", exec_id=exec_id)

    async def resize(self, exec_id: str, terminal: Terminal) -> None:
        await self._channel.call("resize", exec_id=exec_id, rows=terminal.rows, columns=terminal.columns)

    async def forget(self, exec_id: str) -> None:
        await self._channel.call("forget", exec_id=exec_id)

    # Files

    async def read_file(self, path: str, *, offset: int = 0, length: int | None = None, user: str = "") -> AsyncIterator[bytes]:
        request, reply = await self._opened("read", {"path": path, "offset": offset, "length": length, "user": user, "bulk": True}, (False, True))
        stream = request.streams[0]
        if reply.get("window") == wire.WIDE_WINDOW:
            stream.widen()
        try:
            while data := await stream.read():
                yield data
        finally:
            stream.close()

    async def write_file(
        self,
        path: str,
        source: AsyncIterator[bytes] | bytes,
        *,
        mode: int | None = None,
        user: str = "",
        append: bool = False,
        offset: int | None = None,
        make_parents: bool = True,
        sync: bool = False,
    ) -> FileInfo:
        args = {"path": path, "mode": mode, "user": user, "append": append, "offset": offset, "make_parents": make_parents, "sync": sync}
        return self._convert(convert.file_info, await self._upload("write", args, source))

    async def rewrite_file(
        self, path: str, source: AsyncIterator[bytes] | bytes, *, owner: str, attributes: Mapping[str, bytes] | None = None, replaced: str = ""
    ) -> FileInfo:
        if self._level < 2:
            return await older.rewrite_file(self, path, source, owner, attributes or {}, replaced)
        given = {name: base64.b64encode(value).decode() for name, value in (attributes or {}).items()}
        args = {"path": path, "user": "root", "rewrite": True, "owner": owner, "attributes": given, "replaced": replaced}
        return self._convert(convert.file_info, await self._upload("write", args, source))

    async def _upload(self, op: str, args: Json, source: AsyncIterator[bytes] | bytes) -> Json:
        """A request with a stream from the source; its answer. It says that a wide window may be granted."""
        request = self._channel.start(op, args | {"window": wire.WIDE_WINDOW}, main=(True, False))
        stream = request.streams[0]
        stream.widen(bulk=self._level >= 3)
        try:
            await self._feed(stream, source, request)
            return await self._channel.finish(request)
        finally:
            stream.close()
            request.reply.cancel()

    async def _feed(self, stream: Stream, source: AsyncIterator[bytes] | bytes, request: Request) -> None:
        """Sends the source until its end, or until the guest has answered: that can only be an error, which the answer's reader raises."""
        if isinstance(source, bytes):
            await self._offer(stream, source)
        else:
            async for data in source:
                if request.reply.done() or not await self._offer(stream, data):
                    return
        stream.finish()

    @staticmethod
    async def _offer(stream: Stream, data: bytes) -> bool:
        try:
            await stream.write(data)
        except Exception:
            if stream.failure is None:
                raise
            return False
        return True

    async def stat(self, path: str, *, follow: bool = True, details: bool = False) -> FileInfo:
        more = {"details": True} if details else {}
        found = self._convert(convert.file_info, await self._channel.call("stat", path=path, follow=follow, **more))
        return await older.detailed(self, found) if details and found.details is None else found

    async def list_directory(self, path: str, *, depth: int = 1, details: bool = False) -> Sequence[FileInfo]:
        args = {"path": path, "depth": depth} | ({"details": True} if details else {})
        found = [self._convert(convert.file_info, line) async for line in self._lines("list", args)]
        return [await older.detailed(self, each) if details and each.details is None else each for each in found]

    async def make_directory(self, path: str, *, mode: int = 0o755, parents: bool = True, user: str = "", owner: str = "") -> bool:
        if owner and self._level < 2:
            return await older.make_directory(self, path, mode, owner)
        reply = await self._channel.call("mkdir", path=path, mode=mode, parents=parents, user=user, **({"owner": owner} if owner else {}))
        return self._convert(lambda fields: convert.get(fields, "made", bool), reply)

    async def move(self, source: str, target: str) -> None:
        await self._channel.call("move", source=source, target=target)

    async def remove(self, path: str, *, recursive: bool = False) -> None:
        await self._channel.call("remove", path=path, recursive=recursive)

    async def symlink(self, target: str, path: str, *, user: str = "") -> None:
        await self._channel.call("symlink", target=target, path=path, user=user)

    async def chmod(self, path: str, mode: int) -> None:
        await self._channel.call("chmod", path=path, mode=mode)

    async def chown(self, path: str, user: str, group: str = "") -> None:
        await self._channel.call("chown", path=path, user=user, group=group)

    async def get_xattrs(self, path: str) -> Mapping[str, bytes]:
        return dict([self._convert(convert.xattr, line) async for line in self._lines("get_xattrs", {"path": path})])

    async def set_xattr(self, path: str, name: str, value: bytes | None) -> None:
        await self._channel.call("set_xattr", path=path, name=name, value=base64.b64encode(value).decode() if value is not None else None)

    async def watch(self, path: str, *, recursive: bool = False, exact: bool = False) -> AsyncIterator[WatchEvent]:
        async with aclosing(await self.watching(path, recursive=recursive, exact=exact)) as events:
            async for event in events:
                yield event

    async def watching(self, path: str, *, recursive: bool = False, exact: bool = False) -> AsyncGenerator[WatchEvent, None]:
        args = {"path": path, "recursive": recursive} | ({"exact": True} if exact else {})
        request, _ = await self._opened("watch", args, (False, True))
        return self._events(request)

    async def _events(self, request: Request) -> AsyncGenerator[WatchEvent, None]:
        async for line in self._split(request, None):
            yield self._convert(convert.watch_event, line)

    # Ports

    async def connect(self, port: int, host: str = "") -> RemoteStream:
        request, _ = await self._opened("connect", {"port": port, "host": host}, (True, True))
        return RemoteStream(request.streams[0])

    # The machine

    async def metrics(self) -> Metrics:
        return self._convert(convert.metrics, await self._channel.call("metrics"))

    async def quiesce(self) -> Quiesced:
        return self._convert(convert.quiesced, await self._channel.call("quiesce"))

    async def thaw(self) -> None:
        await self._channel.call("thaw", clock=time.time())

    async def wake(self, wake: Wake) -> None:
        await self._channel.open(wake.generation, convert.wake_fields(wake), _WAKE_SECONDS)
        self.check_wake()

    def check_wake(self) -> None:
        """Raises GuestProtocolError for a step of the agent's own that failed: such a guest is not what it should be, and must not be used. Two kinds are no
        reason to keep a sandbox, and the files in it, from waking: a hook, which is the user's, known by its path, and a file system that did not grow,
        which is as large as it was (`disk_fault`)."""
        failures = self._failures()
        bearable = [item for item in failures if item.get("step") == _DISK or str(item.get("step", "")).startswith("/")]
        if bearable != failures:
            raise GuestProtocolError(f"The guest could not wake: {str(failures)[:500]}.")
        if failures:
            log.warning("wake_steps_failed", generation=self.generation, failures=str(failures)[:500])

    def _failures(self) -> list[Json]:
        """What the welcome says of failed steps. Raises GuestProtocolError when that is no list of them."""
        failures = self._channel.welcome.get("failures") or []
        if not isinstance(failures, list) or not all(isinstance(item, dict) for item in failures):
            raise GuestProtocolError(f"The guest could not wake: {str(failures)[:500]}.")
        return failures

    async def grow_root(self) -> int:
        return self._convert(lambda fields: convert.get(fields, "bytes", int), await self._channel.call("grow"))

    async def sync(self) -> None:
        await self._channel.call("sync")

    async def shutdown(self) -> None:
        with suppress(GuestLost):  # the answer may be overtaken by the end
            await self._channel.call("shutdown")

    async def close(self) -> None:
        self._channel.end(GuestLost("The session was closed."))

    # Inside

    async def _opened(self, op: str, args: Json, main: tuple[bool, bool]) -> tuple[Request, Json]:
        request = self._channel.start(op, args, main=main)
        return request, await self._channel.finish(request)

    async def _lines(self, op: str, args: Json, *, most: int | None = _MOST_LISTED) -> AsyncIterator[Json]:
        """The JSON lines that an operation streams; `most` bytes of them in all."""
        request, _ = await self._opened(op, args, (False, True))
        async for line in self._split(request, most):
            yield line

    async def _split(self, request: Request, most: int | None) -> AsyncIterator[Json]:
        stream, rest, total = request.streams[0], b"", 0
        try:
            while data := await stream.read():
                total += len(data)
                *lines, rest = (rest + data).split(b"\n")
                if len(rest) > _MOST_LINE or (most is not None and total > most):
                    raise self._violation("an answer beyond all bounds")
                for line in lines:
                    yield self._convert(wire.from_json, line)
        finally:
            stream.close()

    @property
    def _level(self) -> int:
        """What the agent can do: wire.LEVEL."""
        level = self._channel.welcome.get("level", 1)
        return level if isinstance(level, int) else 1

    def _demand_level(self, level: int, what: str) -> None:
        if self._level < level:
            raise Denied(DenyReason.TOO_OLD, f"The agent in this sandbox is too old to {what}.", mend="Boot the sandbox cold, or attach to the command.")

    def _convert(self, conversion: Callable[[Any], T], value: Any) -> T:
        try:
            return conversion(value)
        except wire.ProtocolError as error:
            raise self._violation(str(error)) from None

    def _violation(self, text: str) -> GuestProtocolError:
        failure = GuestProtocolError(f"The guest agent broke the protocol: {text}.")
        self._channel.end(failure)
        return failure


class RemoteStream:
    """ports.guest.ByteStream: a TCP connection inside the guest."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._rest = b""
        self._lock = asyncio.Lock()

    async def read(self, limit: int = 65536) -> bytes:
        if not self._rest:
            self._rest = await self._stream.read()
        data, self._rest = self._rest[:limit], self._rest[limit:]
        return data

    async def write(self, data: bytes) -> None:
        async with self._lock:
            await self._stream.write(data)

    async def close_write(self) -> None:
        self._stream.finish()

    def close(self) -> None:
        self._stream.close()
