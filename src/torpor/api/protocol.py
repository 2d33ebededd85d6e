"""uvicorn's HTTP/1.1 with bounds before a request is one: a request's line and headers must come within HEAD_SECONDS and HEAD_BYTES. Without them anybody who
can connect, key or not, could fill the server's memory with one endless header, or its table of connections with silent ones."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

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

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._in_head:
            return
        self._head_bytes += len(data)
        if self._head_bytes > HEAD_BYTES:
            self._refuse(431, b"Request Header Fields Too Large", b"too_large", b"A request's line and headers may have %d bytes." % HEAD_BYTES)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        if self._alarm is None:
            self._expect_head()

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes = False, 0
        self._head_came()
        super().on_headers_complete()

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
