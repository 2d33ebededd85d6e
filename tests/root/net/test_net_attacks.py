"""What a guest must reach, and what it must not, shown by trying."""

from __future__ import annotations

import errno
import socket
import subprocess
from pathlib import Path

import pytest
from net_world import HOST_LAN, HOST_PUBLIC, HOST_SECOND, PRIVATE, PUBLIC, ROUTER, Guest, Namespace, OpenPool, Server, Start, World, frame

from torpor.net import namespaces
from torpor.net.netlink import RouteNetlink
from torpor.net.plan import GATEWAY, SlotPlan
from torpor.net.pool import SlotPool

pytestmark = pytest.mark.root


async def assert_prohibited(guest: Guest, address: str, port: int = 80) -> None:
    """Refused at once by a rule (an ICMP prohibition, EHOSTUNREACH to the caller), neither answered nor left to time out."""
    with pytest.raises(OSError) as refusal:
        await guest.call(address, port)
    assert refusal.value.errno == errno.EHOSTUNREACH, f"{address}: {refusal.value}"


@pytest.mark.parametrize("address", PUBLIC)
async def test_the_internet_is_reached_and_sees_the_hosts_address(world: World, pool: SlotPool, start: Start, address: str) -> None:
    _, guest = await start(pool)
    assert await guest.call(address) == HOST_PUBLIC.encode() + b"\n"


async def test_ping_and_udp_reach_the_internet(world: World, pool: SlotPool, start: Start) -> None:
    _, guest = await start(pool)
    assert await guest.ask(ROUTER, b"hello", port=80) == b"hello"
    assert await guest.ping(PUBLIC[0])
    assert await guest.ping(str(GATEWAY))


async def test_the_host_itself_would_reach_all_that_guests_must_not(world: World) -> None:
    """The control: without it the next tests could pass because nothing is there."""
    for address in (*PRIVATE, HOST_PUBLIC, HOST_SECOND, HOST_LAN):
        greeting = world.host.run(lambda a=address: subprocess.run(["bash", "-c", f"read line < /dev/tcp/{a}/80; echo $line"], capture_output=True))
        assert greeting.stdout.count(b".") == 3, (address, greeting.stderr)


async def test_private_link_local_and_metadata_addresses_are_prohibited(world: World, pool: SlotPool, start: Start) -> None:
    _, guest = await start(pool)
    for address in PRIVATE:
        await assert_prohibited(guest, address)
    assert not world.net.seen


async def test_no_address_of_the_host_is_reached(world: World, pool: SlotPool, start: Start) -> None:
    slot, guest = await start(pool)
    plan = plan_of(pool, slot.name)
    for address in (HOST_PUBLIC, HOST_SECOND, HOST_LAN, str(plan.host_address), str(plan.slot_address), str(GATEWAY)):
        await assert_prohibited(guest, address)
    assert not world.local.seen


async def test_a_port_the_host_publishes_for_a_container_is_not_reached_by_its_address(world: World, pool: SlotPool, start: Start) -> None:
    """DNAT of the host's own happens before routing: the packet no longer looks addressed to the host."""
    rules = f"table ip published {{ chain pre {{ type nat hook prerouting priority dstnat; ip daddr {HOST_PUBLIC} tcp dport 8080 dnat to {PUBLIC[0]}:80; }}; }}"
    subprocess.run(["nft", "-f", "-"], input=rules.replace("; }", ";\n}").encode(), check=True)
    _, guest = await start(pool)
    await assert_prohibited(guest, HOST_PUBLIC, 8080)
    assert not world.net.seen


async def test_multicast_and_broadcast_go_nowhere(world: World, pool: SlotPool, start: Start) -> None:
    _, guest = await start(pool)
    everybody = "ff:ff:ff:ff:ff:ff"
    for address in ("224.0.0.1", "239.255.255.250", "255.255.255.255", "192.0.0.3", "93.184.216.255"):
        guest.inject(frame(b"loud", target=address, to=everybody))
        guest.inject(frame(b"loud", target=address))
    await guest.send(PUBLIC[0], b"barrier")
    assert world.net.payloads(b"barrier") == [b"barrier"]
    assert not world.local.seen


async def test_spoofed_sources_are_dropped(world: World, pool: SlotPool, start: Start) -> None:
    slot, guest = await start(pool)
    plan = plan_of(pool, slot.name)
    guest.inject(frame(b"true", target=PUBLIC[0]))
    for source in ("192.0.0.1", "192.0.0.3", "10.0.0.1", HOST_PUBLIC, PUBLIC[1], str(plan.slot_address), str(plan.host_address), "127.0.0.1", "0.0.0.0"):
        guest.inject(frame(b"spoofed", source=source, target=PUBLIC[0]))
    guest.inject(frame(b"spoofed", target=PUBLIC[0], mac="02:00:00:00:00:99"))
    await guest.send(PUBLIC[0], b"barrier")
    assert world.net.payloads(b"barrier") == [b"true", b"barrier"]


async def test_other_protocols_do_not_leave(world: World, pool: SlotPool, start: Start) -> None:
    """GRE, IP in IP, SCTP and IPv6: seen neither by the slot's uplink nor by the host."""
    slot, guest = await start(pool)
    for number in (4, 41, 47, 132):
        made = bytearray(frame(b"tunnel", target=PUBLIC[0]))
        old = made[14 + 9]
        made[14 + 9] = number
        checksum = int.from_bytes(made[24:26]) + old - number
        made[24:26] = (checksum & 0xFFFF).to_bytes(2)
        guest.inject(bytes(made))
    ipv6 = bytes.fromhex("333300000001" + "027472700001" + "86dd" + "6000000000003aff") + bytes(15) + b"\1" + bytes.fromhex("ff02") + bytes(13) + b"\1"
    guest.inject(ipv6)
    await guest.send(PUBLIC[0], b"barrier")
    world.net.payloads(b"barrier")
    link = plan_of(pool, slot.name).host_link
    assert int(counters(link)[1]) == 1


async def test_two_guests_with_equal_addresses_work_at_once_and_do_not_meet(world: World, open_pool: OpenPool, start: Start) -> None:
    pool, other_home = await open_pool(pool=0), await open_pool("other", pool=0)
    first, second, third = await start(pool), await start(pool), await start(other_home)
    for _, guest in (first, second, third):
        assert await guest.call(PUBLIC[0]) == HOST_PUBLIC.encode() + b"\n"
    for owner, (slot, _) in ((pool, second), (other_home, third)):
        plan = plan_of(owner, slot.name)
        await assert_prohibited(first[1], str(plan.slot_address))
        await assert_prohibited(first[1], str(plan.host_address))


async def test_the_host_forwards_nothing_that_no_guest_asked_for(world: World, pool: SlotPool, start: Start) -> None:
    """A neighbour on the uplink's network that uses the host as its router reaches neither slots nor other networks of the host's."""
    slot, guest = await start(pool)
    plan, inner = plan_of(pool, slot.name), Namespace()
    with RouteNetlink() as netlink:
        netlink.add_veth("inner0", "inner1", inner.descriptor, "")
    world.host.ip("address add 192.168.51.1/24 dev inner0", "link set inner0 up")
    inner.ip("address add 192.168.51.2/24 dev inner1", "link set inner1 up", "route add default via 192.168.51.1")
    world.internet.ip(f"route add {plan.transfer} via {HOST_PUBLIC}", f"route add 192.168.51.0/24 via {HOST_PUBLIC}")
    behind = Server(inner, 80)
    try:
        before = transmitted(plan.host_link)
        for target in (str(plan.slot_address), "192.168.51.2"):
            world.internet.run(lambda t=target: datagram(t, b"unasked"))
        world.internet.run(lambda: datagram(HOST_PUBLIC, b"barrier"))
        world.local.payloads(b"barrier")
        datagram("192.168.51.2", b"barrier")
        assert behind.payloads(b"barrier") == [b"barrier"]
        assert transmitted(plan.host_link) == before
        assert await guest.call(PUBLIC[0])
        assert transmitted(plan.host_link) > before
    finally:
        behind.close()
        inner.close()


async def test_one_guest_cannot_fill_the_hosts_connection_table(world: World, open_pool: OpenPool, start: Start) -> None:
    pool = await open_pool(pool=0, connections=16)
    _, guest = await start(pool)
    for port in range(1000, 1200):
        guest.inject(frame(b"flood", target=PUBLIC[0], port=port))
    assert 0 < world.tracked().count(f" dst={PUBLIC[0]}") <= 16


async def test_the_vmm_itself_has_no_way_out_of_its_namespace(world: World, pool: SlotPool, start: Start) -> None:
    """A broken-out VMM runs in the slot's namespace: what it sends does not come from the tap, and is dropped."""
    slot, guest = await start(pool)

    def break_out() -> None:
        namespaces.enter_file(slot.netns)
        for target in (PUBLIC[0], HOST_PUBLIC):
            with pytest.raises(PermissionError):
                datagram(target, b"broken out")
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as stream:
                stream.connect_ex((target, 80))

    await namespaces.in_own_thread(break_out)
    await guest.send(PUBLIC[0], b"barrier")
    assert world.net.payloads(b"barrier") == [b"barrier"]
    assert not world.local.seen


def counters(link: str) -> list[str]:
    """Its line in /proc/net/dev: the 2nd number counts received packets, the 10th sent ones."""
    return Path("/proc/thread-self/net/dev").read_text().split(link + ":")[1].split()


def transmitted(link: str) -> int:
    return int(counters(link)[9])


def datagram(address: str, data: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(data, (address, 80))


def plan_of(pool: SlotPool, name: str) -> SlotPlan:
    return pool._held[name].plan
