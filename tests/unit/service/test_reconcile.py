"""Records and hosts brought to agree, both ways."""

from __future__ import annotations

import asyncio

import pytest
from service_world import ME, TINY, World, asleep, done, running, until_state

from torpor.model.errors import HostUnavailable
from torpor.model.records import SandboxState
from torpor.model.sandbox import EndReason, NetworkMode
from torpor.model.shapes import Shape
from torpor.ports.hosts import MachineStatus, Order
from torpor.testing.fake_hosts import FakeHost

S = SandboxState


@pytest.mark.parametrize("reason", [EndReason.OOM, EndReason.GUEST_CRASH, EndReason.VMM_CRASH, EndReason.USER])
async def test_an_end_is_on_record_at_once_with_its_reason(world: World, reason: EndReason) -> None:
    plane = await world.start()
    sandbox_id = await running(plane)
    world.host.die(sandbox_id, reason, "what happened")
    sandbox = await until_state(world, sandbox_id, S.STOPPED)
    assert (sandbox.end_reason, sandbox.end_note, sandbox.ended_at) == (reason, "what happened", world.clock.now())
    await plane.operations.idle()
    await world.check()


async def test_what_happened_while_no_control_plane_ran_is_found_at_the_start(world: World) -> None:
    plane = await world.start()
    dead, put_to_sleep, woken, lost, kept = [await running(plane) for _ in range(5)]
    await done(plane, await plane.sandboxes.pause(ME, woken))
    await world.kill(plane)
    world.host.die(dead)
    await world.host.pause(put_to_sleep)
    await world.host.resume(woken)
    world.host.lose(lost)
    plane = await world.start()
    await plane.operations.idle()
    states = {one.id: (one.state, one.end_reason) for one in await world.all()}
    assert states == {
        dead: (S.STOPPED, EndReason.VMM_CRASH),
        put_to_sleep: (S.PAUSED, None),
        woken: (S.RUNNING, None),
        lost: (S.STOPPED, EndReason.HOST_LOST),
        kept: (S.RUNNING, None),
    }
    await world.check()


async def test_what_ended_and_is_still_on_the_host_is_removed(world: World) -> None:
    plane = await world.start()
    sandbox_id = await running(plane)
    await done(plane, await plane.sandboxes.kill(ME, sandbox_id))
    await world.host.create(Order(sandbox_id, "late", "tiny", Shape(1, 256, 1024), NetworkMode.OFF))  # a create that was on its way
    await plane.reconciler.run()
    await world.check()


async def test_what_no_record_names_is_removed_after_a_grace(world: World) -> None:
    plane = await world.start(orphan_grace=3600.0)
    known = await running(plane)
    stranger = "s" * 25
    await world.host.create(Order(stranger, "op", "tiny", Shape(1, 256, 1024), NetworkMode.OFF))
    await world.host.snapshot(stranger, "n" * 25)
    await plane.reconciler.run()
    world.clock.move(3599)
    await plane.reconciler.run()
    assert set(world.host.statuses()) == {known, stranger} and len(world.host.snapshots()) == 1
    world.clock.move(1)
    await plane.reconciler.run()
    await world.check()


async def test_a_silent_host_makes_missing_and_comes_back(world: World) -> None:
    plane = await world.start()
    awake, sleeping, dead = await running(plane), await asleep(plane), await running(plane)
    world.host.reachable = False
    await plane.reconciler.run()
    assert {one.state for one in await world.all()} == {S.RUNNING, S.PAUSED}, "not at the first silence"
    world.clock.move(31)
    await plane.reconciler.run()
    assert {one.state for one in await world.all()} == {S.MISSING}
    with pytest.raises(HostUnavailable):
        async with plane.sandboxes.use(ME, awake, "test"):
            pass
    ended = await plane.sandboxes.kill(ME, dead)
    waiting = asyncio.ensure_future(done(plane, ended))
    while not waiting.done():
        await world.clock.sleeper(1000)
        await asyncio.wait({waiting}, timeout=0.002)
        world.clock.move(20)
    assert (await waiting).state is S.STOPPED, "a delete always ends"
    world.host.reachable = True
    await plane.reconciler.run()
    await plane.operations.idle()
    assert {one.id: one.state for one in await world.all()} == {awake: S.RUNNING, sleeping: S.PAUSED, dead: S.STOPPED}
    await world.check()


async def test_a_host_that_is_gone_altogether(world: World) -> None:
    plane = await world.start()
    sandbox_id = await running(plane)
    world.hosts.remove(world.host.id)
    world.hosts.add(FakeHost("another"))
    await plane.reconciler.run()
    world.clock.move(31)
    await plane.reconciler.run()
    assert (await world.sandbox(sandbox_id)).state is S.MISSING
    world.hosts.remove("another")
    world.hosts.add(world.host)
    await plane.reconciler.run()
    assert (await world.sandbox(sandbox_id)).state is S.RUNNING


async def test_a_sandbox_under_way_is_left_alone(world: World) -> None:
    plane = await world.start()
    world.host.hold("create")
    started = await plane.sandboxes.create(ME, TINY)
    await plane.reconciler.run()
    assert (await world.sandbox(started.sandbox.id)).state is S.STARTING
    world.host.let_go("create")
    assert (await done(plane, started)).state is S.RUNNING


async def test_a_busy_machine_is_waited_for(world: World) -> None:
    plane = await world.start()
    sandbox_id = await running(plane)
    world.host.busy(sandbox_id)
    await plane.reconciler.run()
    assert (await world.sandbox(sandbox_id)).state is S.RUNNING
    await world.host.pause(sandbox_id)
    await until_state(world, sandbox_id, S.PAUSED)
    assert world.host.statuses() == {sandbox_id: MachineStatus.PAUSED}


async def test_base_templates_of_hosts_are_learnt_once(world: World) -> None:
    planes = [await world.start(sole=False) for _ in range(2)]
    await asyncio.gather(*(plane.templates.learn() for plane in planes))
    assert [one.name for one in (await planes[0].templates.list(ME)).items] == ["tiny"]
