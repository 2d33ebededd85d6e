"""The audit log, events, channels and deliveries."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from torpor.model.errors import Conflict, InvalidInput, NotFound
from torpor.model.records import (
    AuditStatus,
    DeliveryState,
)
from torpor.testing.conformance.records.samples import ODD, OTHER, TEAM, StoreRig, a_channel, an_entry, an_event, whole


async def check_audit(rig: StoreRig) -> None:
    store = await rig.open()
    entries = [
        an_entry(1),
        an_entry(2, scope="admin", action="add", resource_type="member"),
        an_entry(3, status=AuditStatus.DENIED, metadata={ODD: ODD}, request_id="r"),
        an_entry(4, action="delete"),
    ]
    async with store.write() as records:
        assert [await records.audit.add(entry) for entry in entries] == [1, 2, 3, 4]
        assert await records.audit.add(an_entry(team_id=OTHER)) == 1
    written = [replace(entry, sequence=number + 1) for number, entry in enumerate(entries)]
    everything = ("team", "admin")
    async with store.read() as records:
        assert await whole(lambda cursor: records.audit.list(TEAM, scopes=everything, cursor=cursor, limit=3)) == written[::-1]
        assert list((await records.audit.list(TEAM, scopes=["team"])).items) == [written[3], written[2], written[0]]
        assert list((await records.audit.list(TEAM, scopes=everything, resource_types=["member"])).items) == [written[1]]
        assert list((await records.audit.list(TEAM, scopes=everything, actions=["delete", "add"])).items) == [written[3], written[1]]
        assert list((await records.audit.list(TEAM, scopes=[])).items) == []
        assert list((await records.audit.list(TEAM, scopes=everything, before=written[2].at)).items) == [
            entry for entry in written[::-1] if entry.at < written[2].at
        ]
        with pytest.raises(InvalidInput):
            await records.audit.list(TEAM, scopes=everything, cursor="-1")


async def check_events(rig: StoreRig) -> None:
    store = await rig.open()
    async with store.write() as records:
        assert await records.events.last(TEAM) == 0
        events = [an_event(number, resource_id=f"r{number % 2}", data={"n": str(number)}) for number in range(6)]
        assert [await records.events.add(event) for event in events] == [1, 2, 3, 4, 5, 6]
        assert await records.events.add(an_event(team_id=OTHER)) == 1
        written = [replace(event, sequence=number + 1) for number, event in enumerate(events)]
        assert await records.events.after(TEAM, 0) == written
        assert await records.events.after(TEAM, 3) == written[3:]
        assert await records.events.after(TEAM, 3, limit=1) == written[3:4]
        assert await records.events.after(TEAM, 2, resource_id="r1") == [written[3], written[5]]
        assert await records.events.of("r0", limit=2) == [written[2], written[4]]
        assert await records.events.last(TEAM) == 6
        assert await records.events.forget(103.0) == 4  # the other team's among them
        assert await records.events.after(TEAM, 0) == written[3:]
        assert await records.events.last(TEAM) == 6


async def check_sequences_are_seen_in_order(rig: StoreRig) -> None:
    """Whoever has read up to a number has seen all before it, however many write at once."""
    stores = [await rig.open(), await rig.open()]
    writing = True
    seen: list[int] = []

    async def follow() -> None:
        while writing or len(seen) < 40:
            async with stores[0].read() as records:
                seen.extend(event.sequence for event in await records.events.after(TEAM, seen[-1] if seen else 0))

    async def write(number: int) -> None:
        async with stores[number % 2].write() as records:
            await records.events.add(an_event(number))
            await asyncio.sleep(0)
            await records.audit.add(an_entry(number))

    follower = asyncio.ensure_future(follow())
    await asyncio.gather(*(write(number) for number in range(40)))
    writing = False
    await follower
    assert seen == list(range(1, 41))


async def check_channels(rig: StoreRig) -> None:
    store = await rig.open()
    listening, other = a_channel(1), a_channel(2, events=("capsule.paused", "x"), config=ODD)
    async with store.write() as records:
        for channel in (listening, other, a_channel(3, team_id=OTHER)):
            await records.channels.add(channel)
        assert await records.channels.list(TEAM) == [other, listening]
        assert await records.channels.get(TEAM, other.id) == other
        assert await records.channels.get(OTHER, other.id) is None
        for number in range(3):
            await records.events.add(an_event(number))
        assert len((await records.channels.deliveries(TEAM, other.id)).items) == 0
        waiting = await whole(lambda cursor: records.channels.deliveries(TEAM, listening.id, cursor=cursor, limit=1))
        assert [one.event_sequence for one in waiting] == [3, 2, 1]
        assert await records.channels.delivery(TEAM, listening.id, waiting[0].id) == waiting[0]
        assert await records.channels.delivery(OTHER, listening.id, waiting[0].id) is None
        assert await records.channels.delivery(TEAM, other.id, waiting[0].id) is None
        found = await records.events.numbered(TEAM, [1, 3, 4])
        assert (sorted(found), found[3].at) == ([1, 3], 102.0)
        await records.channels.update(replace(listening, name="new", events=()))
        await records.events.add(an_event(4))
        assert len((await records.channels.deliveries(TEAM, listening.id)).items) == 3
        await records.channels.remove(TEAM, listening.id)
        assert (await records.channels.deliveries(TEAM, listening.id)).items == []
        assert await records.channels.next_due() is None
        with pytest.raises(NotFound):
            await records.channels.update(listening)
    with pytest.raises(Conflict):
        async with store.write() as records:
            await records.channels.add(a_channel(9, name=other.name))


async def check_deliveries_of_a_channel_come_in_order(rig: StoreRig) -> None:
    store = await rig.open()
    async with store.write() as records:
        channels = records.channels
        for number in (1, 2):
            await channels.add(a_channel(number))
        assert await channels.next_due() is None
        for number in range(3):
            await records.events.add(an_event(number))  # due at 100, 101, 102
        assert await channels.next_due() == 100.0
        assert await channels.claim(99.0, 200.0, 10) == []
        first, _ = taken = await channels.claim(150.0, 200.0, 10)
        assert sorted((channel.id, one.event_sequence, event.sequence) for one, channel, event in taken) == [(a_channel(n).id, 1, 1) for n in (1, 2)]
        assert first[0].claimed_until == 200.0
        assert await channels.claim(150.0, 200.0, 10) == []  # the second waits for the first
        assert await channels.next_due() == 200.0
        which = first[1].id
        await channels.settle(first[0].id, DeliveryState.WAITING, attempts=1, due_at=160.0, error="no")
        assert await channels.next_due() == 160.0
        ((again, _, _),) = await channels.claim(160.0, 190.0, 1)
        assert (again.id, again.attempts, again.error) == (first[0].id, 1, "no")
        await channels.settle(again.id, DeliveryState.DELIVERED, attempts=2, due_at=161.0, error="")
        await channels.settle(again.id, DeliveryState.WAITING, attempts=9, due_at=0.0, error="too late")  # settled already
        assert await channels.delivery(TEAM, which, again.id) == replace(
            again, state=DeliveryState.DELIVERED, attempts=2, due_at=161.0, error="", claimed_until=0.0
        )
        assert [(one.event_sequence, channel.id) for one, channel, _ in await channels.claim(161.0, 190.0, 10)] == [(2, which)]
        assert sorted(one.event_sequence for one, _, _ in await channels.claim(200.0, 300.0, 10)) == [1, 2]  # whoever had them never came back


async def check_dead_deliveries_can_be_revived(rig: StoreRig) -> None:
    store = await rig.open()
    async with store.write() as records:
        channels, channel = records.channels, a_channel()
        await channels.add(channel)
        for number in range(4):
            await records.events.add(an_event(number))  # due at 100 to 103
        ((head, _, _),) = await channels.claim(150.0, 200.0, 10)
        await channels.settle(head.id, DeliveryState.DEAD, attempts=3, due_at=150.0, error="gone")
        assert await channels.give_up(channel.id, 102.5, 151.0, "given up") == 2
        dead = list((await channels.deliveries(TEAM, channel.id, state=DeliveryState.DEAD)).items)
        assert [(one.event_sequence, one.attempts, one.due_at, one.error) for one in dead] == [
            (3, 0, 151.0, "given up"),
            (2, 0, 151.0, "given up"),
            (1, 3, 150.0, "gone"),
        ]
        assert not await channels.revive(OTHER, channel.id, head.id, 160.0)
        assert await channels.revive(TEAM, channel.id, head.id, 160.0)
        assert not await channels.revive(TEAM, channel.id, head.id, 160.0)
        assert await channels.next_due() == 160.0
        ((revived, _, _),) = await channels.claim(160.0, 200.0, 10)
        assert (revived.id, revived.attempts, revived.error) == (head.id, 0, "")
        await channels.settle(head.id, DeliveryState.WAITING, attempts=1, due_at=9000.0, error="no")
        await channels.hurry(channel.id, 170.0)
        assert [one.id for one, _, _ in await channels.claim(170.0, 200.0, 10)] == [head.id]
        assert await channels.forget_delivered(151.5) == 2
        assert [one.event_sequence for one in (await channels.deliveries(TEAM, channel.id)).items] == [4, 1]
        assert await records.events.forget(101.0) == 1
        assert await channels.forget_delivered(0.0) == 1  # its event is gone
        assert [one.event_sequence for one in (await channels.deliveries(TEAM, channel.id)).items] == [4]


async def check_a_team_does_not_take_all_workers(rig: StoreRig) -> None:
    store = await rig.open()
    async with store.write() as records:
        for number in range(1, 7):
            await records.channels.add(a_channel(number))
        await records.channels.add(a_channel(7, team_id=OTHER))
        await records.events.add(an_event(1))
        await records.events.add(an_event(50, team_id=OTHER))
        first = await records.channels.claim(1000.0, 2000.0, 100, of_team=3)
        assert sorted(channel.team_id for _, channel, _ in first) == sorted([TEAM] * 3 + [OTHER])
        assert await records.channels.claim(1000.0, 2000.0, 100, of_team=3) == []
        await records.channels.settle(
            next(one.id for one, channel, _ in first if channel.team_id == TEAM), DeliveryState.DELIVERED, attempts=1, due_at=1.0, error=""
        )
        assert len(await records.channels.claim(1000.0, 2000.0, 100, of_team=3)) == 1


async def check_two_workers_never_get_one_delivery(rig: StoreRig) -> None:
    stores = [await rig.open(), await rig.open()]
    async with stores[0].write() as records:
        for number in range(30):
            await records.channels.add(a_channel(number))
        for number in range(2):
            await records.events.add(an_event(number))

    async def work(number: int) -> list[str]:
        async with stores[number % 2].write() as records:
            return [taken[0].id for taken in await records.channels.claim(1000.0, 2000.0, 7, of_team=100)]

    taken = [one for some in await asyncio.gather(*(work(number) for number in range(12))) for one in some]
    assert len(taken) == len(set(taken)) == 30
