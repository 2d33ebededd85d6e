"""The bus in one process and through a real Redis, against one suite; then what happens when that Redis goes away."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from servers import RedisServer

from torpor.bus.local import LocalBus
from torpor.bus.streams import RedisBus
from torpor.model.errors import HostUnavailable
from torpor.ports.bus import Bus, Notice
from torpor.testing.conformance import bus as suite
from torpor.testing.conformance.bus import LOST, take


@pytest.fixture(scope="module")
def shared_redis() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.close()


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.close()


class Rig:
    def __init__(self, redis: RedisServer | None, stream: str) -> None:
        self._redis = redis
        self._stream = stream
        self._buses: list[Bus] = []

    async def open(self, *, room: int = 1000) -> Bus:
        if self._redis is None and self._buses:
            return self._buses[0]
        bus: Bus = LocalBus(room) if self._redis is None else RedisBus(self._redis.url, stream=self._stream, room=room)
        await bus.open()
        self._buses.append(bus)
        return bus

    async def close(self) -> None:
        for bus in self._buses:
            await bus.close()


@pytest.fixture(params=["local", "redis"])
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    made = Rig(None if request.param == "local" else request.getfixturevalue("shared_redis"), request.node.name)
    yield made
    await made.close()


@pytest.mark.parametrize("check", suite.CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
async def test_bus(rig: Rig, check: Callable[[suite.BusRig], Awaitable[None]]) -> None:
    await check(rig)


async def two(redis: RedisServer, **options: int) -> tuple[RedisBus, RedisBus]:
    buses = RedisBus(redis.url, **options), RedisBus(redis.url, **options)  # type: ignore[arg-type]
    for bus in buses:
        await bus.open()
    return buses


async def test_after_a_restart_of_redis_everybody_is_told_and_goes_on(redis: RedisServer) -> None:
    first, second = await two(redis)
    async with first.subscribe("sandbox") as near, second.subscribe("sandbox") as far:
        await first.publish(Notice("sandbox", "1"))
        assert await take(near, 1) == await take(far, 1) == [Notice("sandbox", "1")]
        await asyncio.to_thread(redis.crash)
        await first.publish(Notice("sandbox", "2"))  # no error: its records are written
        assert await take(near, 1) == [Notice("sandbox", "2")]
        await asyncio.to_thread(redis.start)
        assert await take(near, 1) == await take(far, 1) == [LOST]
        await first.publish(Notice("sandbox", "3"))
        assert (await until(near, "3"))[:-1] == []
        assert set((await until(far, "3"))[:-1]) <= {LOST}  # the first bus owed it one more
        await second.publish(Notice("sandbox", "4"))
        assert set((await until(near, "4"))[:-1]) <= {LOST}
    await first.close()
    await second.close()


async def until(reader: AsyncIterator[Notice], subject: str) -> list[Notice]:
    got = await take(reader, 1)
    while got[-1].subject != subject:
        got += await take(reader, 1)
    return got


async def test_a_redis_that_hangs_holds_a_publisher_up_once_and_for_a_bounded_time(redis: RedisServer) -> None:
    first, second = await two(redis)
    assert redis.process is not None
    async with first.subscribe("sandbox") as near, second.subscribe("sandbox") as far:
        redis.process.send_signal(signal.SIGSTOP)
        async with asyncio.timeout(100):  # if each of them waited, they would take twice as long
            for number in range(100):
                await first.publish(Notice("sandbox", str(number)))
        assert await take(near, 100) == [Notice("sandbox", str(number)) for number in range(100)]
        redis.process.send_signal(signal.SIGCONT)
        assert LOST in await take(far, 1)  # what it missed
        assert await take(near, 1) == [LOST]
        await first.publish(Notice("sandbox", "after"))
        await until(far, "after")
    await first.close()
    await second.close()


async def test_a_reader_behind_the_trimmed_end_is_told(redis: RedisServer) -> None:
    first, second = await two(redis, kept=10)
    async with second.subscribe("sandbox") as far:
        await first.publish(Notice("sandbox", "seen"))
        await until(far, "seen")
        await first.publish(*(Notice("sandbox", str(number)) for number in range(5000)))
        got = await until(far, "4999")
        assert LOST in got
    await first.close()
    await second.close()


async def test_no_redis_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(HostUnavailable):
        await RedisBus(f"unix://{tmp_path}/nothing").open()
