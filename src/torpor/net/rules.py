"""The firewall, as nftables text: one ruleset per slot, inside its namespace, and one table for the home on the host. Pure.

A guest's packet passes, in the slot: `hygiene` (source address and MAC), then `input` (the gateway: DNS and ping only) or `forward` (`egress`: nothing
private, then what its sandbox allows, what it denies; counted), then masquerade; on the host: `arrival` (nothing addressed to the host itself, whatever the
address), `forward` (nothing private, no other sandbox), then masquerade. The guest is behind the tap and cannot reach either ruleset; the VMM sits in the
namespace without any right over it, and `output` lets nothing of its own out.

Where names are allowed, `divert` leads the guest's TCP connections to the gate (net.gate), which judges them by name and connects on its own behalf: beside the
guest's, its packets are the only ones that leave a slot, and only to public addresses.

What is not the public internet is listed in model.addresses.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, collapse_addresses, ip_network

from torpor.model.addresses import NOT_PUBLIC
from torpor.model.domains import EVERYTHING, domains_of, is_network
from torpor.model.errors import InvalidInput
from torpor.model.sandbox import Egress
from torpor.net.plan import ANY_HOME, DNS_PORT, GATE_PORT, GATEWAY, GUEST_ADDRESS, GUEST_MAC, LOOPBACK, TAP, UPLINK, SlotPlan

ALLOWED, DENIED = "allowed", "denied"
"""A slot's own sets, empty unless its sandbox has an egress of its own."""
NAMES = "names"
"""A slot's chain before DNS: empty, or it refuses; with a gate, it takes in what was led there."""
DIVERT = "divert"
"""The chain that leads a guest's TCP connections to the gate: there only where there is one."""
OWN_ARRIVAL, OWN_INPUT, OWN_OUTPUT = OWN = ("own_arrival", "own_input", "own_output")
"""A slot's chains for packets of no guest's: empty, so that all of them are dropped, unless it has a gate."""

REFUSE = """chain refuse {
        limit rate 50/second burst 50 packets reject with icmpx type admin-prohibited
        drop
    }"""
"""Tells the guest at once, within bounds: the kernel's allowance for ICMP messages is shared by the whole machine."""


def slot_rules(plan: SlotPlan, connections: int) -> str:
    """The whole ruleset of one slot's namespace. `connections` bounds what the guest may have tracked at once."""
    return f"""
table inet torpor {{
    {_forbidden_set()}

    {REFUSE}

    set {ALLOWED} {{
        type ipv4_addr
        flags interval
    }}

    set {DENIED} {{
        type ipv4_addr
        flags interval
    }}

    chain {NAMES} {{
    }}

    chain {OWN_ARRIVAL} {{
    }}

    chain {OWN_INPUT} {{
    }}

    chain {OWN_OUTPUT} {{
    }}

    chain hygiene {{
        type filter hook prerouting priority raw; policy drop;
        iifname "{UPLINK}" ip daddr {plan.slot_address} accept
        iifname != "{TAP}" goto {OWN_ARRIVAL}
        meta nfproto != ipv4 drop
        ether saddr != {GUEST_MAC} drop
        ip saddr != {GUEST_ADDRESS} drop
        ip daddr {GATEWAY} udp dport {DNS_PORT} notrack accept
        meta l4proto {{ tcp, udp, icmp }} accept
    }}

    chain input {{
        type filter hook input priority filter; policy drop;
        iifname != "{TAP}" goto {OWN_INPUT}
        ip daddr != {GATEWAY} goto refuse
        jump {NAMES}
        udp dport {DNS_PORT} limit rate over 500/second burst 500 packets drop
        udp dport {DNS_PORT} accept
        ct state established,related accept
        tcp dport {DNS_PORT} limit rate over 50/second burst 50 packets drop
        tcp dport {DNS_PORT} ct state new accept
        icmp type echo-request limit rate 100/second accept
        goto refuse
    }}

    chain forward {{
        type filter hook forward priority filter; policy drop;
        ct state invalid drop
        iifname "{TAP}" oifname "{UPLINK}" jump egress
        iifname "{UPLINK}" oifname "{TAP}" ct state established,related accept
    }}

    chain egress {{
        ip daddr @forbidden goto refuse
        ip daddr @{ALLOWED} goto admitted
        ip daddr @{DENIED} goto refuse
        goto admitted
    }}

    chain admitted {{
        ct state established,related accept
        meta l4proto icmp icmp type != echo-request drop
        ct state new ct count over {connections} goto refuse
        ct state new accept
    }}

    chain unanswered {{
        type filter hook output priority raw; policy accept;
        oifname "{TAP}" udp sport {DNS_PORT} notrack
    }}

    chain output {{
        type filter hook output priority filter; policy drop;
        oifname != "{TAP}" goto {OWN_OUTPUT}
        ip saddr {GATEWAY} udp sport {DNS_PORT} accept
        ct state established,related accept
        meta l4proto icmp icmp type {{ destination-unreachable, time-exceeded, parameter-problem }} accept
    }}

    chain source_nat {{
        type nat hook postrouting priority srcnat; policy accept;
        oifname "{UPLINK}" masquerade
    }}
}}
"""


def egress_rules(egress: Egress, gate: Gate | None = None) -> str:
    """Where a slot's guest may go, in the place of what its ruleset said so far; one transaction. Connections that are open are judged packet by packet. Of
    IPv6 nothing passes anyway. `gate`: where the egress allows domains, the slot's process that judges by name; TCP connections to what is neither forbidden
    nor allowed by its address are led there. Raises InvalidInput for what is no network, address or domain."""
    domains = domains_of(egress)
    denied = collapsed(egress.deny)
    allowed = collapsed(place for place in egress.allow if not domains or is_network(place))
    text = [f"flush set inet torpor {name}\n{_elements(name, networks)}" for name, networks in ((ALLOWED, allowed), (DENIED, denied))]
    text.append(f"flush chain inet torpor {NAMES}\n")
    if denied == [IPv4Network(EVERYTHING)] and not domains:
        text += [f"add rule inet torpor {NAMES} {protocol} dport {DNS_PORT} goto refuse\n" for protocol in ("udp", "tcp")]
    text.append(f"add chain inet torpor {DIVERT} {{ type nat hook prerouting priority dstnat; policy accept; }}\nflush chain inet torpor {DIVERT}\n")
    text += [f"add chain inet torpor {chain}\nflush chain inet torpor {chain}\n" for chain in OWN]
    if domains:
        assert gate is not None
        text += [f"add rule inet torpor {rule}\n" for rule in _gate_rules(gate)]
    else:
        text.append(f"delete chain inet torpor {DIVERT}\n")
    return "".join(text)


@dataclass(frozen=True, slots=True)
class Gate:
    """`uid`: whose packets may leave the slot beside the guest's. `connections`: how many of the guest's may be tracked at once."""

    uid: int
    connections: int


def _gate_rules(gate: Gate) -> tuple[str, ...]:
    ours = f"meta skuid {gate.uid}"
    led = f"tcp dport {GATE_PORT} ct status dnat"
    return (
        f'{DIVERT} iifname "{TAP}" meta l4proto tcp ip daddr != @forbidden ip daddr != @{ALLOWED} redirect to :{GATE_PORT}',
        f"{NAMES} {led} ct state established,related accept",
        f"{NAMES} {led} ct state new ct count over {gate.connections} goto refuse",
        f"{NAMES} {led} ct state new accept",
        f'{OWN_ARRIVAL} iifname "{LOOPBACK}" accept',
        f"{OWN_INPUT} ct state established,related accept",
        f'{OWN_INPUT} iifname "{LOOPBACK}" ip daddr {GATEWAY} meta l4proto {{ tcp, udp }} th dport {DNS_PORT} accept',
        f"{OWN_OUTPUT} ct state established,related accept",
        f'{OWN_OUTPUT} oifname "{LOOPBACK}" ip daddr {GATEWAY} meta l4proto {{ tcp, udp }} th dport {DNS_PORT} {ours} accept',
        f'{OWN_OUTPUT} oifname "{UPLINK}" ip daddr != @forbidden meta l4proto tcp {ours} ct state new accept',
    )


def collapsed(given: Iterable[str]) -> list[IPv4Network]:
    """The IPv4 ones among these, sorted, without overlaps: a set of intervals takes none. Raises InvalidInput."""
    networks = []
    for text in given:
        try:
            networks.append(ip_network(text, strict=False))
        except ValueError:
            raise InvalidInput(f"{text[:60]!r} is no network or address.") from None
    return list(collapse_addresses(network for network in networks if isinstance(network, IPv4Network)))


def _elements(name: str, networks: Iterable[IPv4Network]) -> str:
    listed = ", ".join(f"{network[0]}-{network[-1]}" if network.num_addresses > 1 else str(network[0]) for network in networks)
    return f"add element inet torpor {name} {{ {listed} }}\n" if listed else ""


def table_name(tag: str) -> str:
    """The home's table on the host."""
    return f"torpor_{tag}"


def host_rules(tag: str, transfer: IPv4Network, opened: Iterable[str]) -> str:
    """The home's table on the host, replacing an earlier one in the same transaction. `opened`: uplinks that route only for our sake; the table sees to
    it that they do so for nobody else (published container ports, being DNATed, still work)."""
    ours, any_home = f"{ANY_HOME}{tag}-*", f"{ANY_HOME}*"
    elements = ", ".join(f'"{name}"' for name in sorted(opened))
    opened_elements = f"elements = {{ {elements} }}" if elements else ""
    return f"""
table inet {table_name(tag)}
delete table inet {table_name(tag)}
table inet {table_name(tag)} {{
    {_forbidden_set()}

    set opened {{
        type ifname
        {opened_elements}
    }}

    {REFUSE}

    chain arrival {{
        type filter hook prerouting priority mangle; policy accept;
        iifname != "{ours}" accept
        meta nfproto != ipv4 drop
        ip saddr != {transfer} drop
        fib daddr type != unicast goto refuse
    }}

    chain input {{
        type filter hook input priority filter - 10; policy accept;
        iifname "{ours}" goto refuse
    }}

    chain forward {{
        type filter hook forward priority filter - 10; policy accept;
        iifname "{ours}" jump outward
        oifname "{ours}" jump inward
        iifname @opened jump bystanders
    }}

    chain outward {{
        oifname "{any_home}" goto refuse
        ip daddr @forbidden goto refuse
        tcp flags syn tcp option maxseg size set rt mtu
        ct state established,related,new accept
        drop
    }}

    chain inward {{
        ct state established,related accept
        drop
    }}

    chain bystanders {{
        ct state established,related accept
        ct status dnat accept
        drop
    }}

    chain source_nat {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr {transfer} oifname != "{any_home}" masquerade
    }}
}}
"""


def _forbidden_set() -> str:
    return f"""set forbidden {{
        type ipv4_addr
        flags interval
        elements = {{ {", ".join(map(str, NOT_PUBLIC))} }}
    }}"""
