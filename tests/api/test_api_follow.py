"""Many followers of one command: what each sees, who waits for whom, what is let go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from torpor.api import follow
from torpor.api.follow import HELD_BYTES, Hub
from torpor.model.errors import GuestLost, NotFound, TooLarge
from torpor.ports.guest import Exited, Output, StreamName

OUT = StreamName.STDOUT


class Command:
    """What a guest has of a command: all its output so far, and who is attached."""

    generation = 1

    def __init__(self) -> None:
        self.data = b""
        self.exited: asyncio.Future[Exited] = asyncio.get_running_loop().create_future()
        self.news = asyncio.Event()
        self.attachments: list[Attachment] = []

    def say(self, data: bytes) -> None:
        self.data += data
        self.news.set()

    def end(self, result: Exited | Exception = Exited(0)) -> None:  # noqa: B008 - frozen
        if isinstance(result, Exception):
            self.exited.set_exception(result)
        else:
            self.exited.set_result(result)
        self.news.set()

    async def attach(self, exec_id: str, *, stdout_offset: int = 0, stderr_offset: int = 0, present: bool = False) -> Any:
        if exec_id != "p1":
            raise NotFound("No such command.")
        self.attachments.append(Attachment(self, stdout_offset))
        if present:
            self.attachments[-1].held = {OUT: range(stdout_offset, len(self.data))}
        return self.attachments[-1]


class Attachment:
    exec_id = "p1"
    pid = 7

    def __init__(self, command: Command, offset: int) -> None:
        self.command = command
        self.offset = offset
        self.detached = False
        self.held: dict[StreamName, range] = {}

    async def output(self) -> AsyncIterator[Output]:
        command = self.command
        while True:
            command.news.clear()
            while piece := command.data[self.offset : self.offset + 65536]:
                self.offset += len(piece)
                yield Output(OUT, self.offset - len(piece), piece)
            if command.exited.done():
                if command.exited.exception() is not None:
                    await command.exited
                return
            await command.news.wait()

    async def wait(self) -> Exited:
        return await asyncio.shield(self.command.exited)

    def detach(self) -> None:
        self.detached = True


async def test_until_now_is_what_there_was_when_it_was_asked() -> None:
    hub, command = Hub(), Command()
    command.say(b"x" * 300_000)
    first = await hub.join("s", command, "p1")  # type: ignore[arg-type]
    assert len(await read(first, 100_000)) < 300_000  # it follows, and has not read all
    asked = await hub.join("s", command, "p1", stdout_offset=10, present=True)  # type: ignore[arg-type]
    later = await hub.join("s", command, "p1", stdout_offset=300_000, present=True)  # type: ignore[arg-type]
    command.say(b"later")

    async def until_now(follower: Any) -> int:
        return sum([len(piece.data) async for piece in follower.until_now()])

    taken, recalled, nothing = await asyncio.gather(read(first, 300_005 - 131_072), until_now(asked), until_now(later))
    assert (recalled - 299_990 in (0, len(b"later")), nothing) == (True, 0)  # a last piece that goes on beyond is given whole
    assert taken.endswith(b"later")
    for each in (first, asked, later):
        each.leave()


async def read(follower: Any, count: int) -> bytes:
    """`count` bytes at least."""
    data = b""
    async for piece in follower.output():
        data += piece.data
        if len(data) >= count:
            break
    return data


async def test_a_later_one_sees_the_beginning_and_an_earlier_one_nothing_twice() -> None:
    hub, command = Hub(), Command()
    command.say(b"one ")
    first = await hub.join("s", command, "p1")  # type: ignore[arg-type]
    assert await read(first, 4) == b"one "
    second = await hub.join("s", command, "p1", stdout_offset=2)  # type: ignore[arg-type]
    command.say(b"two")
    command.end(Exited(3))
    assert [await read(each, 100) for each in (first, second)] == [b"two", b"e two"]
    assert [await each.wait() for each in (first, second)] == [Exited(3)] * 2
    for each in (first, second):
        each.leave()


async def test_the_last_to_leave_detaches() -> None:
    hub, command = Hub(), Command()
    followers = [await hub.join("s", command, "p1") for _ in range(2)]  # type: ignore[arg-type]
    followers[0].leave()
    assert not command.attachments[-1].detached
    followers[1].leave()
    followers[1].leave()
    assert command.attachments[-1].detached
    command.say(b"afterwards")
    again = await hub.join("s", command, "p1")  # type: ignore[arg-type]
    assert await read(again, 10) == b"afterwards"
    again.leave()


async def test_one_who_reads_slowly_alone_holds_the_command_back() -> None:
    hub, command = Hub(), Command()
    follower = await hub.join("s", command, "p1")  # type: ignore[arg-type]
    command.say(b"x" * (HELD_BYTES * 3))
    while not follower.full:
        await asyncio.sleep(0)
    for _ in range(50):
        await asyncio.sleep(0)
    assert command.attachments[0].offset <= HELD_BYTES + 65536
    command.end()
    assert len(await read(follower, 1 << 30)) == HELD_BYTES * 3
    follower.leave()


async def test_one_who_makes_others_wait_too_long_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "STALL_SECONDS", 0.05)
    hub, command = Hub(), Command()
    slow, quick = [await hub.join("s", command, "p1") for _ in range(2)]  # type: ignore[arg-type]
    command.say(b"x" * (HELD_BYTES * 3))
    command.end()
    assert len(await read(quick, 1 << 30)) == HELD_BYTES * 3
    with pytest.raises(TooLarge):
        await read(slow, 1 << 30)
    rest = await hub.join("s", command, "p1", stdout_offset=slow.positions[OUT])  # type: ignore[arg-type]
    assert len(await read(rest, 1 << 30)) == HELD_BYTES * 3 - slow.positions[OUT]
    for each in (slow, quick, rest):
        each.leave()


async def test_a_guest_that_is_lost_is_lost_to_all() -> None:
    hub, command = Hub(), Command()
    followers = [await hub.join("s", command, "p1") for _ in range(2)]  # type: ignore[arg-type]
    command.end(GuestLost("Gone."))
    for each in followers:
        with pytest.raises(GuestLost):
            await read(each, 1)
        each.leave()
    with pytest.raises(NotFound):
        await hub.join("s", command, "p2")  # type: ignore[arg-type]


async def test_many_joins_at_once_lose_nothing() -> None:
    hub, command = Hub(), Command()

    async def follower(offset: int) -> bytes:
        joined = await hub.join("s", command, "p1", stdout_offset=offset)  # type: ignore[arg-type]
        try:
            return await read(joined, 1 << 30)
        finally:
            joined.leave()

    reading = [asyncio.create_task(follower(offset % 5)) for offset in range(20)]
    for n in range(200):
        command.say(bytes([n]) * 100)
        await asyncio.sleep(0)
    command.end()
    assert [await task for task in reading] == [command.data[offset % 5 :] for offset in range(20)]
