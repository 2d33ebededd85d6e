"""Clocks that are moved: idle times, deadlines, retention, usage by day."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from service_world import LONG, ME, TINY, World, asleep, done, running, until, until_state

from torpor.model.errors import InvalidInput, NoSpace, NotFound
from torpor.model.records import Event, SandboxState, Tier, TimeoutAction
from torpor.model.sandbox import EndReason
from torpor.ports.hosts import Reading
from torpor.service.context import DAY
from torpor.service.control import ControlPlane
from torpor.service.usage import days
from torpor.testing.fake_hosts import Fault, Trouble

S = SandboxState
KILL = TimeoutAction.KILL


async def _pass(world: World, seconds: float) -> None:
    """Lets the timers fall asleep, then moves the clock."""
    await world.clock.sleeper(31)
    world.clock.move(seconds)


async def _look(world: World, plane: ControlPlane) -> None:
    await plane.timers.look()
    await plane.operations.idle()


async def test_an_idle_sandbox_is_paused_by_itself(world: World) -> None:
    plane = await world.start()
    sandbox_id = await running(plane, idle_timeout=20.0)
    await _pass(world, 19)
    await _look(world, plane)
    assert (await world.sandbox(sandbox_id)).state is S.RUNNING
    world.clock.move(1)
    await until_state(world, sandbox_id, S.PAUSED)
    async with world.store.read() as records:
        last = (await records.events.of(sandbox_id))[-1]
    assert (last.name, last.data["cause"], last.actor.kind.value) == ("capsule.paused", "idle", "system")
    assert ("sandbox", "pause", "info") in await world.audit()


async def test_activity_puts_the_idle_time_off(world: World) -> None:
    plane = await world.start()
    sandbox_id = await running(plane, idle_timeout=20.0)
    world.clock.move(15)
    await plane.sandboxes.ping(ME, sandbox_id)
    world.clock.move(15)
    async with plane.sandboxes.use(ME, sandbox_id, "exec"):
        pass
    world.clock.move(15)
    await _look(world, plane)
    assert (await world.sandbox(sandbox_id)).state is S.RUNNING
    world.clock.move(5)
    await _look(world, plane)
    assert (await world.sandbox(sandbox_id)).state is S.PAUSED


async def test_a_first_command_finds_the_activity_noted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction would hold it up, and say nothing that the create did not."""
    plane = await world.start()
    sandbox_id = await running(plane, idle_timeout=20.0)
    with monkeypatch.context() as patched:
        patched.setattr(plane.sandboxes._activity, "_write", None)
        async with plane.sandboxes.use(ME, sandbox_id, "exec"):
            pass
    world.clock.move(1)
    async with plane.sandboxes.use(ME, sandbox_id, "exec"):
        assert (await world.sandbox(sandbox_id)).last_active_at == world.clock.now()


async def test_a_sandbox_with_somebody_inside_is_not_idle_for_any_process(world: World) -> None:
    inside, other = await world.start(sole=False), await world.start(sole=False)
    sandbox_id = await running(inside, idle_timeout=20.0)
    async with inside.sandboxes.use(ME, sandbox_id, "terminal"):
        for _ in range(10):
            world.clock.move(10)
            await _look(world, inside)
            await _look(world, other)
        assert (await world.sandbox(sandbox_id)).state is S.RUNNING
    world.clock.move(20)
    await _look(world, other)
    assert (await world.sandbox(sandbox_id)).state is S.PAUSED


@pytest.mark.parametrize(("action", "state", "reason"), [(TimeoutAction.PAUSE, S.PAUSED, None), (KILL, S.STOPPED, EndReason.TIMEOUT)])
async def test_a_deadline_is_not_moved_by_activity(world: World, action: TimeoutAction, state: SandboxState, reason: EndReason | None) -> None:
    plane = await world.start()
    sandbox_id = await running(plane, deadline=world.clock.now() + 100, on_timeout=action)
    world.clock.move(99)
    await plane.sandboxes.ping(ME, sandbox_id)
    await _look(world, plane)
    async with plane.sandboxes.use(ME, sandbox_id, "exec"):
        world.clock.move(1)
        await _look(world, plane)
    assert ((await world.sandbox(sandbox_id)).state, (await world.sandbox(sandbox_id)).end_reason) == (state, reason)
    if state is S.PAUSED:  # woken after its time, it gets as much again
        again = await done(plane, await plane.sandboxes.resume(ME, sandbox_id))
        assert again.deadline == world.clock.now() + 100


async def test_an_idle_kill_and_a_paused_one_past_its_time(world: World) -> None:
    plane = await world.start()
    idle = await running(plane, idle_timeout=10.0, on_timeout=KILL)
    paused = await asleep(plane, deadline=world.clock.now() + 50, on_timeout=KILL)
    kept = await asleep(plane, deadline=world.clock.now() + 50)
    world.clock.move(50)
    await _look(world, plane)
    assert (await world.sandbox(idle)).end_reason is EndReason.IDLE
    assert (await world.sandbox(paused)).end_reason is EndReason.TIMEOUT
    assert (await world.sandbox(kept)).state is S.PAUSED
    await world.check()


@pytest.mark.parametrize("how", ["idle", "deadline"])
async def test_a_pause_without_space_postpones_and_never_throws_away(world: World, how: str) -> None:
    plane = await world.start()
    fields: dict[str, Any] = {"idle_timeout": 20.0} if how == "idle" else {"deadline": world.clock.now() + 20}
    sandbox_id = await running(plane, **fields)
    world.host.faults.append(Fault("pause", Trouble.REFUSED, error=NoSpace("full")))
    world.clock.move(20)
    await until(world, lambda: _has(world, sandbox_id, "capsule.failed"))
    await _look(world, plane)
    assert (await world.sandbox(sandbox_id)).state is S.RUNNING
    await _look(world, plane)
    assert world.host.calls.count(("pause", sandbox_id)) == 1, "not again at once"
    world.clock.move(60)
    await until_state(world, sandbox_id, S.PAUSED)


async def _has(world: World, sandbox_id: str, event: str) -> bool:
    return event in await world.events(sandbox_id)


async def test_moments_survive_a_restart(world: World) -> None:
    plane = await world.start()
    sandbox_id = await running(plane, idle_timeout=20.0)
    await world.kill(plane)
    world.clock.move(1000)
    await world.start()
    await until_state(world, sandbox_id, S.PAUSED)


async def test_a_clock_that_is_set_back_pauses_nothing_early(world: World) -> None:
    plane = await world.start()
    sandbox_id = await running(plane, idle_timeout=20.0)
    world.clock.move(-3600)
    await _look(world, plane)
    await plane.sandboxes.ping(ME, sandbox_id)
    assert (await world.sandbox(sandbox_id)).state is S.RUNNING
    world.clock.move(3620)
    await _look(world, plane)
    assert (await world.sandbox(sandbox_id)).state is S.PAUSED


# --- retention


async def test_an_ended_sandbox_keeps_its_reason_for_thirty_days(world: World) -> None:
    plane = await world.start()
    sandbox_id = await running(plane)
    world.host.die(sandbox_id, EndReason.OOM, "no memory left")
    await until_state(world, sandbox_id, S.STOPPED)
    world.clock.move(29 * DAY)
    await plane.retention.run()
    sandbox = await plane.sandboxes.get(ME, sandbox_id)
    assert (sandbox.end_reason, sandbox.end_note) == (EndReason.OOM, "no memory left")
    assert "capsule.destroyed" in [event.name for event in await plane.events.of(ME, sandbox_id)]
    world.clock.move(2 * DAY)
    await plane.retention.run()
    with pytest.raises(NotFound):
        await plane.sandboxes.get(ME, sandbox_id)
    assert await plane.events.of(ME, sandbox_id) == []


async def test_what_lives_is_never_forgotten(world: World) -> None:
    plane = await world.start()
    sandbox_id = await asleep(plane)
    world.clock.move(400 * DAY)
    await plane.retention.run()
    assert (await plane.sandboxes.get(ME, sandbox_id)).state is S.PAUSED
    await world.check()


# --- figures


def test_days_are_split_at_midnight() -> None:
    noon = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()
    assert list(days(noon, noon + DAY)) == [("2026-03-01", DAY / 2), ("2026-03-02", DAY / 2)]
    assert list(days(noon, noon)) == list(days(noon, noon - 5)) == []
    assert sum(seconds for _, seconds in days(noon, noon + 5.5 * DAY)) == 5.5 * DAY


async def test_usage_counts_transitions_exactly(world: World) -> None:
    plane = await world.start()
    world.clock.move(datetime(2027, 1, 1, 23, 30, tzinfo=UTC).timestamp() - world.clock.now())
    sandbox_id = await running(plane)
    world.clock.move(3600)
    live = await plane.figures.usage(ME, "2027-01-01", "2027-01-31")
    assert [(day.day, day.cpu_minutes, day.memory_mib_minutes) for day in live] == [("2027-01-01", 30, 30 * 256), ("2027-01-02", 30, 30 * 256)]
    await done(plane, await plane.sandboxes.pause(ME, sandbox_id))
    world.clock.move(7200)
    assert await plane.figures.usage(ME, "2027-01-01", "2027-01-31") == live, "asleep costs nothing"
    await done(plane, await plane.sandboxes.resume(ME, sandbox_id))
    world.clock.move(600)
    world.host.die(sandbox_id)
    await until_state(world, sandbox_id, S.STOPPED)
    assert [day.cpu_minutes for day in await plane.figures.usage(ME, "2027-01-02", "2027-01-02")] == [40]
    with pytest.raises(InvalidInput):
        await plane.figures.usage(ME, "2027-01-02", "2027-01-01")


class _Meter:
    """Readings of one sandbox whose VMM uses half a core."""

    def __init__(self, world: World, sandbox_id: str) -> None:
        self.world, self.sandbox_id, self.began = world, sandbox_id, world.clock.now()

    async def read(self) -> list[Reading]:
        return [Reading(self.sandbox_id, (self.world.clock.now() - self.began) / 2, 100 << 20, 1 << 20)]


async def test_metrics_in_three_resolutions(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    plane = await world.start()
    sandbox_id = await running(plane)
    world.clock.move(300 - world.clock.now() % 300)
    monkeypatch.setattr(world.host, "readings", _Meter(world, sandbox_id).read)
    for _ in range(901):
        await plane.figures.sample()
        world.clock.move(1)
    fine = await plane.figures.points(ME, sandbox_id, 600)
    assert len(fine) >= 599 and {round(point.cpu_percent) for point in fine} == {50}
    assert len(await plane.figures.points(ME, sandbox_id, 60)) >= 59
    assert len(await plane.figures.points(ME, sandbox_id, 7200)) == 30
    assert [round(point.cpu_percent) for point in await plane.figures.points(ME, sandbox_id, DAY)] == [50, 50, 50]
    await done(plane, await plane.sandboxes.pause(ME, sandbox_id))
    monkeypatch.undo()
    await plane.figures.sample()
    assert len(await plane.figures.points(ME, sandbox_id, 600)) >= 590, "what was in memory is kept"
    async with world.store.read() as records:
        assert len(await records.figures.points(sandbox_id, Tier.TEN_MINUTES, 0)) == 600
    with pytest.raises(InvalidInput):
        await plane.figures.points(ME, sandbox_id, DAY + 1)
    with pytest.raises(NotFound):
        await plane.figures.points(replace(ME, team_id="z" * 25), sandbox_id, 600)


async def test_metrics_survive_an_orderly_restart(world: World) -> None:
    plane = await world.start()
    sandbox_id = await running(plane)
    for _ in range(10):
        await plane.figures.sample()
        world.clock.move(1)
    before = await plane.figures.points(ME, sandbox_id, 600)
    world.planes.remove(plane)
    await plane.close()
    plane = await world.start()
    assert await plane.figures.points(ME, sandbox_id, 600) == before and len(before) == 9


async def test_what_a_team_held(world: World) -> None:
    plane = await world.start()
    first, second = await running(plane), await running(plane)
    await plane.figures.sample_teams()
    world.clock.move(60)
    for sandbox_id in (first, second):
        await done(plane, await plane.sandboxes.kill(ME, sandbox_id))
    for _ in range(3):
        await plane.figures.sample_teams()
        world.clock.move(10)
    stats = await plane.figures.stats(ME, 3600, 30)
    assert (stats.current.sandboxes, stats.peaks.running, stats.peaks.memory_mib) == (0, 2, 512)
    assert [sample.running for sample in stats.series] == [2, 0], "nothing is written for a team that holds nothing"


# --- the stream of events


async def _take(stream: Any, count: int) -> list[Event]:
    async with asyncio.timeout(100):
        return [await anext(stream) for _ in range(count)]


async def test_events_come_in_order_and_from_any_point(world: World) -> None:
    plane = await world.start()
    stream = plane.events.stream(ME, 0)
    sandbox_id = await running(plane)
    first = await _take(stream, 2)
    assert [event.name for event in first] == ["capsule.starting", "capsule.created"]
    waiting = asyncio.ensure_future(_take(stream, 2))
    await done(plane, await plane.sandboxes.pause(ME, sandbox_id))
    assert [event.name for event in await waiting] == ["capsule.pausing", "capsule.paused"]
    await stream.aclose()
    again = plane.events.stream(ME, first[0].sequence, resource_id=sandbox_id)
    assert [event.name for event in await _take(again, 2)] == ["capsule.created", "capsule.pausing"]
    await again.aclose()
    assert await plane.events.last(ME) > first[1].sequence


async def test_a_lost_notice_delays_events_but_loses_none(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    plane = await world.start()
    stream = plane.events.stream(ME, 0)
    waiting = asyncio.ensure_future(_take(stream, 2))
    await world.clock.sleeper(30)

    async def lose(*notices: object) -> None: ...

    monkeypatch.setattr(world.bus, "publish", lose)
    started = await plane.sandboxes.create(ME, TINY)
    assert (await plane.sandboxes.settled(started.sandbox.id, started.operation_id, LONG)).state is S.RUNNING
    world.clock.move(31)
    assert len(await waiting) == 2
    await stream.aclose()
