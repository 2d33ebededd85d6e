"""TLS to a server in a sandbox that speaks nothing else. Its certificate is not checked: there is nobody between us and the guest, and it is self-signed."""

from __future__ import annotations

import asyncio
import ssl

from torpor.model.errors import GuestError
from torpor.ports.guest import ByteStream


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    return context


_CONTEXT = _context()


class TlsStream:
    """A ByteStream through another. One reader and one writer at a time."""

    def __init__(self, carrier: ByteStream, name: str) -> None:
        self._carrier = carrier
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = _CONTEXT.wrap_bio(self._in, self._out, server_hostname=name or None)
        self._turn = asyncio.Lock()

    async def handshake(self) -> None:
        """Raises GuestError when the server speaks no TLS, and what the carrier raises."""
        while True:
            try:
                self._tls.do_handshake()
                await self._flush()
                return
            except ssl.SSLWantReadError:
                await self._flush()
                await self._fill()
            except ssl.SSLError as error:
                raise GuestError(f"The server speaks no TLS: {error.reason or error}.") from None

    async def read(self, limit: int = 65536) -> bytes:
        while True:
            try:
                return self._tls.read(limit)
            except ssl.SSLWantReadError:
                await self._flush()  # what TLS itself has to say, such as to a new key
                await self._fill()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b""
            except ssl.SSLError as error:
                raise GuestError(f"The server broke TLS: {error.reason or error}.") from None

    async def write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self._tls.write(rest[:65536]) :]
            except ssl.SSLError as error:
                raise GuestError(f"The server broke TLS: {error.reason or error}.") from None
            await self._flush()

    async def close_write(self) -> None:
        """TLS 1.3 can end one half, Python's cannot: the server sees the end of ours when the stream is closed."""

    def close(self) -> None:
        self._carrier.close()

    async def _flush(self) -> None:
        async with self._turn:
            if data := self._out.read():
                await self._carrier.write(data)

    async def _fill(self) -> None:
        data = await self._carrier.read(65536)
        if data:
            self._in.write(data)
        else:
            self._in.write_eof()
