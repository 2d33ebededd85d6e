"""Turns at admission: a refusal answers all who wait for the same, and nobody else."""

from __future__ import annotations

import asyncio

import pytest
from service_world import ME, OTHER, TEAM, TINY, World

from torpor.model.errors import Overloaded, QuotaExceeded
from torpor.model.records import Limits, Team
from torpor.service.admission import Admission


class Desk:
    """An admission whose room is what a test says: `full` refuses. `looked` counts who was looked at."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.full = True
        self.looked = 0
        self.looking = asyncio.Event()
        self.go_on = asyncio.Event()

    async def ask(self, want: str) -> str:
        try:
            async with self._admission.turn(want):
                self.looked += 1
                self.looking.set()
                await self.go_on.wait()
                if self.full:
                    raise Overloaded("There is no room.", 7)
        except Overloaded as error:
            assert (error.message, error.retry_after) == ("There is no room.", 7)
            return "refused"
        return "admitted"


@pytest.fixture
async def desk(world: World) -> Desk:
    return Desk(Admission((await world.start()).context))


async def queued(desk: Desk, *wants: str) -> list[asyncio.Task[str]]:
    """One who is being looked at, and others behind it."""
    first = asyncio.create_task(desk.ask(wants[0]))
    await desk.looking.wait()
    rest = [asyncio.create_task(desk.ask(want)) for want in wants[1:]]
    while sum(desk._admission._waiting.values()) < len(wants):
        await asyncio.sleep(0)
    return [first, *rest]


async def test_one_look_refuses_all_who_wait_for_the_same(desk: Desk) -> None:
    asking = await queued(desk, *["small"] * 50)
    desk.go_on.set()
    assert await asyncio.gather(*asking) == ["refused"] * 50
    assert desk.looked == 1


async def test_who_waits_for_something_else_is_looked_at(desk: Desk) -> None:
    asking = await queued(desk, "large", "small", "large", "small")
    desk.go_on.set()
    assert await asyncio.gather(*asking) == ["refused"] * 4
    assert desk.looked == 2


async def test_who_comes_after_a_refusal_is_looked_at_anew(desk: Desk) -> None:
    desk.go_on.set()
    assert await desk.ask("small") == "refused"
    desk.full = False
    assert await desk.ask("small") == "admitted"


async def test_who_leaves_while_waiting_leaves_nothing(desk: Desk) -> None:
    asking = await queued(desk, "small", "small", "small")
    for task in asking[:2]:
        task.cancel()
    desk.full = False
    desk.go_on.set()
    outcomes = await asyncio.gather(*asking, return_exceptions=True)
    assert outcomes[2] == "admitted"
    assert all(isinstance(one, asyncio.CancelledError) for one in outcomes[:2])
    assert not desk._admission._waiting and not desk._admission._refused


async def test_a_key_that_made_a_sandbox_finds_it_while_others_are_refused(world: World) -> None:
    """And another team's wish, which fits its own limit, is not refused with them."""
    plane = await world.start()
    made = await plane.sandboxes.create(ME, TINY, idempotency_key="k", request_digest="d")
    async with world.store.write() as records:
        await records.teams.add(Team(TEAM, "team", "team", world.clock.now(), limits=Limits(sandboxes=1)))
    asked = [plane.sandboxes.create(ME, TINY) for _ in range(5)]
    again = plane.sandboxes.create(ME, TINY, idempotency_key="k", request_digest="d")
    other = plane.sandboxes.create(OTHER, TINY)
    *refused, found, theirs = await asyncio.gather(*asked, again, other, return_exceptions=True)
    assert [type(one) for one in refused] == [QuotaExceeded] * 5
    assert not isinstance(found, BaseException) and found.sandbox.id == made.sandbox.id
    assert not isinstance(theirs, BaseException)
