"""The pool of slots: handing out, taking back, running out, and what a close leaves."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest
from net_world import HOST_PUBLIC, PUBLIC, ROUTER, OpenPool, Start, World

from torpor.model.errors import Denied, DenyReason, HostError, NoSpace, NotFound
from torpor.model.sandbox import NetworkMode
from torpor.net import namespaces
from torpor.net.plan import UPLINK
from torpor.net.pool import SlotPool
from torpor.ports.network import NetworkSlot

pytestmark = pytest.mark.root


async def acquire(pool: SlotPool) -> NetworkSlot:
    slot = await pool.acquire(NetworkMode.ON)
    assert slot is not None
    return slot


async def settle(pool: SlotPool) -> None:
    """Until the pool has nothing under construction or destruction."""
    while pool._tasks:
        await asyncio.wait(set(pool._tasks))


def leftovers(world: World) -> tuple[list[str], list[str], list[str]]:
    found = [str(path) for path in world.scratch.glob("*/netns/*")]
    return world.links(), found, [table for table in world.tables() if table.startswith("torpor")]


async def test_off_is_no_slot(world: World, pool: SlotPool) -> None:
    assert await pool.acquire(NetworkMode.OFF) is None


async def test_a_stored_slot_is_handed_out_without_waiting_for_anything(world: World, pool: SlotPool) -> None:
    await settle(pool)
    handing_out = pool.acquire(NetworkMode.ON)
    with pytest.raises(StopIteration) as handed:
        handing_out.send(None)
    slot = handed.value.value
    assert (slot.tap, slot.guest["address"], slot.guest["gateway"]) == ("tap0", "192.0.0.2", "192.0.0.1")
    await settle(pool)
    assert len(pool._ready) == 1
    await pool.release(slot)


async def test_close_leaves_nothing_behind(world: World, open_pool: OpenPool) -> None:
    pool = await open_pool(pool=3)
    await pool.release(await acquire(pool))
    await settle(pool)
    assert len(world.links()) == 4
    await pool.close()
    assert leftovers(world) == ([], [], [])
    assert world.sysctl("net/ipv4/conf/wan0/forwarding") == "0"


async def test_a_released_slot_is_gone_with_its_connections(world: World, pool: SlotPool, start: Start) -> None:
    slot, guest = await start(pool)
    await guest.call(PUBLIC[0])
    assert f" dst={PUBLIC[0]}" in world.tracked()
    link = pool._held[slot.name].plan.host_link
    guest.close()
    await pool.release(slot)
    assert f" dst={PUBLIC[0]}" not in world.tracked()
    assert link not in world.links()
    assert not slot.netns.exists()
    with pytest.raises(NotFound):
        pool.adopt(slot.name)


async def test_releasing_twice_does_not_touch_the_next_user_of_the_number(world: World, open_pool: OpenPool, start: Start) -> None:
    pool = await open_pool(pool=0, transfer="198.18.0.0/30")
    old = await acquire(pool)
    await asyncio.gather(pool.release(old), pool.release(old))
    new, guest = await start(pool)
    assert pool._held[new.name].plan.number == 1
    assert new.name != old.name
    await pool.release(old)
    assert await guest.call(PUBLIC[0])


async def test_numbers_go_round(world: World, open_pool: OpenPool) -> None:
    """A late packet for an old slot must not meet a new one soon."""
    pool = await open_pool(pool=0)
    numbers = []
    for _ in range(3):
        slot = await acquire(pool)
        numbers.append(pool._held[slot.name].plan.number)
        await pool.release(slot)
    assert numbers == [1, 2, 3]


async def test_when_slots_run_out_it_says_so_and_recovers(world: World, open_pool: OpenPool) -> None:
    pool = await open_pool(pool=2, transfer="198.18.0.0/29")
    slots = [await acquire(pool) for _ in range(3)]
    with pytest.raises(NoSpace, match="All 3 network slots"):
        await acquire(pool)
    await pool.release(slots.pop())
    slots.append(await acquire(pool))
    for slot in slots:
        await pool.release(slot)


async def test_fifty_at_once_come_and_go(world: World, open_pool: OpenPool) -> None:
    pool = await open_pool(pool=4)
    slots = await asyncio.gather(*(acquire(pool) for _ in range(50)))
    assert len({slot.name for slot in slots}) == len({slot.netns for slot in slots}) == 50
    await asyncio.gather(*(pool.release(slot) for slot in slots), *(acquire(pool) for _ in range(5)))
    assert len(pool._held) == 5
    for slot in [held.as_port() for held in pool._held.values()]:
        await pool.release(slot)
    await pool.close()
    assert leftovers(world) == ([], [], [])


class HeldUp:
    """Stands before the tool runner and holds each call until it is let go."""

    def __init__(self, pool: SlotPool) -> None:
        self.reached, self.go = asyncio.Event(), asyncio.Event()
        self._run = pool._nft._processes.run
        pool._nft._processes.run = self  # type: ignore[assignment]

    async def __call__(self, *words: object, **options: object) -> object:
        self.reached.set()
        await self.go.wait()
        return await self._run(*words, **options)  # type: ignore[arg-type]


async def test_who_gives_up_waiting_leaves_no_slot_behind(world: World, open_pool: OpenPool) -> None:
    pool = await open_pool(pool=0)
    held_up = HeldUp(pool)
    waiting = asyncio.create_task(acquire(pool))
    await held_up.reached.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    held_up.go.set()
    await settle(pool)
    assert not [link for link in world.links() if "-" in link]
    await pool.release(await acquire(pool))


async def test_who_is_cancelled_with_the_slot_in_hand_gives_it_back(world: World, open_pool: OpenPool) -> None:
    pool = await open_pool(pool=0)
    waiting = asyncio.create_task(acquire(pool))
    shelve, shelved = pool._shelve, 0

    def and_cancel(slot: object) -> None:
        nonlocal shelved
        shelved += 1
        shelve(slot)  # type: ignore[arg-type]
        waiting.cancel()

    pool._shelve = and_cancel  # type: ignore[assignment, method-assign]
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert shelved == 2
    await settle(pool)
    assert not pool._held
    assert not [link for link in world.links() if "-" in link]


async def test_a_close_in_the_middle_of_building_removes_the_half_built(world: World, open_pool: OpenPool) -> None:
    pool = await open_pool(pool=0)
    await pool.release(await acquire(pool))
    held_up = HeldUp(pool)
    waiting = asyncio.create_task(acquire(pool))
    await held_up.reached.wait()
    assert len([link for link in world.links() if "-" in link]) == 1
    closing = asyncio.create_task(pool.close())
    with pytest.raises(HostError, match="closing"):
        await waiting
    held_up.go.set()
    await closing
    assert leftovers(world) == ([], [], [])


async def test_a_cancelled_release_is_finished_all_the_same(world: World, pool: SlotPool) -> None:
    slot = await acquire(pool)
    releasing = asyncio.create_task(pool.release(slot))
    await asyncio.sleep(0)
    releasing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await releasing
    await pool.release(slot)
    assert not slot.netns.exists()


async def test_the_tap_has_one_holder_at_a_time(world: World, pool: SlotPool) -> None:
    slot = await acquire(pool)
    first = await pool.open_tap(slot)
    with pytest.raises(Denied) as refusal:
        await pool.open_tap(slot)
    assert refusal.value.reason is DenyReason.IN_USE
    os.close(first)
    os.close(await pool.open_tap(slot))
    await pool.release(slot)
    with pytest.raises(NotFound):
        await pool.open_tap(slot)


async def test_a_failed_build_is_undone_and_says_which_step(world: World, open_pool: OpenPool) -> None:
    pool = await open_pool(pool=0)
    await pool.release(await acquire(pool))
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW), pytest.MonkeyPatch.context() as patch:
        patch.setattr("torpor.net.plan.UPLINK", "a-name-too-long-for-linux")
        with pytest.raises(HostError, match="a-name-too-long-for-linux"):
            await acquire(pool)
    assert not [link for link in world.links() if "-" in link]
    assert not list((world.scratch / "home" / "netns").iterdir())
    await pool.release(await acquire(pool))


async def test_refused_rules_leave_no_slot(world: World, open_pool: OpenPool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = await open_pool(pool=0)
    monkeypatch.setattr("torpor.net.pool.slot_rules", lambda plan, connections: "table inet torpor { nonsense }")
    with pytest.raises(HostError, match="nft refused"):
        await acquire(pool)
    assert not [link for link in world.links() if "-" in link]


async def test_ipv6_is_off_on_both_ends(world: World, pool: SlotPool) -> None:
    slot = await acquire(pool)

    def look() -> str:
        namespaces.enter_file(slot.netns)
        path = Path("/proc/thread-self/net/if_inet6")
        return path.read_text() if path.exists() else ""

    assert await namespaces.in_own_thread(look) == ""
    assert "trp" not in Path("/proc/thread-self/net/if_inet6").read_text()
    assert UPLINK == "up0"
    await pool.release(slot)


async def test_a_busy_range_is_named(world: World, open_pool: OpenPool) -> None:
    world.host.ip("route add 10.77.0.0/16 via " + ROUTER)
    pool = await open_pool(pool=0, transfer="10.77.16.0/20")
    with pytest.raises(NoSpace, match=r"10\.77\.16\.0/20 overlaps"):
        await acquire(pool)


async def test_the_chosen_range_avoids_the_hosts_routes(world: World, open_pool: OpenPool, start: Start) -> None:
    world.host.ip("route add 198.18.0.0/15 via " + ROUTER)
    pool = await open_pool(pool=0)
    _, guest = await start(pool)
    assert await guest.call(PUBLIC[0]) == HOST_PUBLIC.encode() + b"\n"
    (transfer,) = {held.plan.transfer for held in pool._held.values()}
    assert str(transfer).startswith("10.213.")
