"""Lives that are measured out by Terms: time stands still while paused, and each start gives a span anew; memory that is given up."""

from __future__ import annotations

from typing import Any

import pytest
from service_world import ME, World, done, running

from torpor.lifecycle.sandbox import SandboxState
from torpor.model.errors import Denied, NotFound, VmmError
from torpor.model.records import Terms, TimeoutAction
from torpor.model.sandbox import Egress
from torpor.service.control import ControlPlane
from torpor.service.moves import LEAST_SPAN
from torpor.testing.fake_hosts import Fault, Trouble

S = SandboxState


async def measured(world: World, plane: ControlPlane, span: float = 1000.0, **fields: Any) -> str:
    fields = {"on_timeout": TimeoutAction.KILL, "terms": Terms(span=span)} | fields
    return await running(plane, deadline=world.clock.now() + span, dialect="e2b", **fields)


async def deadline(world: World, sandbox_id: str) -> float | None:
    found = (await world.sandbox(sandbox_id)).deadline
    return None if found is None else round(found - world.clock.now(), 3)


async def test_time_stands_still_while_paused(world: World) -> None:
    plane = await world.start()
    sandbox_id = await measured(world, plane)
    await done(plane, await plane.sandboxes.pause(ME, sandbox_id))
    assert await deadline(world, sandbox_id) is None
    world.clock.move(100_000)
    await plane.timers.look()
    await plane.operations.idle()
    assert (await world.sandbox(sandbox_id)).state is S.PAUSED
    await done(plane, await plane.sandboxes.resume(ME, sandbox_id))
    assert await deadline(world, sandbox_id) == 1000


@pytest.mark.parametrize(("span", "given", "expected"), [(1000.0, None, 1000), (10.0, None, LEAST_SPAN), (1000.0, 15.0, 15)])
async def test_a_start_gives_what_it_says_or_what_the_terms_say(world: World, span: float, given: float | None, expected: float) -> None:
    plane = await world.start()
    sandbox_id = await measured(world, plane, span)
    for start in (plane.sandboxes.resume, plane.sandboxes.cold_boot):
        await done(plane, await plane.sandboxes.pause(ME, sandbox_id))
        await done(plane, await start(ME, sandbox_id, span=given))
        assert await deadline(world, sandbox_id) == expected


async def test_a_start_that_fails_leaves_a_paused_one_without_a_deadline(world: World) -> None:
    plane = await world.start()
    sandbox_id = await measured(world, plane)
    await done(plane, await plane.sandboxes.pause(ME, sandbox_id))
    world.host.faults.append(Fault("resume", Trouble.REFUSED))
    with pytest.raises(VmmError):
        await done(plane, await plane.sandboxes.resume(ME, sandbox_id, span=1.0))
    assert (await world.sandbox(sandbox_id)).state is S.PAUSED
    assert await deadline(world, sandbox_id) is None


async def test_a_snapshot_changes_nothing_about_its_time(world: World) -> None:
    plane = await world.start()
    sandbox_id = await measured(world, plane)
    world.clock.move(100)
    await done(plane, await plane.sandboxes.snapshot(ME, sandbox_id, "s"))
    assert await deadline(world, sandbox_id) == 900
    children = await plane.sandboxes.fork(ME, sandbox_id, 2, span=50.0)
    for child in children:
        await done(plane, child)
    assert await deadline(world, sandbox_id) == 900
    for child in children:
        assert await deadline(world, child.sandbox.id) == 50
        assert (await world.sandbox(child.sandbox.id)).terms.span == 50


async def test_a_deadline_is_moved_or_only_put_off(world: World) -> None:
    plane = await world.start()
    sandbox_id = await measured(world, plane)
    assert (await plane.sandboxes.set_deadline(ME, sandbox_id, 10, only_later=True)).generation == (await world.sandbox(sandbox_id)).generation
    assert await deadline(world, sandbox_id) == 1000
    await plane.sandboxes.set_deadline(ME, sandbox_id, 2000, only_later=True)
    assert await deadline(world, sandbox_id) == 2000
    await plane.sandboxes.set_deadline(ME, sandbox_id, 10)
    assert await deadline(world, sandbox_id) == 10
    await done(plane, await plane.sandboxes.pause(ME, sandbox_id))
    with pytest.raises(Denied):
        await plane.sandboxes.set_deadline(ME, sandbox_id, 10)
    without = await running(plane)
    await plane.sandboxes.set_deadline(ME, without, 10, only_later=True)
    assert await deadline(world, without) is None


async def test_memory_that_was_given_up_is_a_boot_by_every_way_back(world: World) -> None:
    plane = await world.start()
    sandbox_id = await measured(world, plane, auto_resume=True)
    guest: Any = await world.host.guest(sandbox_id)
    await guest.remember("lost")
    await done(plane, await plane.sandboxes.pause(ME, sandbox_id, keeps_memory=False))
    assert (await world.sandbox(sandbox_id)).terms.cold
    with pytest.raises(Denied):  # traffic does not wake it
        async with plane.sandboxes.use(ME, sandbox_id, "exec"):
            pass
    await done(plane, await plane.sandboxes.resume(ME, sandbox_id))
    assert world.host.memory(sandbox_id) == ""
    assert not (await world.sandbox(sandbox_id)).terms.cold


async def test_the_end_of_its_time_gives_memory_up_where_it_was_said(world: World) -> None:
    plane = await world.start()
    terms = Terms(span=100.0, keeps_memory=False)
    sandbox_id = await measured(world, plane, 100.0, on_timeout=TimeoutAction.PAUSE, terms=terms)
    world.clock.move(100)
    await plane.timers.look()
    await plane.operations.idle()
    found = await world.sandbox(sandbox_id)
    assert (found.state, found.terms.cold, found.deadline) == (S.PAUSED, True, None)


async def test_a_guest_that_does_not_answer_is_paused_without_memory_all_the_same(world: World) -> None:
    plane = await world.start()
    sandbox_id = await measured(world, plane)
    guest: Any = await world.host.guest(sandbox_id)
    guest.lost = True
    await done(plane, await plane.sandboxes.pause(ME, sandbox_id, keeps_memory=False))
    assert (await world.sandbox(sandbox_id)).state is S.PAUSED


async def test_an_egress_is_changed_on_the_host_and_on_record(world: World) -> None:
    plane = await world.start()
    sandbox_id = await measured(world, plane)
    closed = Egress(deny=("0.0.0.0/0",))
    await plane.sandboxes.set_egress(ME, sandbox_id, closed)
    assert world.host.egress(sandbox_id) == (await world.sandbox(sandbox_id)).egress == closed
    world.host.faults.append(Fault("set_egress", Trouble.REFUSED))
    with pytest.raises(VmmError):
        await plane.sandboxes.set_egress(ME, sandbox_id, Egress())
    assert world.host.egress(sandbox_id) == (await world.sandbox(sandbox_id)).egress == closed
    await done(plane, await plane.sandboxes.kill(ME, sandbox_id))
    with pytest.raises((Denied, NotFound)):
        await plane.sandboxes.set_egress(ME, sandbox_id, closed)
