"""Transactions: all or nothing, one view, cancels, holds."""

from __future__ import annotations

import asyncio

import pytest

from torpor.model.errors import Conflict, InternalError, InvalidInput
from torpor.model.records import (
    Sandbox,
)
from torpor.testing.conformance.records.samples import TEAM, StoreRig, a_sandbox, a_user


async def check_a_block_commits_or_leaves_nothing(rig: StoreRig) -> None:
    store, other = await rig.open(), await rig.open()
    async with store.write() as records:
        await records.sandboxes.add(a_sandbox(1))

    async def fail() -> None:
        async with store.write() as records:
            await records.sandboxes.add(a_sandbox(2))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    async with other.read() as records:
        assert await records.sandboxes.get(a_sandbox(1).id) == a_sandbox(1)
        assert await records.sandboxes.get(a_sandbox(2).id) is None


async def check_a_read_is_one_view(rig: StoreRig) -> None:
    store, other = await rig.open(), await rig.open()
    async with store.read() as records:
        assert await records.users.count() == 0
        async with other.write() as writing:
            await writing.users.add(a_user())
        assert await records.users.count() == 0
    async with store.look() as looking:
        assert await looking.users.count() == 1
        async with other.write() as writing:
            await writing.users.add(a_user(2))
        assert await looking.users.count() == 2


async def check_reading_cannot_write(rig: StoreRig) -> None:
    store = await rig.open()
    with pytest.raises(InternalError):
        async with store.read() as records:
            await records.users.add(a_user())
    with pytest.raises(InternalError):
        async with store.look() as records:
            await records.users.add(a_user())
    async with store.look() as records:
        assert await records.users.count() == 0


async def check_a_failed_statement_spoils_only_its_block(rig: StoreRig) -> None:
    store = await rig.open()
    async with store.write() as records:
        await records.users.add(a_user(1))

    async def fail() -> None:
        async with store.write() as records:
            await records.users.add(a_user(2))
            await records.users.add(a_user(3, email="USER1@example.org"))

    with pytest.raises(Conflict):
        await fail()
    async with store.write() as records:
        assert await records.users.count() == 1
        await records.users.add(a_user(2))


async def check_values_no_database_holds_are_the_callers_fault(rig: StoreRig) -> None:
    store = await rig.open()
    for bad in (a_user(1, name="\ud800"), a_user(1, version=2**70)):
        with pytest.raises(InvalidInput):
            async with store.write() as records:
                await records.users.add(bad)
    async with store.look() as records:
        assert await records.users.count() == 0


async def check_a_cancel_leaves_all_or_nothing(rig: StoreRig) -> None:
    """Cancelled at every point at which the block can be: before, within, and while committing."""
    store = await rig.open()
    outcomes = set()
    for turns in range(40):
        first, second = a_sandbox(2 * turns), a_sandbox(2 * turns + 1)

        async def write(first: Sandbox = first, second: Sandbox = second) -> None:
            async with store.write() as records:
                await records.sandboxes.add(first)
                await records.sandboxes.add(second)

        task = asyncio.ensure_future(write())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        (ended,) = await asyncio.gather(task, return_exceptions=True)
        async with store.read() as records:
            there = [await records.sandboxes.get(one.id) is not None for one in (first, second)]
        assert there[0] == there[1]
        assert there[0] or isinstance(ended, asyncio.CancelledError)
        outcomes.add(there[0])
    assert False in outcomes
    async with store.write() as records:
        await records.sandboxes.add(a_sandbox(100))


async def check_a_cancel_while_committing_leaves_it_whole(rig: StoreRig) -> None:
    store = await rig.open()
    written = asyncio.Event()

    async def write() -> None:
        async with store.write() as records:
            await records.sandboxes.add(a_sandbox(1))
            await records.sandboxes.add(a_sandbox(2))
            written.set()

    task = asyncio.ensure_future(write())
    await written.wait()  # and by the time this task runs again, that one waits for its commit
    task.cancel()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with store.write() as records:
        assert [await records.sandboxes.get(a_sandbox(number).id) for number in (1, 2)] == [a_sandbox(1), a_sandbox(2)]


async def check_waiting_writers_can_be_cancelled(rig: StoreRig) -> None:
    store = await rig.open()
    async with store.write() as records:
        await records.hold("door")

        async def wait() -> None:
            async with store.write() as waiting:
                await waiting.hold("door")

        queue = [asyncio.ensure_future(wait()) for _ in range(3)]
        for _ in range(5):
            await asyncio.sleep(0)
        queue[1].cancel()
    ended = await asyncio.gather(*queue, return_exceptions=True)
    assert [type(one) for one in ended] == [type(None), asyncio.CancelledError, type(None)]


async def check_hold_makes_looking_then_writing_safe(rig: StoreRig) -> None:
    stores = [await rig.open(), await rig.open()]

    async def admit(number: int) -> bool:
        async with stores[number % 2].write() as records:
            await records.hold("admission", "else")
            held = await records.sandboxes.reserved(team_id=TEAM)
            await asyncio.sleep(0)
            if held.vcpus >= 5:
                return False
            await records.sandboxes.add(a_sandbox(number))
            return True

    admitted = await asyncio.gather(*(admit(number) for number in range(12)))
    assert sum(admitted) == 5
