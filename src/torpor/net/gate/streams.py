"""Sockets as the gate uses them: no buffer but the piece that is on its way, so that a slow reader slows the writer and memory stays bounded."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable

PIECE = 32768
LINGER_SECONDS = 2.0
LINGER_PIECES = 8
_KEEP_IDLE, _KEEP_INTERVAL, _KEEP_COUNT = 60, 15, 4


class Stream:
    """One end of a connection. `touched` is called whenever bytes moved. Owns the socket."""

    def __init__(self, connection: socket.socket, touched: Callable[[], None]) -> None:
        self._socket = connection
        self._touched = touched
        self._loop = asyncio.get_running_loop()
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in ((socket.TCP_KEEPIDLE, _KEEP_IDLE), (socket.TCP_KEEPINTVL, _KEEP_INTERVAL), (socket.TCP_KEEPCNT, _KEEP_COUNT)):
            connection.setsockopt(socket.IPPROTO_TCP, option, value)

    async def receive(self, most: int = PIECE) -> bytes:
        """b'' at the end. When cancelled, nothing that came is lost (unlike loop.sock_recv). For one task at a time. Raises OSError."""
        while True:
            try:
                data = self._socket.recv(most)
            except BlockingIOError:
                await self._readable()
            else:
                self._touched()
                return data

    async def _readable(self) -> None:
        ready: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(self._socket, _set, ready)
        try:
            await ready
        finally:
            self._loop.remove_reader(self._socket)

    async def send(self, data: bytes) -> None:
        """Raises OSError."""
        if data:
            await self._loop.sock_sendall(self._socket, data)
            self._touched()

    def end(self) -> None:
        """Nothing more will be sent. Raises OSError."""
        self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._socket.close()

    def abort(self) -> None:
        """The other side sees a reset, not an end: what it has of a message is not taken for the whole."""
        if self._socket.fileno() >= 0:
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._socket.close()

    async def close_gently(self) -> None:
        """So that the last words arrive although the other side may still be sending, within bounds."""
        try:
            with contextlib.suppress(OSError):  # TimeoutError is one
                self.end()
                async with asyncio.timeout(LINGER_SECONDS):
                    for _ in range(LINGER_PIECES):
                        if not await self.receive():
                            break
        finally:
            self._socket.close()


def _set(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


async def join(guest: Stream, server: Stream, on_half: Callable[[], None]) -> None:
    """Carries bytes both ways until both have ended; an end is passed on. `on_half`: one way has ended. Raises OSError when either side breaks off."""

    async def pour(source: Stream, target: Stream) -> None:
        while data := await source.receive():
            await target.send(data)
        target.end()
        on_half()

    try:
        async with asyncio.TaskGroup() as both:
            both.create_task(pour(guest, server))
            both.create_task(pour(server, guest))
    except* OSError as errors:
        raise ConnectionResetError(str(errors.exceptions[0])) from None
