import asyncio
import threading
from collections.abc import Iterator

import pytest

from torpor.durable.threads import Lane, Stop, Threads, together


@pytest.fixture
def threads() -> Iterator[Threads]:
    made = Threads(cores=2)
    yield made
    made.close()


async def test_run_returns_the_result_and_raises_the_error(threads: Threads) -> None:
    assert await threads.run(lambda _: threading.current_thread().name) != threading.current_thread().name

    def fail(_: Stop) -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await threads.run(fail, Lane.WAITING)


async def test_a_cancelled_run_ends_only_when_its_work_has_ended(threads: Threads) -> None:
    begun, ended = threading.Event(), threading.Event()

    def work(stop: Stop) -> None:
        begun.set()
        try:
            while True:
                stop.check()
        finally:
            ended.set()

    task = asyncio.create_task(threads.run(work))
    await threads.run(lambda _: begun.wait())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_work_that_was_cancelled_before_it_began_never_runs(threads: Threads) -> None:
    gate, ran = threading.Event(), threading.Event()
    blocker = asyncio.create_task(threads.run(lambda _: gate.wait(), Lane.BACKGROUND))  # two cores: the lane has one thread
    await asyncio.sleep(0)
    waiting = asyncio.create_task(threads.run(lambda _: ran.set(), Lane.BACKGROUND))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    gate.set()
    await blocker
    assert not ran.is_set()


async def test_together_waits_for_all_and_raises_the_first_error(threads: Threads) -> None:
    seen: list[str] = []

    async def fail() -> None:
        raise ValueError("first")

    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            seen.append("ended")

    with pytest.raises(ValueError, match="first"):
        await together(slow(), fail())
    assert seen == ["ended"]
