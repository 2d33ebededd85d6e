"""Network options: what clients may ask for, checked as E2B checks it, and what of it torpor has."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any

import idna
from pydantic import Field

from torpor.api.e2b.common import Body, Text
from torpor.api.e2b.errors import NotBuilt
from torpor.model.domains import EVERYTHING, domain, domains_of, is_network
from torpor.model.errors import InvalidInput
from torpor.model.records import Exposure
from torpor.model.sandbox import Egress

_MOST = 1000
_MASK = re.compile(r"[A-Za-z0-9._-]{1,253}(:(\$\{PORT\}|[0-9]{1,5}))?\Z")
_ENVD_PORT = 49983

Places = Annotated[list[Text] | None, Field(max_length=_MOST)]


class Outward(Body):
    """What a running sandbox's network may be changed to."""

    allowOut: Places = None
    denyOut: Places = None
    dnsServers: list[Text] | None = None
    egressProxy: dict[str, Any] | None = None
    rules: dict[str, Any] | None = None


class Network(Outward):
    allowPublicTraffic: bool | None = None
    maskRequestHost: Text | None = None
    httpsPorts: list[int] | None = None


class NetworkUpdate(Outward):
    allow_internet_access: bool | None = None


def egress_of(wanted: Outward, internet: bool | None) -> Egress:
    """`internet` False is the same as everything denied. Raises InvalidInput, NotBuilt."""
    allow, deny = list(wanted.allowOut or ()), list(wanted.denyOut or ())
    for place in deny:
        if not is_network(place):
            raise InvalidInput(f"denyOut: {place[:60]!r} is no IP address or CIDR block; domains cannot be denied.")
    if internet is False and EVERYTHING not in deny:
        deny.append(EVERYTHING)
    egress = Egress(tuple(place if is_network(place) else _domain(place) for place in allow), tuple(deny))
    domains_of(egress)
    if wanted.rules:
        raise NotBuilt("header transforms (network.rules)")
    if wanted.egressProxy:
        raise NotBuilt("a proxy of your own for egress (network.egressProxy)")
    if wanted.dnsServers:
        raise NotBuilt("DNS servers of your own (network.dnsServers)")
    return egress


def _domain(place: str) -> str:
    """As it was given, but for letters beyond ASCII: those are written as TLS and HTTP write them. Raises InvalidInput."""
    star = "*." if place.startswith("*.") else ""
    if not place.isascii():
        try:
            place = star + idna.encode(place.removeprefix(star), uts46=True).decode()
        except idna.IDNAError:
            raise InvalidInput(f"allowOut: {place[:60]!r} is no IP address, CIDR block or domain.") from None
    domain(place)
    return place


def exposure_of(wanted: Network, *, secure: bool) -> Exposure:
    """Raises InvalidInput."""
    public = wanted.allowPublicTraffic is not False
    if not public and not secure:
        raise InvalidInput("allowPublicTraffic: public traffic can be switched off for secure sandboxes only.")
    mask = wanted.maskRequestHost or ""
    if mask and not _MASK.match(mask):
        raise InvalidInput("maskRequestHost: a host name in ASCII, and `:${PORT}` or a port behind it if need be.")
    return Exposure(public, secure, mask, _ports(wanted.httpsPorts or ()))


def _ports(given: Sequence[int]) -> tuple[int, ...]:
    if any(not 1 <= port <= 65535 or port == _ENVD_PORT for port in given) or len(given) > 100:
        raise InvalidInput(f"httpsPorts: up to 100 ports, 1 to 65535, but not {_ENVD_PORT}.")
    return tuple(sorted(set(given)))


def tree(exposure: Exposure, egress: Egress) -> dict[str, Any]:
    """The JSON of what a sandbox has."""
    fields: dict[str, Any] = {"allowPublicTraffic": exposure.public_ports}
    if egress.allow:
        fields["allowOut"] = list(egress.allow)
    if egress.deny:
        fields["denyOut"] = list(egress.deny)
    if exposure.mask_host:
        fields["maskRequestHost"] = exposure.mask_host
    if exposure.tls_ports:
        fields["httpsPorts"] = list(exposure.tls_ports)
    return fields
