"""Which servers may be reached. A name is resolved once, every address it has is judged, and the connection goes to one of those: what the name says a
moment later (DNS rebinding) does not matter, nor how an address was spelled (`0x7f.1`, `2130706433`, `[::ffff:127.0.0.1]`).
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit

from torpor.model.addresses import NEVER, Address, Network, is_public, plain
from torpor.model.errors import InvalidInput, Undelivered

MOST_URL = 2048
RESOLVE_SECONDS = 5.0
_VISIBLE = re.compile(r"[\x21-\x7e]+\Z")
_HOST = re.compile(r"[A-Za-z0-9._:%-]+\Z")

Place = tuple[str, int]
"""An address and a port."""
Resolve = Callable[[str, int], Awaitable[Sequence[Place]]]


async def resolve(host: str, port: int) -> Sequence[Place]:
    """By the machine's own resolver, which also takes every spelling of a numeric address. Raises OSError, UnicodeError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return [(str(where[0]), int(where[1])) for *_, where in found]


@dataclass(frozen=True, slots=True)
class Guard:
    """`allowed`: private networks that an operator opened."""

    allowed: Sequence[Network] = ()
    resolve: Resolve = resolve

    def permits(self, address: Address) -> bool:
        found = plain(address)
        if any(found in network for network in NEVER):
            return False
        return is_public(address) or any(found in network for network in self.allowed)

    async def places(self, host: str, port: int) -> Sequence[Place]:
        """Where that server is. Raises Undelivered: it has no address, or one that may not be reached."""
        try:
            async with asyncio.timeout(RESOLVE_SECONDS):
                places = await self.resolve(host, port)
        except (OSError, UnicodeError, TimeoutError):  # TimeoutError is an OSError; named for the reader
            raise Undelivered(f"{host[:200]} has no address.") from None
        if not places:
            raise Undelivered(f"{host[:200]} has no address.")
        if not all(self.permits(ip_address(address)) for address, _ in places):
            raise Undelivered(f"{host[:200]} is not on the public internet.", mend="An operator can open private networks with the setting notify_networks.")
        return places

    async def check(self, host: str, port: int) -> None:
        """Raises InvalidInput for a server that may not be reached."""
        try:
            await self.places(host, port)
        except Undelivered as error:
            raise InvalidInput(error.message, mend=error.mend) from None


def networks(names: str) -> tuple[Network, ...]:
    """The networks of a setting, joined by commas. Raises ValueError."""
    return tuple(ip_network(name.strip()) for name in names.split(",") if name.strip())


def server_of(url: str, schemes: Sequence[str] = ("http", "https")) -> Place:
    """The host and port of an address that a message may be sent to. Raises InvalidInput."""
    expected = f"an address such as {schemes[-1]}://example.org/hook, without a name or password in it"
    try:
        if len(url) > MOST_URL or not _VISIBLE.match(url) or "\\" in url:
            raise ValueError
        parts = urlsplit(url)
        if parts.scheme not in schemes or not parts.hostname or "@" in parts.netloc or parts.fragment or not _HOST.match(parts.hostname):
            raise ValueError
        return parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise InvalidInput(f"This is not {expected}.") from None
