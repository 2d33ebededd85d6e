"""Operations when hosts lie, are silent, or come late; and when whoever performs them dies at any point."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from service_world import ME, TINY, World, asleep, done, opened, running, until_state

from torpor.model.errors import HostUnavailable, TimedOut, TorporError
from torpor.model.records import SandboxState
from torpor.model.sandbox import EndReason
from torpor.service.control import ControlPlane
from torpor.testing.fake_hosts import Fault, Trouble

S = SandboxState
Act = Callable[[ControlPlane, str], Awaitable[object]]


async def _snapshot(plane: ControlPlane, sandbox_id: str, **how: Any) -> object:
    return await done(plane, await plane.sandboxes.snapshot(ME, sandbox_id, "name", overwrite=True, **how))


async def _fork(plane: ControlPlane, sandbox_id: str) -> object:
    return [await done(plane, one) for one in await plane.sandboxes.fork(ME, sandbox_id, 2)]


async def _create(plane: ControlPlane, sandbox_id: str) -> object:
    return await done(plane, await plane.sandboxes.create(ME, TINY))


def _plain(verb: str, *more: Any) -> Act:
    async def act(plane: ControlPlane, sandbox_id: str) -> object:
        return await done(plane, await getattr(plane.sandboxes, verb)(ME, sandbox_id, *more))

    return act


async def _delete(plane: ControlPlane, sandbox_id: str) -> object:
    return await plane.templates.delete(ME, "name")


ACTS: dict[str, tuple[Act, bool, set[SandboxState], str]] = {
    "create": (_create, False, {S.RUNNING}, "create"),
    "pause": (_plain("pause"), False, {S.PAUSED}, "pause"),
    "resume": (_plain("resume"), True, {S.RUNNING}, "resume"),
    "cold_boot": (_plain("cold_boot"), True, {S.RUNNING}, "cold_boot"),
    "rollback": (_plain("rollback", "name"), False, {S.RUNNING}, "rollback"),
    "kill": (_plain("kill"), False, {S.STOPPED}, "kill"),
    "kill_paused": (_plain("kill"), True, {S.STOPPED}, "kill"),
    "snapshot": (_snapshot, False, {S.RUNNING}, "snapshot"),
    "snapshot_paused": (_snapshot, True, {S.PAUSED}, "snapshot"),
    "snapshot_and_pause": (lambda plane, name: _snapshot(plane, name, keep_running=False), False, {S.PAUSED}, "snapshot"),
    "fork": (_fork, False, {S.RUNNING}, "fork"),
    "delete_template": (_delete, False, {S.RUNNING}, "delete_snapshot"),
}
"""What is done, whether to a paused sandbox, where the sandbox is afterwards, the host's verb."""


async def _prepared(world: World, plane: ControlPlane, name: str) -> str:
    """A sandbox to do it to, with a snapshot `name` of it."""
    sandbox_id = await running(plane)
    await (await world.host.guest(sandbox_id)).remember("kept")
    await done(plane, await plane.sandboxes.snapshot(ME, sandbox_id, "name"))
    if ACTS[name][1]:
        await done(plane, await plane.sandboxes.pause(ME, sandbox_id))
    return sandbox_id


# --- hosts that lie


@pytest.mark.parametrize("trouble", [Trouble.LOST_REPLY, Trouble.UNREACHABLE])
@pytest.mark.parametrize("name", ACTS)
async def test_a_lost_reply_is_asked_again_and_done_once(world: World, name: str, trouble: Trouble) -> None:
    act, _, states, verb = ACTS[name]
    plane = await world.start()
    sandbox_id = await _prepared(world, plane, name)
    world.host.faults.append(Fault(verb, trouble))
    world.host.effects.clear()
    await act(plane, sandbox_id)
    await plane.operations.idle()
    await plane.reconciler.run()
    assert (await world.sandbox(sandbox_id)).state in states
    assert [effect for effect, _ in world.host.effects].count(verb) == (2 if verb == "rollback" and trouble is Trouble.LOST_REPLY else 1)
    await world.check()


@pytest.mark.parametrize("name", sorted(set(ACTS) - {"kill", "kill_paused", "delete_template"}))
async def test_an_error_after_the_effect_is_judged_by_what_is_so(world: World, name: str) -> None:
    act, _, _, verb = ACTS[name]
    plane = await world.start()
    sandbox_id = await _prepared(world, plane, name)
    world.host.faults.append(Fault(verb, Trouble.ERROR_AFTER))
    try:
        await act(plane, sandbox_id)
    except TorporError:
        pass
    await plane.operations.idle()
    await plane.reconciler.run()
    await world.check()


@pytest.mark.parametrize("name", sorted(set(ACTS) - {"delete_template"}))
async def test_a_silent_host_and_the_deadline(world: World, name: str) -> None:
    """T2: every transient state ends by its deadline, and when the host speaks again the records are what it says."""
    act, _, _, verb = ACTS[name]
    plane = await world.start()
    sandbox_id = await _prepared(world, plane, name)
    world.host.faults += [Fault(verb, Trouble.SILENT, times=1000), Fault("machine", Trouble.SILENT, times=1000), Fault("report", Trouble.SILENT, times=1000)]
    doing = asyncio.ensure_future(act(plane, sandbox_id))
    await _while_time_passes(world, doing)
    assert all(one.operation is None for one in await world.all())
    if name in ("kill", "kill_paused"):
        assert (await world.sandbox(sandbox_id)).state is S.STOPPED
    else:
        assert isinstance(doing.exception(), TimedOut)
    assert {one.state for one in await world.all()} <= {S.MISSING, S.STOPPED, S.ERROR, S.RUNNING, S.PAUSED}
    world.host.faults.clear()
    await _while_time_passes(world, asyncio.ensure_future(plane.operations.idle()))  # what was asked of the silent host is given up
    await plane.reconciler.run()
    await plane.operations.idle()
    await plane.reconciler.run()
    await world.check()


async def _while_time_passes(world: World, doing: asyncio.Future[Any]) -> None:
    while not doing.done():
        sleeping = asyncio.ensure_future(world.clock.sleeper(1000))
        await asyncio.wait({doing, sleeping}, return_when=asyncio.FIRST_COMPLETED)
        sleeping.cancel()
        await asyncio.wait({doing}, timeout=0.002)
        world.clock.move(10)


async def test_a_host_that_is_busy_for_ever_is_as_good_as_silent(world: World) -> None:
    plane = await world.start()
    sandbox_id = await running(plane)
    world.host.hold("pause")
    started = await plane.sandboxes.pause(ME, sandbox_id)
    world.host.busy(sandbox_id)
    waiting = asyncio.ensure_future(done(plane, started))
    await asyncio.sleep(0)
    world.clock.move(301)
    with pytest.raises(TimedOut):
        await waiting
    assert (await world.sandbox(sandbox_id)).state is S.MISSING
    world.host.let_go("pause")
    await until_state(world, sandbox_id, S.PAUSED)
    await world.check()


async def test_a_machine_that_dies_during_an_operation(world: World) -> None:
    plane = await world.start()
    sandbox_id = await running(plane)
    world.host.hold("pause")
    started = await plane.sandboxes.pause(ME, sandbox_id)
    world.host.die(sandbox_id, EndReason.GUEST_CRASH, "panic")
    world.host.let_go("pause")
    with pytest.raises(TorporError):
        await done(plane, started)
    sandbox = await world.sandbox(sandbox_id)
    assert (sandbox.state, sandbox.end_reason, sandbox.end_note) == (S.STOPPED, EndReason.GUEST_CRASH, "panic")
    await plane.operations.idle()
    await world.check()


async def test_an_unreachable_host_is_asked_until_the_deadline(world: World) -> None:
    plane = await world.start()
    sandbox_id = await running(plane)
    world.host.reachable = False
    started = await plane.sandboxes.pause(ME, sandbox_id)
    for _ in range(3):
        await world.clock.sleeper(16)
        world.clock.move(16)
    world.host.reachable = True
    await world.clock.sleeper(16)
    world.clock.move(16)
    assert (await done(plane, started)).state is S.PAUSED
    await world.check()
    with pytest.raises(HostUnavailable):
        world.hosts.get("elsewhere")


# --- control planes that die


async def _until_dead(world: World, plane: ControlPlane, doing: asyncio.Task[object]) -> bool:
    """Whether it died before it was done."""
    died = asyncio.ensure_future(world.died.wait())
    await asyncio.wait({doing, died}, return_when=asyncio.FIRST_COMPLETED)
    if not world.died.is_set():
        idle = asyncio.ensure_future(plane.operations.idle())
        await asyncio.wait({idle, died}, return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()
    dead = world.died.is_set()
    died.cancel()
    doing.cancel()
    await asyncio.gather(doing, died, return_exceptions=True)
    await world.kill(plane)
    return dead


async def _settle(world: World, plane: ControlPlane) -> None:
    await plane.operations.idle()
    await plane.reconciler.run()
    await plane.operations.idle()


async def _die(database: Path, name: str, at: int, *, sole: bool) -> str:
    """Does it, dying at point `at`; then a new control plane recovers. The point, '' when all was done before it."""
    act, _, states, _ = ACTS[name]
    async with opened(database) as world:
        plane = await world.start(sole=sole)
        sandbox_id = await _prepared(world, plane, name)
        before = await world.sandbox(sandbox_id)
        world.die_at = at
        dead = await _until_dead(world, plane, asyncio.ensure_future(act(plane, sandbox_id)))  # type: ignore[arg-type]
        plane = await world.start(sole=sole)
        try:
            if not sole:
                world.clock.move(301)
                await plane.timers.look()
            await _settle(world, plane)
            await world.check()
            after = await world.sandbox(sandbox_id)
            assert after.state in states | {before.state}
            if after.state is S.PAUSED:
                await done(plane, await plane.sandboxes.resume(ME, sandbox_id))
            if after.state in (S.RUNNING, S.PAUSED):
                wanted = {"", "kept"} if name == "cold_boot" else {"kept"}
                assert await (await world.host.guest(sandbox_id)).text() in wanted
        except BaseException as error:
            error.add_note(f"{name}, died at point {at}: {world.point}")
            raise
        return world.point if dead else ""


@pytest.mark.parametrize("sole", [True, False], ids=["alone", "replica"])
@pytest.mark.parametrize("name", ACTS)
async def test_a_control_plane_dies_at_every_point(fresh: Callable[[], Path], name: str, sole: bool) -> None:
    """Before and after each host call and each transaction: the next one brings it to an end, and records and host agree (T2, T3)."""
    at, points = 0, []
    while point := await _die(fresh(), name, at := at + 1, sole=sole):
        points.append(point)
    assert "before a transaction" in points and "after a transaction" in points
    assert any(point.startswith("before ") and point != "before a transaction" for point in points), points


async def test_recovery_may_itself_be_cut_short(fresh: Callable[[], Path]) -> None:
    async with opened(fresh()) as world:
        plane = await world.start()
        sandbox_id = await running(plane)
        world.host.hold("snapshot")
        await plane.sandboxes.snapshot(ME, sandbox_id, "name")
        for _ in range(5):
            await world.kill(plane)
            plane = await world.start()
        world.host.let_go("snapshot")
        await _settle(world, plane)
        await world.check()
        assert (await plane.templates.find(ME, "name")).sandbox_id == sandbox_id


async def test_who_began_it_is_still_known_after_a_recovery(world: World) -> None:
    plane = await world.start()
    sandbox_id = await running(plane)
    world.host.hold("pause")
    await plane.sandboxes.pause(ME, sandbox_id)
    await world.kill(plane)
    plane = await world.start()
    world.host.let_go("pause")
    await plane.operations.idle()
    async with world.store.read() as records:
        last = (await records.events.of(sandbox_id))[-1]
    assert (last.name, last.actor) == ("capsule.paused", ME.actor)


# --- several at once


async def test_replicas_never_double_an_effect(world: World) -> None:
    planes = [await world.start(sole=False) for _ in range(3)]
    sandbox_id = await running(planes[0])
    for verb in ("pause", "resume", "pause", "cold_boot", "pause", "kill"):
        world.host.effects.clear()
        asked = await asyncio.gather(*(getattr(plane.sandboxes, verb)(ME, sandbox_id) for plane in planes), return_exceptions=True)
        for plane, one in zip(planes, asked, strict=True):
            if not isinstance(one, BaseException) and one.operation_id:
                await done(plane, one)
        assert world.host.effects == [(verb, sandbox_id)]
    asked = await asyncio.gather(*(plane.sandboxes.create(ME, TINY, idempotency_key="k", request_digest="d") for plane in planes))
    assert len({one.sandbox.id for one in asked}) == 1
    for plane, one in zip(planes, asked, strict=True):
        assert (await done(plane, one)).state is S.RUNNING
    await world.check()


async def test_replicas_settle_once_what_is_past_its_deadline(world: World) -> None:
    planes = [await world.start(sole=False) for _ in range(3)]
    sandbox_id = await running(planes[0])
    world.host.faults.append(Fault("pause", Trouble.SILENT))
    asked = asyncio.Event()
    world.host.before = lambda verb, _: asked.set() if verb == "pause" else None
    await planes[0].sandboxes.pause(ME, sandbox_id)
    await asked.wait()
    await world.kill(planes[0])
    await asyncio.gather(*(plane.timers.look() for plane in planes[1:]))
    assert (await world.sandbox(sandbox_id)).state is S.PAUSING
    world.clock.move(301)
    await asyncio.gather(*(plane.timers.look() for plane in planes[1:]))
    assert (await world.events(sandbox_id)).count("capsule.failed") == 1
    await world.check()
    sleeping = await asleep(planes[1])
    assert (await world.sandbox(sleeping)).state is S.PAUSED
