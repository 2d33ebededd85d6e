"""A client's connection below HTTP: broken off with a reset, or taken over as raw bytes once a protocol switch was agreed on.

The server puts one into each request's scope: `connection_of(scope)`.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Protocol

from starlette.types import Scope
from uvicorn.protocols.http.flow_control import FlowControl

EXTENSION = "torpor.connection"
HELD_BYTES = 256 << 10
"""What a taken connection holds of its client's bytes before it reads no more."""
_RESET = struct.pack("ii", 1, 0)


class Connection(Protocol):
    """What a request may do with the connection it came over."""

    @property
    def wants_switch(self) -> bool:
        """Whether the request asks for another protocol (`Connection: Upgrade`), which this connection leaves to whoever takes it over."""
        ...

    def abort(self) -> None:
        """Breaks it off at once, with a TCP reset: nobody takes what was sent for a whole answer. Idempotent."""
        ...

    def take(self) -> Tunnel:
        """From here on the connection's bytes are the taker's; HTTP ends on it. To be called before any part of a response was sent."""
        ...


def connection_of(scope: Scope) -> Connection:
    found: Connection = scope["extensions"][EXTENSION]
    return found


def reset(transport: asyncio.Transport) -> None:
    """Closes with a TCP reset instead of an orderly end."""
    carrier = transport.get_extra_info("socket")
    if carrier is not None and not transport.is_closing():
        carrier.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()


class Tunnel:
    """The raw bytes of a connection; one reader and one writer at a time. `feed`, `end` and `lost` are for the connection's protocol."""

    def __init__(self, transport: asyncio.Transport, flow: FlowControl, first: bytes, cut: Callable[[], None]) -> None:
        self._transport = transport
        self._flow = flow
        self._cut = cut
        self._held = bytearray(first)
        self._over = False
        self._lost = False
        self._news = asyncio.Event()

    def feed(self, data: bytes) -> None:
        self._held += data
        if len(self._held) > HELD_BYTES:
            self._flow.pause_reading()
        self._news.set()

    def end(self) -> None:
        """The client sends no more, but may still read."""
        self._over = True
        self._news.set()

    def lost(self) -> None:
        self._lost = True
        self.end()

    async def read(self) -> bytes:
        """The client's next bytes, b'' when it sends no more. Raises ConnectionResetError when the connection is gone."""
        while not self._held:
            if self._lost:
                raise ConnectionResetError("The client is gone.")
            if self._over:
                return b""
            self._news.clear()
            await self._news.wait()
        data, self._held = bytes(self._held), bytearray()
        if not self._transport.is_closing():
            self._flow.resume_reading()
        return data

    async def write(self, data: bytes) -> None:
        """Returns when the connection took them. Raises ConnectionResetError when it is gone."""
        if self._lost or self._transport.is_closing():
            raise ConnectionResetError("The client is gone.")
        self._transport.write(data)
        if self._flow.write_paused:
            await self._flow.drain()

    def close_write(self) -> None:
        """Nothing more will be written; the client may send on. Where the connection cannot say that (TLS), it ends altogether."""
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()

    def close(self) -> None:
        """An orderly end of both directions, once what was written is sent."""
        self._transport.close()

    def abort(self) -> None:
        self._cut()
