"""What a slot is made of, as data: names, addresses and the list of small steps that build it. Pure: nothing here touches the machine.

    microVM            slot's network namespace                    host
    +---------+        +---------------------------------+        +--------------------------------+
    | eth0 ---|- fd ---| tap0                        up0 |- veth -| trp<home>-<n>   ...   uplink   |
    | .0.2/30 |        | 192.0.0.1/30   transfer odd /31 |        | transfer even /31     (eth0)   |
    +---------+        +---------------------------------+        +--------------------------------+
                         rules.slot_rules, DNS relay's               rules.host_rules
                         sockets on 192.0.0.1:53

Guest addresses and MACs are the same in every slot, so that any clone of a snapshot runs in any slot. 192.0.0.0/29 is set aside by RFC 7335 for links between
a function and its own host: no LAN, cloud, VPN or container network uses it. The transfer addresses come from one block per home (by default out of
198.18.0.0/15, RFC 2544), chosen so that no route of the host overlaps it; each slot has a /31 of it (RFC 3021).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from torpor.model.errors import InvalidInput

GUEST_MAC = "02:74:72:70:00:01"
TAP_MAC = "02:74:72:70:00:02"
UPLINK_MAC = "02:74:72:70:00:03"
HOST_MAC = "02:74:72:70:00:04"
GATEWAY = IPv4Address("192.0.0.1")
GUEST_ADDRESS = IPv4Address("192.0.0.2")
GUEST_PREFIX = 30
MTU = 1500
DNS_PORT = 53
GATE_PORT = 7654
"""Where a slot's gate takes the connections that are led to it; nobody else is at home in a slot."""
FIRST_GATE_UID, GATE_SHARES, GATE_UIDS = 0x1000_0000, 1024, 1 << 17
"""Above those of microVMs. A gate's user id follows from its home and its slot's number, so that no two processes that may be attacked share one."""
TAP = "tap0"
LOOPBACK = "lo"
UPLINK = "up0"
ANY_HOME = "trp"

BLOCK_PREFIX = 20
CANDIDATES = (IPv4Network("198.18.0.0/15"), IPv4Network("10.213.0.0/16"), IPv4Network("172.29.0.0/16"))

GUEST: Mapping[str, str] = {
    "address": str(GUEST_ADDRESS),
    "prefix": str(GUEST_PREFIX),
    "gateway": str(GATEWAY),
    "dns": str(GATEWAY),
    "mac": GUEST_MAC,
    "mtu": str(MTU),
}


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """`pool`: ready slots kept in store. `transfer`: the block for transfer addresses, None to choose a free one. `connections`: tracked connections a
    sandbox may have at once (each costs the host about 600 bytes of kernel memory, in the slot's table and in the host's)."""

    pool: int = 4
    transfer: IPv4Network | None = None
    connections: int = 8192

    def __post_init__(self) -> None:
        if self.pool < 0 or self.connections < 1:
            raise InvalidInput("The network pool holds 0 or more slots, and a sandbox needs at least 1 connection.")
        if self.transfer is not None and self.transfer.prefixlen > 30:
            raise InvalidInput(f"The transfer range {self.transfer} is too small: /30 or larger.")


def home_tag(home: Path) -> str:
    """Six hex digits that name this home in interface and table names. `home` must be absolute and resolved."""
    return hashlib.sha256(str(home).encode()).hexdigest()[:6]


def capacity(transfer: IPv4Network) -> int:
    """How many slots a block holds; number 0 is left unused, so that the block's own address never sits on an interface."""
    return transfer.num_addresses // 2 - 1


def slot_address(transfer: IPv4Network, number: int) -> IPv4Address:
    """The slot's end of transfer network `number`; the host's is the one before."""
    return transfer[2 * number + 1]


def choose_block(tag: str, taken: Iterable[IPv4Network]) -> Iterable[IPv4Network]:
    """Blocks free of every network in `taken` (default routes count for nothing), in the order this home should try them: homes start at different
    places, so that two seldom want the same."""
    busy = list(taken)
    for candidate in CANDIDATES:
        blocks = list(candidate.subnets(new_prefix=BLOCK_PREFIX))
        start = int(tag, 16) % len(blocks)
        for block in blocks[start:] + blocks[:start]:
            if free_of(block, busy):
                yield block


def free_of(block: IPv4Network, taken: Iterable[IPv4Network]) -> bool:
    """True if no network in `taken` overlaps the block; default routes, also those made of two or four halves, count for nothing."""
    return not any(block.overlaps(network) for network in taken if network.prefixlen >= 3)


class Where(Enum):
    """The namespace a step works in."""

    HOST = "host"
    SLOT = "slot"


@dataclass(frozen=True, slots=True)
class MakeNamespace:
    """A new network namespace, pinned to the file `at` by a bind mount."""

    at: Path

    def describe(self) -> str:
        return f"slot: new network namespace at {self.at}"


@dataclass(frozen=True, slots=True)
class MakeTap:
    """A persistent tap, one queue, no packet information header, no virtio header. Its first descriptor is kept for the VMM."""

    name: str

    def describe(self) -> str:
        return f"slot: new tap {self.name}"


@dataclass(frozen=True, slots=True)
class MakeVeth:
    """A pair from the host into the slot. The alias names the slot: a later owner of the home reads it from the kernel."""

    host: str
    slot: str
    alias: str

    def describe(self) -> str:
        return f"host: new veth {self.host} ({self.alias}) with {self.slot} in the slot"


@dataclass(frozen=True, slots=True)
class SetSysctl:
    """`key` below /proc/sys, with slashes. `optional`: a kernel without it needs no setting (IPv6 compiled out or switched off)."""

    where: Where
    key: str
    value: str
    optional: bool = False

    def describe(self) -> str:
        return f"{self.where.value}: {self.key} = {self.value}"


@dataclass(frozen=True, slots=True)
class SetLink:
    """Gives a link its address and puts it up."""

    where: Where
    name: str
    mac: str

    def describe(self) -> str:
        return f"{self.where.value}: link {self.name} {self.mac} up"


@dataclass(frozen=True, slots=True)
class AddAddress:
    where: Where
    name: str
    address: IPv4Address
    prefix: int

    def describe(self) -> str:
        return f"{self.where.value}: address {self.address}/{self.prefix} on {self.name}"


@dataclass(frozen=True, slots=True)
class AddNeighbour:
    """A permanent neighbour: no ARP question before the first packet, and none that a guest could answer falsely."""

    where: Where
    name: str
    address: IPv4Address
    mac: str

    def describe(self) -> str:
        return f"{self.where.value}: neighbour {self.address} is {self.mac} on {self.name}"


@dataclass(frozen=True, slots=True)
class AddDefaultRoute:
    """The slot's only way out."""

    via: IPv4Address
    name: str

    def describe(self) -> str:
        return f"slot: default route via {self.via} on {self.name}"


@dataclass(frozen=True, slots=True)
class Listen:
    """Opens the DNS relay's UDP and TCP sockets inside the slot."""

    address: IPv4Address
    port: int

    def describe(self) -> str:
        return f"slot: listen on {self.address}:{self.port} for DNS"


Step = MakeNamespace | MakeTap | MakeVeth | SetSysctl | SetLink | AddAddress | AddNeighbour | AddDefaultRoute | Listen


@dataclass(frozen=True, slots=True)
class SlotPlan:
    """One slot. `name` is `<number>.<token>`: the number gives interface and addresses, the token sets apart the slots that have had it one after another."""

    tag: str
    number: int
    token: str
    directory: Path
    transfer: IPv4Network

    @property
    def name(self) -> str:
        return f"{self.number}.{self.token}"

    @property
    def netns(self) -> Path:
        return self.directory / self.name

    @property
    def host_link(self) -> str:
        return link_name(self.tag, self.number)

    @property
    def host_address(self) -> IPv4Address:
        return self.transfer[2 * self.number]

    @property
    def slot_address(self) -> IPv4Address:
        return slot_address(self.transfer, self.number)

    @property
    def gate_uid(self) -> int:
        return FIRST_GATE_UID + int(self.tag, 16) % GATE_SHARES * GATE_UIDS + self.number % GATE_UIDS

    def steps(self) -> tuple[Step, ...]:
        """What builds the slot, in order. The slot's rules come last, in one transaction; nobody has the tap before that."""
        return (MakeNamespace(self.netns), *_namespace_sysctls(), *self._inside(), *self._outside())

    def _inside(self) -> tuple[Step, ...]:
        slot = Where.SLOT
        return (
            MakeTap(TAP),
            SetSysctl(slot, f"net/ipv4/conf/{TAP}/rp_filter", "1"),
            SetSysctl(slot, f"net/ipv4/conf/{TAP}/arp_ignore", "1"),
            SetLink(slot, TAP, TAP_MAC),
            AddAddress(slot, TAP, GATEWAY, GUEST_PREFIX),
            AddNeighbour(slot, TAP, GUEST_ADDRESS, GUEST_MAC),
            Listen(GATEWAY, DNS_PORT),
            MakeVeth(self.host_link, UPLINK, self.name),
            SetLink(slot, UPLINK, UPLINK_MAC),
            AddAddress(slot, UPLINK, self.slot_address, 31),
            AddNeighbour(slot, UPLINK, self.host_address, HOST_MAC),
            AddDefaultRoute(self.host_address, UPLINK),
        )

    def _outside(self) -> tuple[Step, ...]:
        host, link = Where.HOST, self.host_link
        conf = f"net/ipv4/conf/{link}"
        return (
            SetSysctl(host, f"net/ipv6/conf/{link}/disable_ipv6", "1", optional=True),
            SetSysctl(host, f"{conf}/forwarding", "1"),
            SetSysctl(host, f"{conf}/rp_filter", "1"),
            SetSysctl(host, f"{conf}/accept_redirects", "0"),
            SetSysctl(host, f"{conf}/send_redirects", "0"),
            SetLink(host, link, HOST_MAC),
            AddAddress(host, link, self.host_address, 31),
            AddNeighbour(host, link, self.slot_address, UPLINK_MAC),
        )


def _namespace_sysctls() -> tuple[Step, ...]:
    slot, track = Where.SLOT, "net/netfilter/nf_conntrack"
    return (
        SetSysctl(slot, "net/ipv6/conf/all/disable_ipv6", "1", optional=True),
        SetSysctl(slot, "net/ipv6/conf/default/disable_ipv6", "1", optional=True),
        SetSysctl(slot, "net/ipv4/ip_forward", "1"),
        SetSysctl(slot, "net/ipv4/conf/all/send_redirects", "0"),
        SetSysctl(slot, "net/ipv4/conf/default/send_redirects", "0"),
        SetSysctl(slot, "net/ipv4/conf/all/accept_redirects", "0"),
        # The rules bound how many refusals a guest is told; the kernel's one a second would make it wait.
        SetSysctl(slot, "net/ipv4/icmp_ratelimit", "0"),
        # Half-open and ended connections count against the sandbox's own bound: let them go sooner than a router would.
        SetSysctl(slot, f"{track}_tcp_timeout_syn_sent", "30", optional=True),
        SetSysctl(slot, f"{track}_tcp_timeout_time_wait", "15", optional=True),
    )


def link_name(tag: str, number: int) -> str:
    """The host's end of a slot: at most 14 characters of the 15 that Linux allows."""
    return f"{ANY_HOME}{tag}-{number}"


def link_number(name: str, tag: str) -> int | None:
    """The number in a link's name, None for what is no slot's link of this home."""
    number = name.removeprefix(f"{ANY_HOME}{tag}-")
    return int(number) if number != name and number.isascii() and number.isdecimal() else None


def claim_name(tag: str) -> str:
    """The link that holds a home's transfer block: a tun that nobody reads, so that packets to slots that are gone end there."""
    return f"{ANY_HOME}{tag}"


def parse_name(name: str, tag: str, directory: Path, transfer: IPv4Network) -> SlotPlan:
    """The plan of a slot by its name. Raises InvalidInput for what is no slot name or lies outside the block."""
    number, dot, token = name.partition(".")
    sound = dot and number.isascii() and number.isdecimal() and len(token) == 8 and token.isascii() and token.isalnum()
    if not sound or not 1 <= int(number) <= capacity(transfer):
        raise InvalidInput(f"{name[:40]!r} is not a network slot of this home.")
    return SlotPlan(tag, int(number), token, directory, transfer)
