"""Sandboxes: every field, compare-and-set, lists, filters, what is due."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from torpor.model.errors import Conflict, InternalError, InvalidInput
from torpor.model.records import (
    Exposure,
    MetricPoint,
    Operation,
    OperationKind,
    Reserved,
    Sandbox,
    Terms,
    Tier,
    TimeoutAction,
)
from torpor.model.sandbox import Egress, EndReason, NetworkMode, base36
from torpor.model.shapes import Shape
from torpor.ports.records import SandboxFilter
from torpor.testing.conformance.records.samples import ODD, OTHER, TEAM, S, StoreRig, a_sandbox, a_user, an_event, whole


async def check_every_field_of_a_sandbox_is_kept(rig: StoreRig) -> None:
    store = await rig.open()
    plain = a_sandbox(1)
    full = a_sandbox(
        2,
        state=S.PAUSING,
        generation=9,
        template=ODD,
        shape=Shape(2, 1024, 8192),
        network=NetworkMode.ON,
        host_id="host",
        machine_id="machine",
        started_at=1.5,
        deadline=2.25,
        idle_timeout=0.1,
        on_timeout=TimeoutAction.KILL,
        auto_resume=True,
        labels={ODD: ODD, "": ""},
        env={"PATH": "/bin", ODD: "$x"},
        exposure=Exposure(True, True, "example.org:${PORT}", (443, 8443)),
        egress=Egress(("10.0.0.0/8", "*.example.org"), ("0.0.0.0/0",)),
        operation=Operation("op", OperationKind.PAUSE, 3.125, 4.0625, "target", "idle", span=0.5),
        stored_bytes=2**40,
        end_reason=EndReason.OOM,
        end_note=ODD,
        ended_at=1732406400.123456,
        dialect="e2b",
        created_by="somebody",
        terms=Terms(span=300.5, keeps_memory=False, cold=True),
    )
    async with store.write() as records:
        for one in (plain, full):
            await records.sandboxes.add(one)
    async with store.read() as records:
        for one in (plain, full):
            assert await records.sandboxes.get(one.id) == one
        assert await records.sandboxes.get(base36(3)) is None
    with pytest.raises(Conflict):
        async with store.write() as records:
            await records.sandboxes.add(plain)


async def check_swap_compares_state_and_generation(rig: StoreRig) -> None:
    store = await rig.open()
    before = a_sandbox()
    after = replace(before, state=S.PAUSED, generation=2, labels={"a": "b"}, last_active_at=50.0)
    async with store.write() as records:
        await records.sandboxes.add(before)
        assert not await records.sandboxes.swap(replace(before, state=S.PAUSED), after)
        assert not await records.sandboxes.swap(replace(before, generation=2), replace(after, generation=3))
        assert not await records.sandboxes.swap(replace(before, id=base36(5)), replace(after, id=base36(5)))
        assert await records.sandboxes.get(before.id) == before
        assert await records.sandboxes.swap(before, after)
        assert not await records.sandboxes.swap(before, after)
        assert await records.sandboxes.get(before.id) == replace(after, last_active_at=100.0)  # it never goes back
        later = replace(after, generation=3, last_active_at=200.0)
        assert await records.sandboxes.swap(after, later)
        assert await records.sandboxes.get(before.id) == later
    with pytest.raises(InternalError):
        async with store.write() as records:
            await records.sandboxes.swap(later, later)


async def check_of_many_swaps_one_wins(rig: StoreRig) -> None:
    stores = [await rig.open(), await rig.open()]
    before = a_sandbox()
    async with stores[0].write() as records:
        await records.sandboxes.add(before)

    async def swap(number: int) -> bool:
        async with stores[number % 2].write() as records:
            won = await records.sandboxes.swap(before, replace(before, generation=2, end_note=str(number)))
            if won:
                await records.events.add(an_event(number))
            return won

    won = await asyncio.gather(*(swap(number) for number in range(24)))
    assert sum(won) == 1
    async with stores[0].read() as records:
        found = await records.sandboxes.get(before.id)
        assert found == replace(before, generation=2, end_note=str(won.index(True)))
        assert await records.events.last(TEAM) == 1


async def check_activity_moves_only_forward(rig: StoreRig) -> None:
    store = await rig.open()
    one = a_sandbox(idle_timeout=10.0)
    async with store.write() as records:
        await records.sandboxes.add(one)
        assert await records.sandboxes.next_expiry() == 110.0
        await records.sandboxes.touch(one.id, 150.0)
        await records.sandboxes.touch(one.id, 120.0)
        await records.sandboxes.touch(base36(1), 120.0)
        assert await records.sandboxes.get(one.id) == replace(one, last_active_at=150.0)
        assert await records.sandboxes.next_expiry() == 160.0


async def check_lists_go_newest_first_in_stable_pages(rig: StoreRig) -> None:
    store = await rig.open()
    all_of_them = [a_sandbox(number, created_at=float(number // 3), team_id=TEAM if number % 4 else OTHER) for number in range(30)]
    async with store.write() as records:
        for one in all_of_them:
            await records.sandboxes.add(one)
    expected = sorted(all_of_them, key=lambda one: (one.created_at, one.id), reverse=True)
    wanted = SandboxFilter(team_id=TEAM)
    async with store.read() as records:
        assert await whole(lambda cursor: records.sandboxes.list(SandboxFilter(), cursor=cursor, limit=7)) == expected
        assert await whole(lambda cursor: records.sandboxes.list(wanted, cursor=cursor, limit=1)) == [one for one in expected if one.team_id == TEAM]
        assert (await records.sandboxes.list(wanted, limit=1000)).next == ""
        first = await records.sandboxes.list(wanted, limit=5)
    async with store.write() as records:  # rows come, and the one the cursor stands on changes
        await records.sandboxes.add(a_sandbox(99, created_at=1e6))
        last = first.items[-1]
        assert await records.sandboxes.swap(last, replace(last, generation=2, state=S.STOPPED, ended_at=5.0))
    async with store.read() as records:
        rest = await whole(lambda cursor: records.sandboxes.list(wanted, cursor=cursor or first.next, limit=5))
    assert [*first.items, *rest] == [one for one in expected if one.team_id == TEAM]


async def check_foreign_cursors_and_limits_are_refused(rig: StoreRig) -> None:
    store = await rig.open()
    async with store.write() as records:
        for number in range(3):
            await records.sandboxes.add(a_sandbox(number))
            await records.users.add(a_user(number))
    async with store.read() as records:
        good = (await records.sandboxes.list(SandboxFilter(), limit=1)).next
        others = (await records.users.list(limit=1)).next
        for cursor in (others, good + "A", good[:-1], good.upper(), "x", "é", "W10", "bnVsbA", "=" * 40, " ", good + "\n", "A" * 100_000):
            with pytest.raises(InvalidInput):
                await records.sandboxes.list(SandboxFilter(), cursor=cursor)
        for limit in (0, -1, 1001):
            with pytest.raises(InvalidInput):
                await records.sandboxes.list(SandboxFilter(), limit=limit)


async def check_filters(rig: StoreRig) -> None:
    store = await rig.open()
    one = a_sandbox(1, labels={"env": "prod", "owner": ODD, "a.b$[0]": "x"})
    two = a_sandbox(2, labels={"env": "dev"}, state=S.STOPPED, ended_at=5.0, template="base", template_id=base36(8))
    three = a_sandbox(3, labels={"prod": "env"}, state=S.PAUSED, dialect="e2b", team_id=OTHER)
    async with store.write() as records:
        for each in (one, two, three):
            await records.sandboxes.add(each)
    cases: list[tuple[SandboxFilter, list[Sandbox]]] = [
        (SandboxFilter(), [three, two, one]),
        (SandboxFilter(labels={}), [three, two, one]),
        (SandboxFilter(labels={"env": "prod"}), [one]),
        (SandboxFilter(labels={"owner": ODD, "env": "prod"}), [one]),
        (SandboxFilter(labels={"a.b$[0]": "x"}), [one]),
        (SandboxFilter(labels={"env": "prod", "owner": "x"}), []),
        (SandboxFilter(labels={"env": "%"}), []),
        (SandboxFilter(labels={"' OR 1=1 --": "x"}), []),
        (SandboxFilter(states=[S.PAUSED, S.RUNNING]), [three, one]),
        (SandboxFilter(states=[S.STOPPED, S.ERROR]), [two]),
        (SandboxFilter(template="base"), [two]),
        (SandboxFilter(template=base36(8)), [two]),
        (SandboxFilter(dialect="e2b"), [three]),
        (SandboxFilter(oldest_first=True), [one, two, three]),
        (SandboxFilter(since=two.created_at), [three, two]),
        (SandboxFilter(since=two.created_at + 1e-6), [three]),
        (SandboxFilter(since=two.created_at, oldest_first=True, states=[S.PAUSED]), [three]),
        (SandboxFilter(team_id=TEAM, states=[S.RUNNING], template="minimal", labels={"env": "prod"}, dialect="native"), [one]),
    ]
    async with store.read() as records:
        for wanted, expected in cases:
            assert list((await records.sandboxes.list(wanted)).items) == expected, wanted
        upwards = SandboxFilter(oldest_first=True)
        assert await whole(lambda cursor: records.sandboxes.list(upwards, cursor=cursor, limit=1)) == [one, two, three]
        downwards = (await records.sandboxes.list(SandboxFilter(), limit=1)).next
        with pytest.raises(InvalidInput):
            await records.sandboxes.list(upwards, cursor=downwards)


async def check_what_is_due(rig: StoreRig) -> None:
    store = await rig.open()
    operation = Operation("op", OperationKind.PAUSE, 100.0, 120.0)
    cases = {
        "overdue": a_sandbox(1, state=S.PAUSING, operation=operation, deadline=1.0),
        "idle": a_sandbox(2, idle_timeout=30.0, deadline=900.0),
        "over": a_sandbox(3, idle_timeout=300.0, deadline=140.0),
        "asleep": a_sandbox(4, state=S.PAUSED, deadline=150.0, on_timeout=TimeoutAction.KILL, idle_timeout=1.0),
        "asleep for good": a_sandbox(5, state=S.PAUSED, deadline=1.0, on_timeout=TimeoutAction.PAUSE),
        "for ever": a_sandbox(6),
        "ended": a_sandbox(7, state=S.STOPPED, deadline=1.0, idle_timeout=1.0, ended_at=1.0),
        "missing": a_sandbox(8, state=S.MISSING, deadline=1.0, idle_timeout=1.0),
    }
    names = {one.id: name for name, one in cases.items()}
    async with store.write() as records:
        assert await records.sandboxes.next_expiry() is None
        for one in cases.values():
            await records.sandboxes.add(one)
    async with store.read() as records:

        async def at(now: float) -> tuple[list[str], list[str]]:
            overdue, expiring = await records.sandboxes.overdue(now), await records.sandboxes.expiring(now)
            return [names[one.id] for one in overdue], [names[one.id] for one in expiring]

        assert await records.sandboxes.next_expiry() == 120.0
        assert await at(119.9) == ([], [])
        assert await at(120.0) == (["overdue"], [])
        assert await at(130.0) == (["overdue"], ["idle"])
        assert await at(1000.0) == (["overdue"], ["idle", "over", "asleep"])


async def check_what_sandboxes_hold(rig: StoreRig) -> None:
    store = await rig.open()
    states = [S.PENDING, S.RUNNING, S.PAUSED, S.STOPPING, S.MISSING, S.STOPPED, S.ERROR]
    async with store.write() as records:
        for number, state in enumerate(states):
            ended = 5.0 if state in (S.STOPPED, S.ERROR) else None
            await records.sandboxes.add(a_sandbox(number, state=state, host_id="one", shape=Shape(2, 1024, 4096), stored_bytes=10, ended_at=ended))
        await records.sandboxes.add(a_sandbox(20, host_id="two", team_id=OTHER, stored_bytes=1))
    async with store.read() as records:
        assert await records.sandboxes.reserved(host_id="one") == Reserved(3, 6, 3072, 50)
        assert await records.sandboxes.reserved(team_id=OTHER) == Reserved(1, 1, 512, 1)
        assert await records.sandboxes.reserved(host_id="one", team_id=OTHER) == Reserved(0, 0, 0, 0)
        assert await records.sandboxes.reserved() == Reserved(4, 7, 3584, 51)
        assert await records.sandboxes.counts() == {**dict.fromkeys(states, 1), S.RUNNING: 2}
        assert await records.sandboxes.using_template(base36(7)) == 6
        assert await records.sandboxes.using_template(base36(9)) == 0
        assert [one.state for one in await records.sandboxes.on_host("one")] == states[:5]


async def check_ended_ones_are_forgotten(rig: StoreRig) -> None:
    store = await rig.open()
    old, young = a_sandbox(1, state=S.STOPPED, ended_at=10.0), a_sandbox(2, state=S.ERROR, ended_at=20.0)
    async with store.write() as records:
        for one in (old, young, a_sandbox(3)):
            await records.sandboxes.add(one)
            await records.figures.add_points(one.id, Tier.DAY, [MetricPoint(5.0, 1.0, 2, 3)])
        assert await records.sandboxes.forget_ended(20.0) == 1
        assert await records.sandboxes.get(old.id) is None
        assert await records.figures.points(old.id, Tier.DAY, 0.0) == []
        assert await records.sandboxes.get(young.id) == young
        assert len(await records.figures.points(young.id, Tier.DAY, 0.0)) == 1
