"""What a team does with its sandboxes, when everything goes well and when a host refuses."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from service_world import ADMIN, LONG, ME, OTHER, TEAM, TINY, World, asleep, done, running, until_state

from torpor.model.errors import (
    Conflict,
    Denied,
    DenyReason,
    Forbidden,
    GuestLost,
    HostUnavailable,
    InvalidInput,
    NoSpace,
    NotFound,
    Overloaded,
    QuotaExceeded,
    VmmError,
)
from torpor.model.records import PLATFORM_TEAM, Limits, SandboxState, Team, TemplateKind
from torpor.model.sandbox import EndReason
from torpor.ports.hosts import Capacity
from torpor.ports.records import SandboxFilter
from torpor.service.sandboxes import CreateRequest
from torpor.testing.fake_hosts import Fault, Trouble

S = SandboxState


async def test_a_life(world: World) -> None:
    plane = await world.start()
    started = await plane.sandboxes.create(ME, replace(TINY, env={"A": "b"}, labels={"job": "1"}))
    assert started.sandbox.state is S.STARTING and started.sandbox.host_id == "fakehost"
    sandbox = await done(plane, started)
    assert (sandbox.state, sandbox.operation, sandbox.created_by) == (S.RUNNING, None, ME.actor.id)
    guest: Any = await world.host.guest(sandbox.id)
    assert guest.identity.names == {"A": "b"} and guest.identity.sandbox_id == sandbox.id
    await guest.remember("text")
    paused = await done(plane, await plane.sandboxes.pause(ME, sandbox.id))
    assert paused.state is S.PAUSED and paused.stored_bytes > 0
    assert (await plane.sandboxes.pause(ME, sandbox.id)).operation_id == ""
    assert (await done(plane, await plane.sandboxes.resume(ME, sandbox.id))).state is S.RUNNING
    async with plane.sandboxes.use(ME, sandbox.id, "test") as again:
        assert await again.text() == "text"  # type: ignore[attr-defined]
    ended = await done(plane, await plane.sandboxes.kill(ME, sandbox.id))
    assert (ended.state, ended.end_reason, ended.ended_at) == (S.STOPPED, EndReason.USER, world.clock.now())
    assert (await plane.sandboxes.kill(ME, sandbox.id)).operation_id == ""
    await world.check()
    assert await world.events(sandbox.id) == [
        "capsule.starting", "capsule.created", "capsule.pausing", "capsule.paused",
        "capsule.resuming", "capsule.running", "capsule.stopping", "capsule.destroyed",
    ]  # fmt: skip
    assert await world.audit() == [
        ("sandbox", "create", "success"), ("sandbox", "pause", "success"), ("sandbox", "resume", "success"), ("sandbox", "destroy", "warning"),
    ]  # fmt: skip


async def test_a_caller_that_leaves_changes_nothing(world: World) -> None:
    plane = await world.start()
    world.host.hold("create")
    started = await plane.sandboxes.create(ME, TINY)
    waiting = asyncio.ensure_future(done(plane, started))
    await asyncio.sleep(0)
    waiting.cancel()
    world.host.let_go("create")
    assert (await until_state(world, started.sandbox.id, S.RUNNING)).machine_id


async def test_a_wait_that_is_over_shows_the_transient_state(world: World) -> None:
    plane = await world.start()
    sandbox_id = await running(plane)
    world.host.hold("pause")
    started = await plane.sandboxes.pause(ME, sandbox_id)
    waiting = asyncio.ensure_future(plane.sandboxes.settled(sandbox_id, started.operation_id, 4.0))
    await asyncio.sleep(0)
    world.clock.move(5)
    assert (await waiting).state is S.PAUSING
    assert (await plane.sandboxes.pause(ME, sandbox_id)).operation_id == started.operation_id
    world.host.let_go("pause")
    assert (await done(plane, started)).state is S.PAUSED


@pytest.mark.parametrize("verb", ["pause", "resume", "cold_boot", "kill"])
async def test_asked_by_many_at_once_it_is_done_once(world: World, verb: str) -> None:
    plane = await world.start()
    sandbox_id = await (running(plane) if verb == "pause" else asleep(plane))
    world.host.effects.clear()
    asked = await asyncio.gather(*(getattr(plane.sandboxes, verb)(ME, sandbox_id) for _ in range(5)), return_exceptions=True)
    started = [one for one in asked if not isinstance(one, BaseException)]
    assert len({one.operation_id for one in started} - {""}) == 1
    await asyncio.gather(*(done(plane, one) for one in started))
    assert [effect for effect, _ in world.host.effects] == [verb]
    await world.check()


async def test_a_create_that_the_host_refuses(world: World) -> None:
    plane = await world.start()
    world.host.faults.append(Fault("create", Trouble.REFUSED, error=NoSpace("full")))
    started = await plane.sandboxes.create(ME, TINY)
    with pytest.raises(NoSpace):
        await done(plane, started)
    sandbox = await plane.sandboxes.get(ME, started.sandbox.id)
    assert (sandbox.state, sandbox.end_reason, sandbox.end_note) == (S.ERROR, EndReason.ERROR, "full")
    await plane.operations.idle()
    await world.check()
    assert (await world.audit())[-1] == ("sandbox", "create", "error")


@pytest.mark.parametrize(("verb", "from_paused", "state"), [("pause", False, S.RUNNING), ("resume", True, S.PAUSED), ("cold_boot", True, S.PAUSED)])
async def test_what_the_host_refuses_leaves_the_sandbox_as_it_was(world: World, verb: str, from_paused: bool, state: SandboxState) -> None:
    plane = await world.start()
    sandbox_id = await (asleep(plane) if from_paused else running(plane))
    world.host.faults.append(Fault(verb, Trouble.REFUSED))
    started = await getattr(plane.sandboxes, verb)(ME, sandbox_id)
    with pytest.raises(VmmError):
        await done(plane, started)
    assert (await plane.sandboxes.get(ME, sandbox_id)).state is state
    await world.check()
    assert (await world.events(sandbox_id))[-1] == "capsule.failed"


async def test_a_kill_takes_over_whatever_is_under_way(world: World) -> None:
    plane = await world.start()
    sandbox_id = await running(plane)
    world.host.hold("pause")
    pausing = await plane.sandboxes.pause(ME, sandbox_id)
    killing = await plane.sandboxes.kill(ME, sandbox_id)
    with pytest.raises(Denied) as caught:
        await done(plane, pausing)
    assert caught.value.reason is DenyReason.ENDING
    assert (await done(plane, killing)).state is S.STOPPED
    world.host.let_go("pause")
    await plane.operations.idle()
    await world.check()


async def test_a_kill_is_never_refused_for_good(world: World) -> None:
    plane = await world.start()
    sandbox_id = await running(plane)
    world.host.faults.append(Fault("kill", Trouble.REFUSED, times=2))
    started = await plane.sandboxes.kill(ME, sandbox_id)
    await world.clock.sleeper(1)  # the second try was at once
    world.clock.move(1)
    assert (await done(plane, started)).state is S.STOPPED
    await world.check()


async def test_teams_do_not_see_one_another(world: World) -> None:
    plane = await world.start()
    sandbox_id = await running(plane)
    calls: list[Any] = [plane.sandboxes.get, plane.sandboxes.pause, plane.sandboxes.resume, plane.sandboxes.kill, plane.sandboxes.fork, plane.sandboxes.ping]
    for call in calls:
        with pytest.raises(NotFound):
            await call(OTHER, sandbox_id)
    with pytest.raises(NotFound):
        await plane.sandboxes.snapshot(OTHER, sandbox_id, "mine")
    with pytest.raises(NotFound):
        async with plane.sandboxes.use(OTHER, sandbox_id, "test"):
            pass
    assert (await plane.sandboxes.list(OTHER, SandboxFilter(team_id=TEAM))).items == []
    assert [one.id for one in (await plane.sandboxes.list(ADMIN, SandboxFilter())).items] == [sandbox_id]
    assert (await plane.sandboxes.get(ADMIN, sandbox_id)).id == sandbox_id


async def test_bad_wishes_make_nothing(world: World) -> None:
    plane = await world.start()
    now = world.clock.now()
    wishes = [(replace(TINY, template="none"), NotFound), (replace(TINY, vcpus=0), InvalidInput), (replace(TINY, memory_mib=1 << 30), InvalidInput)]
    wishes += [(replace(TINY, deadline=now - 1), InvalidInput), (replace(TINY, idle_timeout=-1.0), InvalidInput)]
    for wish, error in wishes:
        with pytest.raises(error):
            await plane.sandboxes.create(ME, wish)
    assert await world.all() == []


async def test_the_same_idempotency_key_is_the_same_sandbox(world: World) -> None:
    plane = await world.start()
    asked = await asyncio.gather(*(plane.sandboxes.create(ME, TINY, idempotency_key="k", request_digest="d") for _ in range(3)))
    assert len({one.sandbox.id for one in asked}) == 1
    for one in asked:
        assert (await done(plane, one)).state is S.RUNNING
    with pytest.raises(Conflict):
        await plane.sandboxes.create(ME, TINY, idempotency_key="k", request_digest="other")
    source = asked[0].sandbox.id
    first = await plane.sandboxes.fork(ME, source, 2, idempotency_key="f", request_digest="d")
    again = await plane.sandboxes.fork(ME, source, 2, idempotency_key="f", request_digest="d")
    assert [one.sandbox.id for one in again] == [one.sandbox.id for one in first]
    assert [(await done(plane, one)).state for one in again] == [S.RUNNING] * 2
    made = await plane.sandboxes.snapshot(ME, source, "named", idempotency_key="s", request_digest="d")
    await done(plane, made)
    assert (await plane.sandboxes.snapshot(ME, source, "named", idempotency_key="s", request_digest="d")).operation_id == made.operation_id
    await world.check()
    assert len(await world.all()) == 3


async def test_an_error_is_told_again_to_who_repeats_the_key(world: World) -> None:
    plane = await world.start()
    world.host.faults.append(Fault("create", Trouble.REFUSED, error=NoSpace("full")))
    for _ in range(2):
        started = await plane.sandboxes.create(ME, TINY, idempotency_key="k", request_digest="d")
        with pytest.raises(NoSpace):
            await done(plane, started)
    await world.kill(plane)
    plane = await world.start()
    started = await plane.sandboxes.create(ME, TINY, idempotency_key="k", request_digest="d")
    with pytest.raises(NoSpace, match="full"):
        await done(plane, started)


async def test_admission_to_a_host(world: World) -> None:
    world.host.space = Capacity(1, 512, 1 << 40, 512, 1 << 39)
    plane = await world.start(memory_overcommit=1.0, vcpu_overcommit=2.0)
    outcomes = await asyncio.gather(*(plane.sandboxes.create(ME, TINY) for _ in range(4)), return_exceptions=True)
    admitted = [one for one in outcomes if not isinstance(one, BaseException)]
    refused = [one for one in outcomes if isinstance(one, Overloaded)]
    assert (len(admitted), len(refused)) == (2, 2) and all(one.retry_after > 0 for one in refused)
    for one in admitted:
        assert (await done(plane, one)).state is S.RUNNING
    await done(plane, await plane.sandboxes.pause(ME, admitted[0].sandbox.id))
    sandbox_id = await running(plane)
    with pytest.raises(Overloaded):
        await plane.sandboxes.resume(ME, admitted[0].sandbox.id)
    with pytest.raises(Overloaded):
        await plane.sandboxes.fork(ME, sandbox_id)
    world.host.space = replace(world.host.space, memory_mib=1 << 20, accepts=False, problem="the disk is nearly full")
    with pytest.raises(Overloaded, match="nearly full"):
        await plane.sandboxes.create(ME, TINY)
    world.host.reachable = False
    with pytest.raises(HostUnavailable):
        await plane.sandboxes.create(ME, TINY)
    world.host.reachable = True
    await world.check()


async def test_a_teams_limits(world: World) -> None:
    plane = await world.start()
    async with world.store.write() as records:
        await records.teams.add(Team(TEAM, "team", "team", world.clock.now(), limits=Limits(sandboxes=1, memory_mib=256)))
    first = await running(plane)
    with pytest.raises(QuotaExceeded):
        await plane.sandboxes.create(ME, TINY)
    await done(plane, await plane.sandboxes.pause(ME, first))
    second = await running(plane)
    with pytest.raises(QuotaExceeded):
        await plane.sandboxes.resume(ME, first)
    await done(plane, await plane.sandboxes.pause(ME, second))
    async with world.store.write() as records:
        await records.teams.set_limits(TEAM, Limits(storage_bytes=1))
    await done(plane, await plane.sandboxes.resume(ME, first))
    for refused in (plane.sandboxes.create(ME, TINY), plane.sandboxes.snapshot(ME, first, "name"), plane.sandboxes.fork(ME, first)):
        with pytest.raises(QuotaExceeded, match="MiB"):
            await refused
    await done(plane, await plane.sandboxes.pause(ME, first))
    await world.check()


async def test_a_fork(world: World) -> None:
    plane = await world.start()
    source = await running(plane, labels={"a": "b"})
    await (await world.host.guest(source)).remember("parent")
    started = await plane.sandboxes.fork(ME, source, 3)
    children = [await done(plane, one) for one in started]
    assert {one.state for one in children} == {S.RUNNING} and {one.labels["a"] for one in children} == {"b"}
    assert [await (await world.host.guest(one.id)).text() for one in children] == ["parent"] * 3
    assert (await plane.sandboxes.get(ME, source)).state is S.RUNNING
    await world.check()
    for count in (0, 1000):
        with pytest.raises(InvalidInput):
            await plane.sandboxes.fork(ME, source, count)


@pytest.mark.parametrize("trouble", [Trouble.REFUSED, Trouble.ERROR_AFTER])
async def test_a_fork_is_all_or_none(world: World, trouble: Trouble) -> None:
    plane = await world.start()
    source = await running(plane)
    world.host.faults.append(Fault("fork", trouble))
    started = await plane.sandboxes.fork(ME, source, 2)
    for one in started:
        with pytest.raises(VmmError):
            await done(plane, one)
    assert {one.state for one in await world.all()} == {S.RUNNING, S.ERROR}
    await plane.operations.idle()
    await world.check()


async def test_a_rollback(world: World) -> None:
    plane = await world.start()
    sandbox_id = await running(plane)
    await (await world.host.guest(sandbox_id)).remember("then")
    await done(plane, await plane.sandboxes.snapshot(ME, sandbox_id, "then"))
    await (await world.host.guest(sandbox_id)).remember("now")
    assert (await done(plane, await plane.sandboxes.rollback(ME, sandbox_id, "then"))).state is S.RUNNING
    assert await (await world.host.guest(sandbox_id)).text() == "then"
    await done(plane, await plane.sandboxes.pause(ME, sandbox_id))
    assert (await done(plane, await plane.sandboxes.rollback(ME, sandbox_id, "then"))).state is S.RUNNING
    with pytest.raises(InvalidInput):
        await plane.sandboxes.rollback(ME, sandbox_id, "tiny")
    with pytest.raises(NotFound):
        await plane.sandboxes.rollback(ME, sandbox_id, "none")
    await world.check()


async def test_a_cold_boot(world: World) -> None:
    plane = await world.start()
    sandbox_id = await asleep(plane)
    assert (await done(plane, await plane.sandboxes.cold_boot(ME, sandbox_id))).state is S.RUNNING
    with pytest.raises(Denied):
        await plane.sandboxes.cold_boot(ME, sandbox_id)


async def test_use_wakes_only_who_may_be_woken(world: World) -> None:
    plane = await world.start()
    light, deep = await asleep(plane, auto_resume=True), await asleep(plane)
    asked = await asyncio.gather(*(_text(plane, light) for _ in range(3)))
    assert asked == [""] * 3
    assert world.host.effects.count(("resume", light)) == 1
    with pytest.raises(Denied) as caught:
        await _text(plane, deep)
    assert caught.value.reason is DenyReason.NOT_RUNNING
    world.host.hold("pause")
    pausing = await plane.sandboxes.pause(ME, light)
    using = asyncio.ensure_future(_text(plane, light))
    await asyncio.sleep(0)
    world.host.let_go("pause")
    assert await using == "" and (await done(plane, pausing)).state is S.PAUSED
    await world.check()


async def _text(plane: Any, sandbox_id: str) -> str:
    async with plane.sandboxes.use(ME, sandbox_id, "test") as guest:
        return str(await guest.text())


async def test_use_of_a_machine_that_just_ended_says_so(world: World) -> None:
    plane = await world.start()
    sandbox_id = await running(plane)
    plane.reconciler._followed["fakehost"].cancel()  # the host's push is lost
    world.host.die(sandbox_id, EndReason.OOM, "no memory")
    with pytest.raises((Denied, GuestLost)):
        await _text(plane, sandbox_id)
    assert (await plane.sandboxes.get(ME, sandbox_id)).end_reason is EndReason.OOM


async def test_timeouts_can_be_set_while_something_is_under_way(world: World) -> None:
    plane = await world.start()
    sandbox_id = await running(plane)
    world.host.hold("pause")
    started = await plane.sandboxes.pause(ME, sandbox_id)
    later = world.clock.now() + 100
    assert (await plane.sandboxes.set_timeouts(ME, sandbox_id, idle_timeout=30, deadline=later)).state is S.PAUSING
    world.host.let_go("pause")
    after = await done(plane, started)
    assert (after.state, after.idle_timeout, after.deadline) == (S.PAUSED, 30, later)
    with pytest.raises(InvalidInput):
        await plane.sandboxes.set_timeouts(ME, sandbox_id, idle_timeout=0, deadline=1.0)
    await done(plane, await plane.sandboxes.kill(ME, sandbox_id))
    with pytest.raises(Denied):
        await plane.sandboxes.set_timeouts(ME, sandbox_id, idle_timeout=0, deadline=None)


# --- snapshots


async def test_snapshots_of_running_and_paused_sandboxes(world: World) -> None:
    plane = await world.start()
    sandbox_id = await running(plane)
    kept = await done(plane, await plane.sandboxes.snapshot(ME, sandbox_id, "one"))
    assert kept.state is S.RUNNING
    left = await done(plane, await plane.sandboxes.snapshot(ME, sandbox_id, "two", keep_running=False))
    assert left.state is S.PAUSED
    again = await done(plane, await plane.sandboxes.snapshot(ME, sandbox_id))
    assert again.state is S.PAUSED
    names = {one.name: one for one in (await plane.templates.list(ME)).items}
    assert {"tiny", "one", "two"} < names.keys() and len(names) == 4
    assert names["one"].kind is TemplateKind.SNAPSHOT and names["one"].shape == kept.shape and names["one"].size_bytes > 0
    child = await done(plane, await plane.sandboxes.create(ME, CreateRequest("one", vcpus=8, memory_mib=4096)))
    assert child.shape == kept.shape
    await world.check()
    assert ("snapshot", "create", "success") in await world.audit()


async def test_a_name_is_held_and_an_overwrite_keeps_the_old_until_the_new_is_complete(world: World) -> None:
    plane = await world.start()
    sandbox_id, other = await running(plane), await running(plane)
    await done(plane, await plane.sandboxes.snapshot(ME, sandbox_id, "name"))
    old = await plane.templates.find(ME, "name")
    for bad, error in (("name", Conflict), ("tiny", Conflict), ("../x", InvalidInput), ("-x", InvalidInput)):
        with pytest.raises(error):
            await plane.sandboxes.snapshot(ME, sandbox_id, bad)
    with pytest.raises(Conflict):
        await plane.sandboxes.snapshot(ME, sandbox_id, "tiny", overwrite=True)
    assert (await plane.sandboxes.get(ME, sandbox_id)).state is S.RUNNING, "a refused intent leaves nothing"
    world.host.hold("snapshot")
    replacing = await plane.sandboxes.snapshot(ME, sandbox_id, "name", overwrite=True)
    assert await plane.templates.find(ME, "name") == old
    with pytest.raises(Conflict):
        await plane.sandboxes.snapshot(ME, other, "name", overwrite=True)
    world.host.let_go("snapshot")
    await done(plane, replacing)
    await plane.operations.idle()
    new = await plane.templates.find(ME, "name")
    assert new.id != old.id and old.source not in world.host.snapshots().values()
    world.host.faults.append(Fault("snapshot", Trouble.REFUSED))
    failing = await plane.sandboxes.snapshot(ME, sandbox_id, "name", overwrite=True)
    with pytest.raises(VmmError):
        await done(plane, failing)
    assert await plane.templates.find(ME, "name") == new
    await plane.operations.idle()
    await world.check()


async def test_a_template_is_not_deleted_while_sandboxes_depend_on_it(world: World) -> None:
    plane = await world.start()
    sandbox_id = await running(plane)
    await done(plane, await plane.sandboxes.snapshot(ME, sandbox_id, "name"))
    child = await running(plane, template="name")
    with pytest.raises(Denied) as caught:
        await plane.templates.delete(ME, "name")
    assert caught.value.reason is DenyReason.IN_USE
    with pytest.raises(NotFound):
        await plane.templates.delete(OTHER, "name")
    with pytest.raises(Forbidden):
        await plane.templates.delete(ME, "tiny")
    await done(plane, await plane.sandboxes.kill(ME, child))
    await plane.templates.delete(ME, "name")
    with pytest.raises(NotFound):
        await plane.templates.find(ME, "name")
    await world.check()
    assert ("snapshot", "delete", "warning") in await world.audit()


async def test_a_delete_whose_host_is_away_is_finished_later(world: World) -> None:
    plane = await world.start()
    sandbox_id = await running(plane)
    await done(plane, await plane.sandboxes.snapshot(ME, sandbox_id, "name"))
    world.host.faults.append(Fault("delete_snapshot", Trouble.UNREACHABLE))
    await plane.templates.delete(ME, "name")
    await done(plane, await plane.sandboxes.snapshot(ME, sandbox_id, "name"))
    assert len(world.host.snapshots()) == 2
    await plane.reconciler.run()
    await world.check()


async def test_platform_templates_are_the_administrators(world: World) -> None:
    plane = await world.start()
    sandbox_id = await running(plane)
    with pytest.raises(Forbidden):
        await plane.sandboxes.snapshot(ME, sandbox_id, "common", platform=True)
    await done(plane, await plane.sandboxes.snapshot(ADMIN, sandbox_id, "common", platform=True))
    assert (await plane.templates.find(OTHER, "common")).team_id == PLATFORM_TEAM
    with pytest.raises(Forbidden):
        await plane.templates.delete(ME, "common")
    with pytest.raises(Conflict):
        await plane.sandboxes.snapshot(ME, sandbox_id, "common", overwrite=True)
    await plane.templates.delete(ADMIN, "common")
    await world.check()


async def test_settled_waits_for_operations_of_other_processes(world: World) -> None:
    one, two = await world.start(sole=False), await world.start(sole=False)
    sandbox_id = await running(one)
    assert (await two.sandboxes.get(ME, sandbox_id)).state is S.RUNNING
    world.host.hold("pause")
    started = await one.sandboxes.pause(ME, sandbox_id)
    waiting = asyncio.ensure_future(done(two, started))
    world.host.let_go("pause")
    assert (await waiting).state is S.PAUSED
    world.host.faults.append(Fault("resume", Trouble.REFUSED, error=NoSpace("full", mend="Make room.")))
    failing = await one.sandboxes.resume(ME, sandbox_id)
    with pytest.raises(NoSpace, match="Make room"):
        await two.sandboxes.settled(sandbox_id, failing.operation_id, LONG)
