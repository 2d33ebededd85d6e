"""A small QMP client: commands answered in order, descriptors passed by SCM_RIGHTS, events handed to one receiver.

QMP is JSON objects on a Unix stream: the server greets, the client negotiates with qmp_capabilities, then each command gets one return or error in the order
they were sent, and events come in between (docs/interop/qmp-spec of QEMU 8.2). Why not the qemu.qmp package: docs/decisions/0002-own-qmp-client.md.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torpor.model.errors import GuestLost, VmmError

_PIECE = 65536
_MAX_LINE = 16 << 20

EventReceiver = Callable[[str, dict[str, Any]], None]
"""Called with (event name, its data) in the order of arrival, between reads; must not block."""


class QmpClient:
    """One monitor connection. Commands may be sent by many tasks; a cancelled command is still carried out by QEMU, its answer is dropped."""

    def __init__(self, connection: socket.socket, on_event: EventReceiver, on_lost: Callable[[], None]) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._on_event = on_event
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._answers: deque[asyncio.Future[Any]] = deque()
        self._greeting: asyncio.Future[Any] = self._loop.create_future()
        self._sending = asyncio.Lock()
        self._loop.add_reader(connection.fileno(), self._readable)

    @property
    def lost(self) -> bool:
        return self._socket.fileno() < 0

    async def negotiate(self) -> None:
        """Waits for the greeting and leaves negotiation mode. Raises GuestLost, VmmError."""
        await asyncio.shield(self._greeting)
        await self.execute("qmp_capabilities")

    async def execute(self, command: str, arguments: dict[str, Any] | None = None, fds: Sequence[int] = ()) -> Any:
        """Sends one command, with `fds` beside it, and returns its answer. Raises VmmError with QEMU's words, GuestLost when the monitor is gone."""
        message: dict[str, Any] = {"execute": command}
        if arguments:
            message["arguments"] = arguments
        answer: asyncio.Future[Any] = self._loop.create_future()
        async with self._sending:
            if self.lost:
                raise GuestLost("The monitor of the microVM is gone.")
            self._answers.append(answer)
            # in the fewest bytes: QEMU reads them one by one, each in a round of its loop
            await self._send(json.dumps(message, separators=(",", ":")).encode() + b"\n", fds)
        try:
            return await answer
        except VmmError as error:
            raise VmmError(f"{command}: {error.message}") from error

    async def _send(self, data: bytes, fds: Sequence[int]) -> None:
        """All of `data`. A cancelled sender finishes first: half a command would make the monitor useless to the next one."""
        rest = memoryview(data)
        cancelled = False
        while rest:
            try:
                sent = socket.send_fds(self._socket, [rest], list(fds)) if fds else self._socket.send(rest)
                rest, fds = rest[sent:], ()
            except BlockingIOError:
                try:
                    await self._writable()
                except asyncio.CancelledError:
                    cancelled = True
            except OSError as error:
                self._lose()
                raise GuestLost(f"The monitor of the microVM is gone: {error}.") from error
        if cancelled:
            raise asyncio.CancelledError

    async def _writable(self) -> None:
        ready = asyncio.Event()
        self._loop.add_writer(self._socket.fileno(), ready.set)
        try:
            await ready.wait()
        finally:
            if not self.lost:
                self._loop.remove_writer(self._socket.fileno())

    def _readable(self) -> None:
        data = self._read()
        if data:
            self._take(data)
        elif data is not None:
            self._lose()

    def _read(self) -> bytes | None:
        """What there is; b'' at the end, None when there is nothing yet."""
        try:
            return self._socket.recv(_PIECE)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def _take(self, data: bytes) -> None:
        self._buffer += data
        *lines, rest = self._buffer.split(b"\n")
        self._buffer = bytearray(rest)
        for line in lines:
            if line.strip():
                self._receive(json.loads(line))
        if len(self._buffer) > _MAX_LINE:
            self._lose()

    def _receive(self, message: dict[str, Any]) -> None:
        if "event" in message:
            self._on_event(message["event"], message.get("data", {}))
        elif "QMP" in message:
            if not self._greeting.done():
                self._greeting.set_result(message["QMP"])
        elif self._answers:
            answer = self._answers.popleft()
            if answer.done():
                return
            if "error" in message:
                answer.set_exception(VmmError(str(message["error"].get("desc", message["error"]))))
            else:
                answer.set_result(message.get("return"))

    def _lose(self, *, quietly: bool = False) -> None:
        if self.lost:
            return
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
        for waiting in (self._greeting, *self._answers):
            if not waiting.done():
                waiting.set_exception(GuestLost("The monitor of the microVM is gone."))
                waiting.exception()  # seen: nobody may be waiting for it any more
        self._answers.clear()
        if not quietly:
            self._on_lost()

    def finish(self) -> None:
        """QEMU has ended: takes in what it said last, which may not have been read yet, and hangs up."""
        while not self.lost and (data := self._read()):
            self._take(data)
        self.close()

    def close(self) -> None:
        """Hangs up; QEMU waits for the next client. Idempotent; `on_lost` is not called."""
        self._lose(quietly=True)


def listen(path: Path) -> socket.socket:
    """A listening Unix stream socket at the new `path`, of any length. Raises OSError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        listener.bind(f"/proc/self/fd/{directory}/{path.name}")
        path.chmod(0o600)
        listener.listen(4)
    except OSError:
        listener.close()
        raise
    finally:
        os.close(directory)
    return listener


def connect(path: Path) -> socket.socket:
    """A connection to a Unix stream socket at a path of any length. Local: it completes at once or raises OSError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        connection.connect(f"/proc/self/fd/{directory}/{path.name}")
    except OSError:
        connection.close()
        raise
    finally:
        os.close(directory)
    return connection
