"""Where a name is: asked by the gate itself, of the slot's DNS relay. What the guest believes about the name plays no part.

An answer is kept for as long as it holds, and for STALE_SECONDS more in case nobody answers: while the host agent is away, names that were looked up before
stay known (RFC 8767). Only addresses of the public internet are ever returned.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address

from torpor.model.addresses import is_public
from torpor.net import dns

ASK_SECONDS = 5.0
TRIES = 2
KEPT = 256
SHORTEST, LONGEST, STALE_SECONDS = 1, 300, 3600
MOST_ADDRESSES = 8
_LARGEST = 65535


class Unknown(Exception):
    """The name has no address on the public internet, or nobody answers for it."""


@dataclass(frozen=True, slots=True)
class _Kept:
    addresses: tuple[IPv4Address, ...]
    until: float


class Lookup:
    """`relay`: address and port of the slot's DNS relay."""

    def __init__(self, relay: tuple[str, int], clock: Callable[[], float] = time.monotonic) -> None:
        self._relay = relay
        self._clock = clock
        self._kept: OrderedDict[str, _Kept] = OrderedDict()

    async def find(self, name: str) -> tuple[IPv4Address, ...]:
        """At least one address. Raises Unknown."""
        kept, now = self._kept.get(name), self._clock()
        if kept is None or kept.until <= now:
            answer = await self._ask(name)
            if answer is not None:
                kept = _Kept(answer.addresses, now + min(max(answer.seconds, SHORTEST), LONGEST))
                self._keep(name, kept)
            elif kept is None or kept.until + STALE_SECONDS <= now:
                raise Unknown(f"nobody answers for {name}")
        reachable = tuple(address for address in kept.addresses if is_public(address))
        if not reachable:
            raise Unknown(f"{name} is not on the public internet")
        return reachable[:MOST_ADDRESSES]

    def _keep(self, name: str, kept: _Kept) -> None:
        self._kept[name] = kept
        self._kept.move_to_end(name)
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)

    async def _ask(self, name: str) -> dns.Found | None:
        """None when nobody knows at present."""
        question = dns.ask(secrets.randbelow(1 << 16), name)
        for _ in range(TRIES):
            with contextlib.suppress(OSError, dns.Broken):  # refused, timed out, nonsense: once more
                async with asyncio.timeout(ASK_SECONDS):
                    found = await self._by_datagram(question)
                    if found.cut:
                        found = await self._by_stream(question)
                if found.code in (0, dns.NO_SUCH_NAME):
                    return found
        return None

    async def _by_datagram(self, question: bytes) -> dns.Found:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as asker:
            asker.connect(self._relay)
            asker.send(question)
            while True:
                answer = await loop.sock_recv(asker, _LARGEST)
                with contextlib.suppress(dns.Broken):  # a late answer to a question of before
                    return dns.found(answer, question)

    async def _by_stream(self, question: bytes) -> dns.Found:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as asker:
            await loop.sock_connect(asker, self._relay)
            await loop.sock_sendall(asker, len(question).to_bytes(2) + question)
            data = b""
            while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2]):
                piece = await loop.sock_recv(asker, _LARGEST)
                if not piece:
                    raise dns.Broken("an answer that ends too early")
                data += piece
        return dns.found(data[2:], question)
