"""What every bus behind ports.bus must do. A rig opens the bus as several processes would; CHECKS lists the checks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

import pytest

from torpor.ports.bus import Bus, Notice

PATIENCE = 100.0
LOST = Notice("lost")


class BusRig(Protocol):
    """What a bus's test supplies."""

    async def open(self, *, room: int = 1000) -> Bus:
        """An open bus on the rig's one medium, with that much room for each reader; the rig closes it. Each call is another process where the bus knows
        processes, else the same one (of the room of the first call)."""
        ...


def notices(count: int, topic: str = "sandbox") -> list[Notice]:
    return [Notice(topic, str(number), "team") for number in range(count)]


async def take(reader: AsyncIterator[Notice], count: int) -> list[Notice]:
    async with asyncio.timeout(PATIENCE):
        return [await anext(reader) for _ in range(count)]


async def check_every_subscriber_of_every_process_gets_all_in_order(rig: BusRig) -> None:
    first, second = await rig.open(), await rig.open()
    async with first.subscribe() as one, first.subscribe("sandbox") as two, second.subscribe("sandbox", "key") as three:
        sent = notices(50)
        await first.publish(*sent[:20])
        for notice in sent[20:]:
            await first.publish(notice)
        for reader in (one, two, three):
            assert await take(reader, 50) == sent
        await second.publish(Notice("key", "k", "t"))
        assert await take(one, 1) == await take(three, 1) == [Notice("key", "k", "t")]
        await second.publish(Notice("sandbox"))
        assert await take(two, 1) == [Notice("sandbox")]  # the key's was not for it


async def check_only_from_the_moment_of_entering(rig: BusRig) -> None:
    bus = await rig.open()
    await bus.publish(Notice("sandbox", "before"))
    async with bus.subscribe("sandbox") as reader:
        await bus.publish(Notice("sandbox", "after"))
        assert await take(reader, 1) == [Notice("sandbox", "after")]
    await bus.publish(Notice("sandbox", "gone"))


async def check_a_slow_reader_loses_the_oldest_and_is_told(rig: BusRig) -> None:
    bus = await rig.open(room=10)
    async with bus.subscribe("sandbox") as slow, bus.subscribe("sandbox") as quick:
        sent = notices(25)
        got = []
        for notice in sent:
            await bus.publish(notice)
            got += await take(quick, 1)
        assert got == sent
        assert await take(slow, 11) == [LOST, *sent[15:]]
        await bus.publish(Notice("sandbox", "next"))
        assert await take(slow, 1) == [Notice("sandbox", "next")]


async def check_a_reader_may_leave_at_any_time(rig: BusRig) -> None:
    bus = await rig.open()

    async def read_for_ever() -> None:
        async with bus.subscribe("sandbox") as reader:
            async for _ in reader:
                pass

    readers = [asyncio.ensure_future(read_for_ever()) for _ in range(5)]
    await asyncio.sleep(0)
    for reader in readers:
        reader.cancel()
    ended = await asyncio.gather(*readers, return_exceptions=True)
    assert all(isinstance(one, asyncio.CancelledError) for one in ended)
    async with bus.subscribe("sandbox") as reader_that_stays:
        await bus.publish(*notices(3))
        assert await take(reader_that_stays, 3) == notices(3)


async def check_a_cancelled_wait_loses_nothing(rig: BusRig) -> None:
    bus = await rig.open()
    async with bus.subscribe("sandbox") as reader:
        for number in range(5):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await anext(reader)
            waiting = asyncio.ensure_future(anext(reader))
            await asyncio.sleep(0)
            await bus.publish(Notice("sandbox", str(number)))
            waiting.cancel()  # woken perhaps, and perhaps it has run
            (got,) = await asyncio.gather(waiting, return_exceptions=True)
            if not isinstance(got, Notice):
                (got,) = await take(reader, 1)
            assert got == Notice("sandbox", str(number))


async def check_closing_ends_the_readers(rig: BusRig) -> None:
    bus = await rig.open()
    async with bus.subscribe() as reader:
        await bus.publish(Notice("sandbox"))
        await bus.close()
        async with asyncio.timeout(PATIENCE):
            assert [notice async for notice in reader] == [Notice("sandbox")]


async def check_odd_words_pass(rig: BusRig) -> None:
    first, second = await rig.open(), await rig.open()
    odd = Notice("sandbox", "ümläut \n\0 '\"", "")
    async with second.subscribe() as reader:
        await first.publish(odd)
        assert await take(reader, 1) == [odd]


CHECKS: list[Callable[[BusRig], Awaitable[None]]] = [check for name, check in sorted(globals().items()) if name.startswith("check_")]
