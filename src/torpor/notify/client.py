"""The one HTTP client that messages leave through. One connection a request; nothing of the environment (proxies, netrc, cookies) is used.

The guard sits where the connection is made: a host that a library made up by itself is judged like any other.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import certifi
import httpcore

from torpor.model.errors import InvalidInput, Undelivered
from torpor.notify.guard import Guard, server_of

MOST_ANSWER = 64 << 10
"""Bytes of an answer that are read."""
_CONNECT_SECONDS = 5.0
_OURS = frozenset({"host", "accept-encoding", "connection", "content-length", "transfer-encoding"})


@dataclass(frozen=True, slots=True)
class Answer:
    """Header names are in small letters. `body`: at most MOST_ANSWER bytes of it."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def refusal(self, who: str) -> Undelivered | None:
        """None when the status is a 2xx. A redirect is none."""
        return None if 200 <= self.status < 300 else Undelivered(f"{who} answered {self.status}.", retry_after=self.retry_after())

    def retry_after(self) -> float:
        text = self.headers.get("retry-after", "").strip()
        return float(text) if self.status in (429, 503) and text.isascii() and text.isdigit() and len(text) < 7 else 0.0


class _Guarded(httpcore.AsyncNetworkBackend):
    """Connects to the addresses that the guard has seen."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        failure: Exception = httpcore.ConnectError("no address")
        for address, at in await self._guard.places(host, port):
            try:
                return await self._inner.connect_tcp(address, at, timeout, local_address, socket_options)
            except httpcore.NetworkError as error:
                failure = error
        raise failure

    async def connect_unix_socket(self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None) -> httpcore.AsyncNetworkStream:
        raise Undelivered("Messages go to servers only.")

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


@dataclass(frozen=True)
class Client:
    """`authorities`: a PEM file of certificate authorities to trust beside the machine's own."""

    guard: Guard = field(default_factory=Guard)
    authorities: str = ""

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        for file in (certifi.where(), self.authorities):
            if file:
                context.load_verify_locations(file)
        return context

    async def request(self, method: str, url: str, headers: Mapping[str, str], body: bytes, *, timeout: float) -> Answer:
        """One request within `timeout` seconds from the first look-up to the last byte. Raises Undelivered; it may then have arrived all the same."""
        try:
            host, _ = server_of(url)
        except InvalidInput as error:
            raise Undelivered(error.message) from None
        try:
            async with asyncio.timeout(timeout):
                return await self._exchange(method, url, headers, body)
        except TimeoutError:
            raise Undelivered(f"{host} did not answer within {timeout:.0f} s.") from None
        except httpcore.ConnectError as error:
            why = "has no certificate that can be trusted" if "CERTIFICATE" in str(error) else "could not be reached"
            raise Undelivered(f"{host} {why}.") from None
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, httpcore.UnsupportedProtocol):
            raise Undelivered(f"{host} broke off, or did not speak HTTP.") from None

    async def _exchange(self, method: str, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        parts = urlsplit(url)
        host, port = server_of(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        place = httpcore.URL(scheme=parts.scheme.encode(), host=host.encode(), port=port, target=target.encode())
        sent = [(name, value) for name, value in headers.items() if name.lower() not in _OURS]
        sent += [("Host", parts.netloc), ("Accept-Encoding", "identity"), ("Connection", "close"), ("Content-Length", str(len(body)))]
        async with httpcore.AsyncConnectionPool(ssl_context=self._tls, network_backend=_Guarded(self.guard), max_connections=1, http2=False) as pool:
            async with pool.stream(method, place, headers=sent, content=body, extensions={"timeout": {"connect": _CONNECT_SECONDS}}) as response:
                held = bytearray()
                async for chunk in response.aiter_stream():
                    held += chunk[: MOST_ANSWER - len(held)]
                    if len(held) >= MOST_ANSWER:
                        break
                seen = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
                return Answer(response.status, seen, bytes(held))
