"""When there is a core for work that nobody waits for."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

from torpor.host.quiet import Quiet


async def waiting(quiet: Quiet, ahead: int = 0) -> asyncio.Task[None]:
    task = asyncio.create_task(quiet.room(lambda: ahead))
    await asyncio.sleep(0)
    return task


async def test_an_idle_machine_has_room_but_for_one_core() -> None:
    await Quiet(cores=1).room(lambda: 0)
    await Quiet(cores=2).room(lambda: 0)
    await Quiet(cores=8).room(lambda: 6)
    task = await waiting(Quiet(cores=8), 7)
    assert not task.done()
    task.cancel()


async def test_requests_under_way_count_and_those_just_answered() -> None:
    quiet = Quiet(cores=4, rest=0.05)
    with ExitStack() as requests:
        for _ in range(3):
            requests.enter_context(quiet.asked())
        task = await waiting(quiet)
        assert not task.done()
    await asyncio.sleep(0)
    assert not task.done(), "their first commands run"
    await task


async def test_many_that_were_answered_long_ago_count_no_more() -> None:
    quiet = Quiet(cores=2, rest=0.0)
    for _ in range(100):
        with quiet.asked():
            pass
    await quiet.room(lambda: 0)


async def test_the_end_of_work_ahead_makes_room() -> None:
    quiet = Quiet(cores=2)
    ahead = 1
    task = asyncio.create_task(quiet.room(lambda: ahead))
    await asyncio.sleep(0)
    assert not task.done()
    ahead = 0
    quiet.told()
    await task
