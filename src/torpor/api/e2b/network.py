"""Network options: what clients may ask for, checked as E2B checks it, and what of it torpor has."""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import ip_network
from typing import Annotated, Any

from pydantic import Field

from torpor.api.e2b.common import Body, Text
from torpor.api.e2b.errors import NotBuilt
from torpor.model.errors import InvalidInput
from torpor.model.records import Exposure
from torpor.model.sandbox import Egress

ALL = "0.0.0.0/0"
_MOST = 1000
_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_DOMAIN = re.compile(rf"(\*\.)?({_LABEL}\.)*{_LABEL}\.?\Z|\*\Z", re.IGNORECASE)
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
        if not _is_network(place):
            raise InvalidInput(f"denyOut: {place[:60]!r} is no IP address or CIDR block; domains cannot be denied.")
    if internet is False and ALL not in deny:
        deny.append(ALL)
    domains = [place for place in allow if not _is_network(place)]
    for domain in domains:
        if not _DOMAIN.match(domain):
            raise InvalidInput(f"allowOut: {domain[:60]!r} is no IP address, CIDR block or domain.")
    if domains and ALL not in deny:
        raise InvalidInput(f"allowOut: a domain is allowed only where {ALL} is denied (denyOut).")
    if domains:
        raise NotBuilt("egress rules by domain (allowOut); IP addresses and CIDR blocks are enforced")
    if wanted.rules:
        raise NotBuilt("header transforms (network.rules)")
    if wanted.egressProxy:
        raise NotBuilt("a proxy of your own for egress (network.egressProxy)")
    if wanted.dnsServers:
        raise NotBuilt("DNS servers of your own (network.dnsServers)")
    return Egress(tuple(allow), tuple(deny))


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


def _is_network(place: str) -> bool:
    try:
        ip_network(place, strict=False)
    except ValueError:
        return False
    return "%" not in place


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
