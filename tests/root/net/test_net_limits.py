"""What one guest may send at most, and which ICMP it may send at all, counted by a probe behind torpor's own rules."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from ipaddress import IPv4Address

import pytest
from net_world import PUBLIC, Start, World, frame

from torpor.net import namespaces
from torpor.net.plan import GATEWAY, GUEST_ADDRESS, UPLINK
from torpor.net.pool import SlotPool
from torpor.ports.network import NetworkSlot

pytestmark = pytest.mark.root

MANY = 4000


class Probe:
    """Counts packets of a slot that came past torpor's chain on the same hook: a drop there ends their way, and this chain comes later."""

    def __init__(self, slot: NetworkSlot, hook: str, **matches: str) -> None:
        self._slot = slot
        counters = "\n".join(f"counter {name} {{ }}" for name in matches)
        rules = "\n".join(f"{match} counter name {name}" for name, match in matches.items())
        self._rules = f"table inet probe {{\n{counters}\nchain seen {{\ntype filter hook {hook} priority filter + 10; policy accept;\n{rules}\n}}\n}}"

    async def start(self) -> None:
        await self._nft(["-f", "-"], self._rules)

    async def counts(self) -> dict[str, int]:
        listed = json.loads(await self._nft(["-j", "list", "counters"], ""))["nftables"]
        return {item["counter"]["name"]: item["counter"]["packets"] for item in listed if "counter" in item}

    async def _nft(self, words: list[str], text: str) -> str:
        def inside() -> str:
            namespaces.enter_file(self._slot.netns)
            return subprocess.run(["nft", *words], input=text, capture_output=True, text=True, check=True).stdout

        return await namespaces.in_own_thread(inside)


def checksum(data: bytes) -> bytes:
    total = sum(int.from_bytes(data[i : i + 2]) for i in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF).to_bytes(2)


def packet(protocol: int, payload: bytes, target: str) -> bytes:
    """An Ethernet frame with an IPv4 packet from the guest's own address."""
    made = frame(b"", target=target)
    head = bytearray(made[14:34])
    head[2:4] = (20 + len(payload)).to_bytes(2)
    head[9] = protocol
    head[10:12] = bytes(2)
    head[10:12] = checksum(bytes(head))
    return made[:14] + bytes(head) + payload


def syn(number: int, target: str) -> bytes:
    """The first segment of a TCP connection to port 53, from a port of its own (RFC 9293 3.1)."""
    segment = bytearray((1024 + number).to_bytes(2) + (53).to_bytes(2) + (1).to_bytes(4) + bytes(4) + bytes([0x50, 2, 16, 0]) + bytes(4))
    pseudo = GUEST_ADDRESS.packed + IPv4Address(target).packed + bytes([0, 6]) + len(segment).to_bytes(2)
    segment[16:18] = checksum(pseudo + bytes(segment))
    return packet(6, bytes(segment), target)


def icmp(kind: int, number: int, target: str) -> bytes:
    message = bytearray(bytes([kind, 0, 0, 0]) + number.to_bytes(2) + bytes(14))
    message[2:4] = checksum(bytes(message))
    return packet(1, bytes(message), target)


FLOODS = {
    "udp": (lambda number: frame(number.to_bytes(2) + bytes(10), target=str(GATEWAY), port=53), "udp dport 53", 500, 500),
    "tcp": (lambda number: syn(number, str(GATEWAY)), "tcp dport 53 tcp flags & (syn | ack) == syn", 50, 50),
    "ping": (lambda number: icmp(8, number, str(GATEWAY)), "icmp type echo-request", 100, 5),
}
"""What is sent, how the probe knows it, packets per second, and packets at once."""


@pytest.mark.parametrize("flood", FLOODS)
async def test_a_flood_at_the_gateway_is_cut_to_its_rate(world: World, pool: SlotPool, start: Start, flood: str) -> None:
    """The bound holds on a machine of any speed: what may pass grows with the time that the flood took."""
    make, match, rate, burst = FLOODS[flood]
    slot, guest = await start(pool)
    probe = Probe(slot, "input", passed=match)
    await probe.start()
    packets = [make(number) for number in range(MANY)]
    began = time.monotonic()
    await asyncio.to_thread(lambda: [guest.inject(one) for one in packets])
    took = time.monotonic() - began
    passed = (await probe.counts())["passed"]
    assert burst <= passed <= burst + rate * took + 1
    assert passed < MANY, "the flood was no flood"


async def test_of_icmp_only_echo_requests_leave(world: World, pool: SlotPool, start: Start) -> None:
    """Timestamp, information and address mask requests are requests, too, for connection tracking; replies and errors that nobody asked for are invalid."""
    slot, guest = await start(pool)
    kinds = (0, 3, 5, 8, 9, 11, 13, 15, 17)
    probe = Probe(slot, "forward", **{f"kind_{kind}": f'oifname "{UPLINK}" icmp type {kind}' for kind in kinds})
    await probe.start()
    for kind in kinds:
        guest.inject(icmp(kind, 7, PUBLIC[0]))
    await guest.send(PUBLIC[0], b"barrier")
    world.net.payloads(b"barrier")
    assert {name: count for name, count in (await probe.counts()).items() if count} == {"kind_8": 1}


async def test_refusals_are_told_within_bounds(world: World, pool: SlotPool, start: Start) -> None:
    """Each costs an ICMP message of the kernel, whose allowance the whole machine shares."""
    slot, guest = await start(pool)
    probe = Probe(slot, "output", told="icmp type destination-unreachable")
    await probe.start()
    packets = [frame(b"no", target="10.9.9.9", port=1024 + number) for number in range(MANY)]
    began = time.monotonic()
    await asyncio.to_thread(lambda: [guest.inject(one) for one in packets])
    took = time.monotonic() - began
    told = (await probe.counts())["told"]
    assert 1 <= told <= 50 + 50 * took + 1
    assert not world.net.seen
