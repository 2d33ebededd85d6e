"""Where one sandbox may go, beside what no sandbox may: shown by trying."""

from __future__ import annotations

import asyncio
import errno
import socket

import pytest
from net_world import PRIVATE, PUBLIC, ROUTER, Guest, OpenPool, Start, World

from torpor.model.errors import InvalidInput, NotFound
from torpor.model.sandbox import Egress
from torpor.net.plan import GATEWAY
from torpor.net.pool import SlotPool

pytestmark = pytest.mark.root
EVERYTHING = "0.0.0.0/0"
IP_RECVERR = 11
"""Linux, ip(7): errors of the network reach the socket as they come."""
ONE, TWO, _ = PUBLIC


async def reached(guest: Guest) -> set[str]:
    """Which of the internet's addresses answer; the others are refused at once by a rule."""
    found = set()
    for address in PUBLIC:
        try:
            await guest.call(address)
        except OSError as error:
            assert error.errno == errno.EHOSTUNREACH, f"{address}: {error}"
        else:
            found.add(address)
    return found


CASES = [
    (Egress(deny=(EVERYTHING,)), set()),
    (Egress(deny=("0.0.0.0/1", "128.0.0.0/1")), set()),
    (Egress(deny=("::/0", EVERYTHING, "2001:db8::1")), set()),
    (Egress(deny=(ONE,)), {TWO, ROUTER}),
    (Egress(deny=(f"{ONE}/24", f"{ONE}/8")), {TWO, ROUTER}),
    (Egress(allow=(ONE,), deny=(EVERYTHING,)), {ONE}),
    (Egress(allow=(f"{ONE}/16", ONE, f"{TWO}/32"), deny=(EVERYTHING, ONE)), {ONE, TWO}),
    (Egress(allow=(ONE,)), set(PUBLIC)),
    (Egress(allow=(EVERYTHING,), deny=(EVERYTHING,)), set(PUBLIC)),
    (Egress(allow=PRIVATE, deny=(EVERYTHING,)), set()),
]


@pytest.mark.parametrize(("egress", "expected"), CASES, ids=str)
async def test_where_a_guest_may_go(world: World, pool: SlotPool, start: Start, egress: Egress, expected: set[str]) -> None:
    slot, guest = await start(pool)
    await pool.restrict(slot, egress)
    assert await reached(guest) == expected


async def test_what_nobody_may_reach_stays_closed_whatever_is_allowed(world: World, pool: SlotPool, start: Start) -> None:
    slot, guest = await start(pool)
    await pool.restrict(slot, Egress(allow=(EVERYTHING, *PRIVATE)))
    for address in PRIVATE:
        with pytest.raises(OSError) as refusal:
            await guest.call(address)
        assert refusal.value.errno == errno.EHOSTUNREACH
    assert not world.net.seen


async def test_what_is_said_last_counts(world: World, pool: SlotPool, start: Start) -> None:
    slot, guest = await start(pool)
    for egress, expected in (*CASES, (Egress(), set(PUBLIC))):
        await pool.restrict(slot, egress)
        assert await reached(guest) == expected, egress


async def test_it_holds_for_udp_and_ping_too(world: World, pool: SlotPool, start: Start) -> None:
    slot, guest = await start(pool)
    await pool.restrict(slot, Egress(allow=(ROUTER,), deny=(EVERYTHING,)))
    assert await guest.ask(ROUTER, b"hello", port=80) == b"hello"
    with pytest.raises(OSError):
        await guest.ask(ONE, b"hello", port=80)
    assert await guest.ping(ROUTER)
    assert [data for _, data in world.net.seen] == [b"hello"]


async def test_an_open_connection_is_cut(world: World, pool: SlotPool, start: Start) -> None:
    slot, guest = await start(pool)

    def connect() -> socket.socket:
        stream = socket.create_connection((ONE, 80), timeout=60)
        stream.recv(100)
        stream.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)  # else TCP takes the refusal for passing trouble, and tries again for minutes
        return stream

    with await guest.namespace.do(connect) as stream:
        await pool.restrict(slot, Egress(deny=(EVERYTHING,)))
        stream.sendall(b"smuggled")
        with pytest.raises(OSError) as cut:
            await asyncio.to_thread(stream.recv, 100)
        assert cut.value.errno == errno.EHOSTUNREACH
        await pool.restrict(slot, Egress())
        assert await guest.call(TWO)
    assert b"smuggled" not in [data for _, data in world.net.seen]


async def test_names_are_resolved_unless_everything_is_denied(world: World, pool: SlotPool, start: Start) -> None:
    """Questions carry data out, so a guest that may go nowhere gets none answered."""
    slot, guest = await start(pool)
    question = b"\x12\x34\x01\x00" + bytes(8)

    async def answered() -> bool:
        try:
            return (await guest.ask(str(GATEWAY), question))[:2] == question[:2]
        except OSError as error:
            assert error.errno in (errno.EHOSTUNREACH, errno.ECONNREFUSED)
            return False

    assert await answered()
    await pool.restrict(slot, Egress(allow=(ONE,), deny=(EVERYTHING,)))
    assert not await answered()
    await pool.restrict(slot, Egress(deny=(ONE,)))
    assert await answered()


async def test_nonsense_changes_nothing(world: World, pool: SlotPool, start: Start) -> None:
    slot, guest = await start(pool)
    await pool.restrict(slot, Egress(deny=(ONE,)))
    for egress in (Egress(deny=("example.com",)), Egress(allow=("1.2.3.4 } ; flush ruleset",)), Egress(deny=("1.2.3.4/33",))):
        with pytest.raises(InvalidInput):
            await pool.restrict(slot, egress)
    assert await reached(guest) == {TWO, ROUTER}


async def test_a_slot_is_clean_for_its_next_user_and_kept_for_the_next_owner(world: World, open_pool: OpenPool, start: Start) -> None:
    pool = await open_pool()
    slot, guest = await start(pool)
    await pool.restrict(slot, Egress(deny=(EVERYTHING,)))
    await pool.close()
    later = await open_pool(in_use=[slot.name])
    assert await reached(guest) == set()
    adopted = later.adopt(slot.name)
    await later.restrict(adopted, Egress(deny=(ONE,)))
    assert await reached(guest) == {TWO, ROUTER}
    guest.close()
    await later.release(adopted)
    with pytest.raises(NotFound):
        await later.restrict(adopted, Egress())
    _, fresh = await start(later)
    assert await reached(fresh) == set(PUBLIC)
