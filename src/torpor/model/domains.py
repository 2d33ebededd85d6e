"""Names of machines on the internet, in one spelling, and the domains that an egress allows.

A name is what TLS calls a server name (RFC 6066: ASCII, no trailing dot) and HTTP a host: letters, digits, hyphens, underscores; `xn--...` for other
alphabets (RFC 5890). What a browser takes for an address (WHATWG URL, "ends in a number": 127.1, 0x7f000001, 2130706433) is no name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_network

from torpor.model.errors import InvalidInput
from torpor.model.sandbox import Egress

EVERYTHING = "0.0.0.0/0"
ANY = "*"
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?:{_LABEL}\.)*{_LABEL}\Z")
_NUMBER = re.compile(r"(?:[0-9]+|0x[0-9a-f]*)\Z")
_LONGEST = 253


def normal(text: str) -> str | None:
    """The name in lower case without its trailing dot; None for what is no name."""
    if not text.isascii():
        return None
    name = text.lower().removesuffix(".")
    if len(name) > _LONGEST or not _NAME.match(name) or _NUMBER.match(name.rpartition(".")[2]):
        return None
    return name


def is_network(text: str) -> bool:
    """True for an IP address or a CIDR block, without a zone."""
    try:
        ip_network(text, strict=False)
    except ValueError:
        return False
    return "%" not in text


def domain(text: str) -> str:
    """What an egress may allow beside networks, in its one spelling: `name`, `*.name`, `*`. Raises InvalidInput."""
    if text == ANY:
        return ANY
    star = text.startswith("*.")
    name = normal(text.removeprefix("*."))
    if name is None:
        raise InvalidInput(f"{text[:60]!r} is no IP address, CIDR block or domain.")
    return f"*.{name}" if star else name


def domains_of(egress: Egress) -> tuple[str, ...]:
    """The domains that it allows, sorted. Raises InvalidInput: no domain, or one where not everything is denied, so that it would say nothing."""
    found = {domain(place) for place in egress.allow if not is_network(place)}
    if found and EVERYTHING not in egress.deny:
        raise InvalidInput(f"A domain is allowed only where {EVERYTHING} is denied.")
    return tuple(sorted(found))


class Domains:
    """Which names are allowed. `name` covers itself alone, `*.name` whatever lies below it, `*` every name. An address is never covered."""

    def __init__(self, domains: Iterable[str] = ()) -> None:
        self.listed = frozenset(domains)

    def cover(self, name: str) -> bool:
        """`name`: as `normal` makes it."""
        if name in self.listed or ANY in self.listed:
            return True
        above = name.partition(".")[2]
        while above:
            if f"*.{above}" in self.listed:
                return True
            above = above.partition(".")[2]
        return False
