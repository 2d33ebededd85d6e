"""One owner per home, also between processes, and word of it when the owner changes."""

import asyncio
import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from torpor.host.home import HomeLock, HomeWatch, Uids
from torpor.model.errors import HomeBusy, NoSpace


def _hold(home: Path, talk: Connection) -> None:
    lock = HomeLock(home)
    lock.acquire()
    talk.send("held")
    talk.recv()


def test_a_second_owner_is_refused_and_told_whose_it_is(tmp_path: Path) -> None:
    ours, theirs = multiprocessing.Pipe()
    owner = multiprocessing.get_context("spawn").Process(target=_hold, args=(tmp_path, theirs))
    owner.start()
    assert ours.recv() == "held"
    with pytest.raises(HomeBusy, match=str(owner.pid)):
        HomeLock(tmp_path).acquire()
    owner.kill()
    owner.join()
    lock = HomeLock(tmp_path)
    lock.acquire()
    lock.release()


async def test_a_waiting_client_hears_that_the_owner_went(tmp_path: Path) -> None:
    lock = HomeLock(tmp_path)
    lock.acquire()
    with HomeWatch(tmp_path) as watch:
        with pytest.raises(HomeBusy):
            HomeLock(tmp_path).acquire()
        waiting = asyncio.create_task(watch.changed())
        await asyncio.sleep(0)
        assert not waiting.done()
        lock.release()
        await asyncio.wait_for(waiting, 100)
    heir = HomeLock(tmp_path)
    heir.acquire()
    heir.release()


def test_looking_at_a_busy_home_wakes_nobody(tmp_path: Path) -> None:
    async def look() -> None:
        lock = HomeLock(tmp_path)
        lock.acquire()
        with HomeWatch(tmp_path) as watch:
            for _ in range(3):
                with pytest.raises(HomeBusy):
                    HomeLock(tmp_path).acquire()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(watch.changed(), 0.2)
        lock.release()

    asyncio.run(look())


def test_uids_are_handed_out_once(tmp_path: Path) -> None:
    uids = Uids(tmp_path, enabled=True)
    first, second = uids.take(), uids.take()
    assert first is not None
    assert second is not None
    assert first != second
    uids.give_back(first)
    assert uids.take() == first
    other = Uids(tmp_path, enabled=True)
    other.hold(first)
    assert other.take() != first
    for _ in range(4094):
        uids.take()
    with pytest.raises(NoSpace):
        uids.take()


def test_without_root_there_is_only_our_own_uid(tmp_path: Path) -> None:
    assert Uids(tmp_path, enabled=False).take() is None
