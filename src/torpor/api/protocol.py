"""uvicorn's HTTP/1.1 with bounds before a request is one: a request's line and headers must come within HEAD_SECONDS and HEAD_BYTES. Without them anybody who
can connect, key or not, could fill the server's memory with one endless header, or its table of connections with silent ones.

Beyond that each request can break off or take over its connection (api.connection). Which requests to switch protocols are handed to the application whole,
instead of being answered as WebSockets here, `app.state.claims` says.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from torpor.api.connection import EXTENSION, Tunnel, reset

HEAD_BYTES = 64 << 10
HEAD_SECONDS = 10.0
_REFUSAL = b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s"


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._in_head = True
        self._head_bytes = 0
        self._alarm: asyncio.TimerHandle | None = None
        self._claimed = False
        """The last request asks for a switch that the application decides on; nothing follows it as HTTP."""
        self._switching = False
        """That request is complete: what comes is another protocol's."""
        self._after_head = b""
        self._tunnel: Tunnel | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        if self._tunnel is not None:
            self._tunnel.lost()
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]
        """A client that ends its half of a taken connection may still read; one that does so in HTTP has left. TLS knows no half."""
        if self._tunnel is None or self.scheme == "https":
            return False
        self._tunnel.end()
        return True

    def data_received(self, data: bytes) -> None:
        if self._tunnel is not None:
            self._tunnel.feed(data)
            return
        if self._switching:
            self._hold(data)
            return
        self._parse(data)
        if not self._in_head:
            return
        self._head_bytes += len(data)
        if self._head_bytes > HEAD_BYTES:
            self._refuse(431, b"Request Header Fields Too Large", b"too_large", b"A request's line and headers may have %d bytes." % HEAD_BYTES)

    def _parse(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as switch:
            if self._claimed:
                self._switching = True
                self._hold(data[switch.args[0] :])
            elif self._should_upgrade():
                self.handle_websocket_upgrade()
            elif rest := data[switch.args[0] :]:  # a switch that nobody here knows: the next request follows
                self._parse(rest)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")

    def _hold(self, data: bytes) -> None:
        self._after_head += data
        if len(self._after_head) > HEAD_BYTES:
            self.flow.pause_reading()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        if self._alarm is None:
            self._expect_head()

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes = False, 0
        self._head_came()
        self._claimed = self.parser.should_upgrade() and self._get_upgrade() is not None and self._claims()
        self.scope["extensions"] = {EXTENSION: _Below(self, self._claimed)}  # type: ignore[dict-item]
        given = self.url
        if given.startswith(b"//"):  # would be read as the address of a host
            self.url = b"http://-" + given
        super().on_headers_complete()
        self.url = given
        if self.cycle is not None and self.cycle.transport is self.transport:  # a WebSocket begins none
            self.cycle.transport = _Answer(self.transport, self.loop)  # type: ignore[assignment]
        if self._claimed:
            self.cycle.keep_alive = False

    def _claims(self) -> bool:
        claims = getattr(getattr(self.app, "state", None), "claims", None)
        return claims is not None and bool(claims(self.scope))

    def _should_upgrade(self) -> bool:
        return not self._claimed and super()._should_upgrade()

    def abort(self) -> None:
        reset(self.transport)

    def take(self) -> Tunnel:
        """For the last request, which asked for it."""
        cycle = self.cycle
        assert not cycle.response_started
        cycle.response_started = cycle.response_complete = True
        self._tunnel = Tunnel(self.transport, self.flow, self._after_head, self.abort)
        self._after_head = b""
        if self.transport.is_closing():
            self._tunnel.lost()
        self.flow.resume_reading()
        return self._tunnel

    # Bounds

    def _expect_head(self) -> None:
        self._alarm = self.loop.call_later(HEAD_SECONDS, self._late)

    def _head_came(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _late(self) -> None:
        self._alarm = None
        self._refuse(408, b"Request Timeout", b"timed_out", b"No request came in time.")

    def _refuse(self, status: int, words: bytes, code: bytes, message: bytes) -> None:
        """Answers and closes, unless an earlier request of this connection is still being answered: then it only closes."""
        self._head_came()
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            body = b'{"error":{"code":"%s","reason":"%s","message":"%s","request_id":""}}' % (code, code, message)
            self.transport.write(_REFUSAL % (status, words, len(body), body))
        self.transport.close()


class _Answer:
    """The transport of one answer. Its head waits for the body, at most for this turn of the event loop: a short answer is one write then, and wakes the client
    once."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._begun = False
        self._head = b""

    def write(self, data: bytes) -> None:
        if self._begun:
            head, self._head = self._head, b""
            self._transport.write(head + data)
        else:
            self._begun, self._head = True, data
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def _flush(self) -> None:
        if self._head:
            self.write(b"")


class _Below:
    """api.connection.Connection of one request."""

    def __init__(self, protocol: BoundedProtocol, wants_switch: bool) -> None:
        self._protocol = protocol
        self.wants_switch = wants_switch

    def abort(self) -> None:
        self._protocol.abort()

    def take(self) -> Tunnel:
        assert self.wants_switch
        return self._protocol.take()
