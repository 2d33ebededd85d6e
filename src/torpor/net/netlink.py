"""The few netlink messages that slots need: links, addresses, routes, neighbours, and the host's connection tracking. Blocking; used from threads.

Written by hand because the general library takes 0.35 s to import, five times what a whole sandbox takes to start. Layouts and numbers are the kernel's
(linux/netlink.h, linux/rtnetlink.h, linux/if_link.h, linux/veth.h, linux/neighbour.h, linux/netfilter/nfnetlink_conntrack.h). A socket works in the network
namespace of the thread that opened it, wherever that thread goes later. Every request is acknowledged by the kernel; a refusal is an OSError with its errno.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Self

NETLINK_ROUTE, NETLINK_NETFILTER = 0, 12
NLM_F_REQUEST, NLM_F_ACK, NLM_F_EXCL, NLM_F_DUMP, NLM_F_CREATE = 0x1, 0x4, 0x200, 0x300, 0x400
NLM_F_DUMP_INTR = 0x10
NLMSG_ERROR, NLMSG_DONE = 2, 3
DUMP_TRIES = 20
NLA_F_NESTED, NLA_TYPE_MASK = 0x8000, 0x3FFF

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE, RTM_NEWNEIGH = 20, 24, 25, 26, 28
IFLA_ADDRESS, IFLA_IFNAME, IFLA_LINKINFO, IFLA_IFALIAS, IFLA_NET_NS_FD = 1, 3, 18, 20, 28
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 1, 2, 1
IFA_ADDRESS, IFA_LOCAL = 1, 2
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_MULTIPATH, RTA_TABLE, RTA_VIA = 1, 4, 5, 9, 15, 18
RTN_UNICAST, RT_TABLE_MAIN, RT_TABLE_LOCAL, RTPROT_STATIC, RT_SCOPE_UNIVERSE, RT_SCOPE_LINK = 1, 254, 255, 4, 0, 253
NDA_DST, NDA_LLADDR, NUD_PERMANENT = 1, 2, 0x80
IFF_UP = 1

NFNL_CONNTRACK, CT_GET, CT_DELETE = 1 << 8, 1, 2
CTA_TUPLE_ORIG, CTA_ZONE, CTA_FILTER = 1, 18, 25
CTA_TUPLE_IP, CTA_IP_V4_SRC, CTA_FILTER_ORIG_FLAGS, CTA_FILTER_REPLY_FLAGS, FILTER_IP_SRC = 1, 1, 1, 2, 1
NFNL_NFTABLES, NFT_GETTABLE, NFPROTO_INET, NFTA_TABLE_NAME = 10 << 8, 1, 1, 1

_HEADER = struct.Struct("=IHHII")
_LINK = struct.Struct("=BxHiII")
_ROUTE = struct.Struct("=BBBBBBBBI")


@dataclass(frozen=True, slots=True)
class Link:
    index: int
    name: str
    alias: str


@dataclass(frozen=True, slots=True)
class Route:
    """`links`: indexes of the interfaces it leads to. `gateway`: it leads through a router. `table`: RT_TABLE_LOCAL holds the machine's own addresses."""

    destination: IPv4Network
    links: tuple[int, ...]
    gateway: bool
    unicast: bool
    table: int


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    length = 4 + len(value)
    return struct.pack("=HH", length, kind) + value + bytes(-length % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def attributes(data: bytes) -> dict[int, bytes]:
    """The attributes of a message by kind, flags taken off; a kind that comes twice keeps its last value."""
    found: dict[int, bytes] = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if not 4 <= length <= len(data):
            raise OSError(errno.EBADMSG, "the kernel sent a broken netlink attribute")
        found[kind & NLA_TYPE_MASK] = data[4:length]
        data = data[(length + 3) & ~3 :]
    return found


def _text(value: str) -> bytes:
    return value.encode() + b"\0"


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


class Netlink:
    """A socket to one netlink family in one network namespace. `with` closes it."""

    def __init__(self, family: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family)
        self._sequence = 0
        self._interrupted = False
        try:
            self._socket.bind((0, 0))
        except OSError:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def close(self) -> None:
        self._socket.close()

    def request(self, kind: int, flags: int, payload: bytes) -> None:
        """Sends one request and waits for its acknowledgement. Raises OSError with the kernel's errno."""
        for _ in self._exchange(kind, flags | NLM_F_ACK, payload):
            pass

    def dump(self, kind: int, payload: bytes) -> list[bytes]:
        """Message bodies of a dump. Asks again when the table changed on the way; raises OSError, EINTR when it never stood still."""
        for _ in range(DUMP_TRIES):
            self._interrupted = False
            bodies = list(self._exchange(kind, NLM_F_DUMP, payload))
            if not self._interrupted:
                return bodies
        raise OSError(errno.EINTR, "the kernel's table changed during every reading of it")

    def _exchange(self, kind: int, flags: int, payload: bytes) -> Iterator[bytes]:
        self._sequence += 1
        message = _HEADER.pack(_HEADER.size + len(payload), kind, flags | NLM_F_REQUEST, self._sequence, 0) + payload
        self._socket.send(message)
        while True:
            data = self._socket.recv(1 << 18)
            while len(data) >= _HEADER.size:
                length, answer, marks, sequence, _ = _HEADER.unpack_from(data)
                body, data = data[_HEADER.size : length], data[(length + 3) & ~3 :]
                if sequence != self._sequence:
                    continue
                self._interrupted = self._interrupted or bool(marks & NLM_F_DUMP_INTR)
                if answer in (NLMSG_ERROR, NLMSG_DONE):
                    code = -struct.unpack_from("=i", body)[0] if len(body) >= 4 else 0
                    if code > 0:
                        raise OSError(code, os.strerror(code))
                    return
                yield body


class RouteNetlink(Netlink):
    """Links, addresses, routes and neighbours."""

    def __init__(self) -> None:
        super().__init__(NETLINK_ROUTE)

    def add_veth(self, name: str, peer: str, peer_namespace: int, alias: str) -> None:
        """A pair: `name` here, `peer` born in the namespace behind the descriptor. Both down. EEXIST when the name is taken."""
        other = _LINK.pack(0, 0, 0, 0, 0) + attribute(IFLA_IFNAME, _text(peer)) + attribute(IFLA_NET_NS_FD, struct.pack("=I", peer_namespace))
        kind = attribute(IFLA_INFO_KIND, b"veth") + nested(IFLA_INFO_DATA, attribute(VETH_INFO_PEER, other))
        payload = _LINK.pack(0, 0, 0, 0, 0) + attribute(IFLA_IFNAME, _text(name)) + nested(IFLA_LINKINFO, kind)
        self.request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, payload)
        self.request(RTM_NEWLINK, 0, _LINK.pack(0, 0, self.index(name), 0, 0) + attribute(IFLA_IFALIAS, alias.encode()))

    def set_up(self, name: str, mac: str = "") -> None:
        """Gives the link its address, if one is said, and puts it up."""
        address = attribute(IFLA_ADDRESS, _mac(mac)) if mac else b""
        self.request(RTM_NEWLINK, 0, _LINK.pack(0, 0, self.index(name), IFF_UP, IFF_UP) + address)

    def index(self, name: str) -> int:
        """ENODEV when there is no such link."""
        payload = _LINK.pack(0, 0, 0, 0, 0) + attribute(IFLA_IFNAME, _text(name))
        bodies = list(self._exchange(RTM_GETLINK, NLM_F_ACK, payload))
        return int(_LINK.unpack_from(bodies[0])[2])

    def delete_link(self, name: str) -> bool:
        """False when it is gone already. The kernel waits until no packet is on its way through it (20-50 ms)."""
        try:
            self.request(RTM_DELLINK, 0, _LINK.pack(0, 0, 0, 0, 0) + attribute(IFLA_IFNAME, _text(name)))
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
            return False
        return True

    def links(self) -> list[Link]:
        found = []
        for body in self.dump(RTM_GETLINK, _LINK.pack(0, 0, 0, 0, 0)):
            values = attributes(body[_LINK.size :])
            name, alias = values.get(IFLA_IFNAME, b""), values.get(IFLA_IFALIAS, b"")
            found.append(Link(_LINK.unpack_from(body)[2], name.rstrip(b"\0").decode(), alias.rstrip(b"\0").decode(errors="replace")))
        return found

    def add_address(self, name: str, address: IPv4Address, prefix: int) -> None:
        header = struct.pack("=BBBBI", socket.AF_INET, prefix, 0, RT_SCOPE_UNIVERSE, self.index(name))
        payload = header + attribute(IFA_LOCAL, address.packed) + attribute(IFA_ADDRESS, address.packed)
        self.request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, payload)

    def add_neighbour(self, name: str, address: IPv4Address, mac: str) -> None:
        header = struct.pack("=BxxxiHBB", socket.AF_INET, self.index(name), NUD_PERMANENT, 0, 0)
        self.request(RTM_NEWNEIGH, NLM_F_CREATE, header + attribute(NDA_DST, address.packed) + attribute(NDA_LLADDR, _mac(mac)))

    def add_route(self, destination: IPv4Network, name: str) -> None:
        """A route in the main table, straight onto the link. EEXIST when the very network has one, wherever it leads."""
        self._new_route(destination, name, RT_SCOPE_LINK)

    def add_default_route(self, name: str, via: IPv4Address) -> None:
        self._new_route(IPv4Network("0.0.0.0/0"), name, RT_SCOPE_UNIVERSE, attribute(RTA_GATEWAY, via.packed))

    def _new_route(self, destination: IPv4Network, name: str, scope: int, more: bytes = b"") -> None:
        header = _ROUTE.pack(socket.AF_INET, destination.prefixlen, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, scope, RTN_UNICAST, 0)
        link = attribute(RTA_OIF, struct.pack("=i", self.index(name)))
        self.request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, header + attribute(RTA_DST, destination.network_address.packed) + link + more)

    def routes(self) -> list[Route]:
        """All IPv4 routes of all tables."""
        header = _ROUTE.pack(socket.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0)
        return [_route(body) for body in self.dump(RTM_GETROUTE, header)]


def _route(body: bytes) -> Route:
    _, prefix, _, _, table, _, _, kind, _ = _ROUTE.unpack_from(body)
    values = attributes(body[_ROUTE.size :])
    links = [struct.unpack("=i", values[RTA_OIF])[0]] if RTA_OIF in values else []
    gateway = RTA_GATEWAY in values or RTA_VIA in values
    hops = values.get(RTA_MULTIPATH, b"")
    while len(hops) >= 8:
        length, index = struct.unpack_from("=HxxI", hops)
        links.append(index)
        gateway = gateway or length > 8
        hops = hops[max(8, (length + 3) & ~3) :]
    if RTA_TABLE in values:
        table = struct.unpack("=I", values[RTA_TABLE])[0]
    destination = IPv4Network((values.get(RTA_DST, bytes(4)), prefix))
    return Route(destination, tuple(links), gateway, kind == RTN_UNICAST, table)


def has_table(name: str) -> bool:
    """True if this namespace has an nftables table of family inet with this name."""
    with Netlink(NETLINK_NETFILTER) as netfilter:
        try:
            netfilter.request(NFNL_NFTABLES | NFT_GETTABLE, 0, struct.pack("=BBH", NFPROTO_INET, 0, 0) + attribute(NFTA_TABLE_NAME, _text(name)))
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            return False
    return True


def forget_connections(source: IPv4Address) -> int:
    """Removes from this namespace's connection tracking every connection that `source` began; returns how many. An entry of an established connection would
    otherwise stay for days after its sandbox and be met by the next one with that address."""
    header = struct.pack("=BBH", socket.AF_INET, 0, 0)
    wanted = nested(CTA_TUPLE_ORIG, nested(CTA_TUPLE_IP, attribute(CTA_IP_V4_SRC, source.packed)))
    flags = attribute(CTA_FILTER_ORIG_FLAGS, struct.pack("=I", FILTER_IP_SRC)) + attribute(CTA_FILTER_REPLY_FLAGS, struct.pack("=I", 0))
    removed = 0
    with Netlink(NETLINK_NETFILTER) as table:
        for body in table.dump(NFNL_CONNTRACK | CT_GET, header + wanted + nested(CTA_FILTER, flags)):
            values = attributes(body[4:])
            address = attributes(attributes(values.get(CTA_TUPLE_ORIG, b"")).get(CTA_TUPLE_IP, b"")).get(CTA_IP_V4_SRC)
            if address != source.packed:
                continue  # a kernel before 5.8 ignores the filter and tells everything
            zone = attribute(CTA_ZONE, values[CTA_ZONE]) if CTA_ZONE in values else b""
            try:
                table.request(NFNL_CONNTRACK | CT_DELETE, 0, header + nested(CTA_TUPLE_ORIG, values[CTA_TUPLE_ORIG]) + zone)
                removed += 1
            except OSError as error:
                if error.errno != errno.ENOENT:  # it ended by itself meanwhile
                    raise
    return removed
