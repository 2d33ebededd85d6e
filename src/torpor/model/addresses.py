"""Addresses that are not the public internet: what sandboxes may not reach, nor we on a tenant's word.

IPv4 by the IANA Special-Purpose Address Registry (RFC 6890 and its updates); 168.63.129.16 is Azure's metadata and DNS address, public in form only. Of IPv6
only 2000::/3 is given out at all (RFC 4291, IANA's registry of unicast addresses). What carries an IPv4 address inside (RFC 4291 2.5.5.2 mapped, RFC 6052
NAT64) is judged by that one.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

NOT_PUBLIC = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier-grade NAT, Tailscale, Alibaba's metadata
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's metadata
        "169.254.0.0/16",  # link-local, metadata of most clouds
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments, our own guests, Oracle's metadata
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays, withdrawn
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks, our own transfer addresses
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)
GIVEN_OUT_6 = IPv6Network("2000::/3")
NOT_PUBLIC_6 = tuple(
    IPv6Network(text)
    for text in (
        "2001::/23",  # protocol assignments: Teredo, ORCHID, benchmarks
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, withdrawn
        "3fff::/20",  # documentation
    )
)
NEVER: tuple[Network, ...] = (
    *(
        IPv4Network(text)
        for text in ("0.0.0.0/8", "100.100.100.200/32", "168.63.129.16/32", "169.254.0.0/16", "192.0.0.192/32", "224.0.0.0/4", "255.255.255.255/32")
    ),
    *(IPv6Network(text) for text in ("::/128", "fd00:ec2::/32", "fe80::/10", "ff00::/8")),
)
"""Metadata services and what is no single machine's address: not reached even where an operator opens a private network."""
_NAT64 = IPv6Network("64:ff9b::/96")


def plain(address: Address) -> Address:
    """The IPv4 address that an IPv6 one carries, where it carries one; else the address itself."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def is_public(address: Address) -> bool:
    """Whether packets to it go to the public internet and nowhere else."""
    found = plain(address)
    if isinstance(found, IPv4Address):
        return not any(found in network for network in NOT_PUBLIC)
    return found.scope_id is None and found in GIVEN_OUT_6 and not any(found in network for network in NOT_PUBLIC_6)
