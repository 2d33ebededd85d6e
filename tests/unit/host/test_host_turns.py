"""Turns: so many at a time, none kept for ever, none lost."""

from __future__ import annotations

import asyncio

from torpor.host.turns import Turns


class Starts:
    """Blocks that hold a turn until told to end."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.begun: list[str] = []
        self.ends: dict[str, asyncio.Event] = {}

    def start(self, name: str) -> asyncio.Task[None]:
        self.ends[name] = asyncio.Event()

        async def hold() -> None:
            async with self.turns.taken():
                self.begun.append(name)
                await self.ends[name].wait()

        return asyncio.ensure_future(hold())


async def settle() -> None:
    """Until every task stands still: what they do here takes a few rounds of the loop and no time."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_so_many_at_a_time_in_the_order_they_came() -> None:
    starts = Starts(Turns(2, patience=1000))
    tasks = [starts.start(name) for name in "abcd"]
    await settle()
    assert starts.begun == ["a", "b"]
    starts.ends["b"].set()
    await settle()
    assert starts.begun == ["a", "b", "c"]
    for end in starts.ends.values():
        end.set()
    await asyncio.gather(*tasks)
    assert starts.begun == ["a", "b", "c", "d"]


async def test_a_start_that_hangs_keeps_nobody_for_ever_and_gives_its_turn_back_once() -> None:
    starts = Starts(Turns(1, patience=0.01))
    hung, second = starts.start("hung"), starts.start("second")
    starts.ends["second"].set()
    await second
    assert starts.begun == ["hung", "second"]
    starts.turns._patience = 1000
    starts.ends["hung"].set()
    await hung
    third, fourth = starts.start("third"), starts.start("fourth")
    await settle()
    assert starts.begun == ["hung", "second", "third"]
    starts.ends["third"].set()
    starts.ends["fourth"].set()
    await asyncio.gather(third, fourth)


async def test_who_is_cancelled_while_waiting_or_running_loses_no_turn() -> None:
    starts = Starts(Turns(1, patience=1000))
    running, waiting = starts.start("running"), starts.start("waiting")
    await settle()
    waiting.cancel()
    running.cancel()
    await asyncio.wait({running, waiting})
    last = starts.start("last")
    await settle()
    assert starts.begun == ["running", "last"]
    starts.ends["last"].set()
    await last
