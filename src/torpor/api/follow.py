"""Many may follow one command; the guest knows one attachment of it. Here each command that is followed has one feed, which reads that attachment for all.

    guest --attachment--> Feed --pieces--> Follower, Follower, ...

A follower that joins with an offset that the feed has passed makes it attach anew from there; the others drop what they have seen. Back-pressure reaches the
command through the slowest follower, unless others wait for it longer than STALL_SECONDS: then it is cut off. When the last one leaves, the feed detaches
and the command runs on.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from weakref import WeakValueDictionary

from torpor.model.errors import GuestLost, TooLarge, TorporError
from torpor.ports.guest import Exited, Guest, GuestProcess, Output, StreamName, Terminal

HELD_BYTES = 256 << 10
"""What may wait for one follower."""
STALL_SECONDS = 30.0

_Key = tuple[str, int, str]


class Hub:
    """All feeds of this process."""

    def __init__(self) -> None:
        self._feeds: dict[_Key, Feed] = {}
        self._turns: WeakValueDictionary[_Key, asyncio.Lock] = WeakValueDictionary()
        self._tags: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    def naming(self, sandbox_id: str, tag: str) -> asyncio.Lock:
        """Held from the look whether a tag is free to the start of the command that takes it."""
        return self._tags.setdefault((sandbox_id, tag), asyncio.Lock())

    def begin(self, sandbox_id: str, guest: Guest, process: GuestProcess) -> Follower:
        """Follows a command that was just started, from its first byte."""
        key = (sandbox_id, guest.generation, process.exec_id)
        feed = self._feeds[key] = Feed(self, key, process)
        return feed.add(0, 0)

    async def join(self, sandbox_id: str, guest: Guest, exec_id: str, *, stdout_offset: int = 0, stderr_offset: int = 0, present: bool = False) -> Follower:
        """Follows a command from these bytes of its streams on, as far as its ring still has them; with `present` it can be told when it has seen what there
        was when it joined (Follower.until_now). Raises NotFound, GuestLost."""
        key = (sandbox_id, guest.generation, exec_id)
        async with self._turns.setdefault(key, asyncio.Lock()):
            feed = self._feeds.get(key)
            if feed is not None:
                return await feed.join(guest, stdout_offset, stderr_offset, present)
            process = await guest.attach(exec_id, stdout_offset=stdout_offset, stderr_offset=stderr_offset, present=present)
            feed = self._feeds[key] = Feed(self, key, process)
            return feed.add(stdout_offset, stderr_offset, process.held)

    async def listen(self, sandbox_id: str, guest: Guest, exec_id: str, *, stdout_offset: int, stderr_offset: int) -> Follower:
        """Follows a command from now on where others do already, else from these bytes of its streams. Raises as join."""
        key = (sandbox_id, guest.generation, exec_id)
        async with self._turns.setdefault(key, asyncio.Lock()):
            feed = self._feeds.get(key)
            if feed is not None:
                return feed.listen()
            process = await guest.attach(exec_id, stdout_offset=stdout_offset, stderr_offset=stderr_offset)
            feed = self._feeds[key] = Feed(self, key, process)
            return feed.listen()

    def drop(self, feed: Feed) -> None:
        if self._feeds.get(feed.key) is feed:
            del self._feeds[feed.key]


class Feed:
    """One attachment, read for all who follow."""

    def __init__(self, hub: Hub, key: _Key, process: GuestProcess) -> None:
        self.key = key
        self.process = process
        self.over = False
        self._hub = hub
        self._followers: list[Follower] = []
        self._room = asyncio.Event()
        self._passed = {StreamName.STDOUT: 0, StreamName.STDERR: 0}
        self._task = asyncio.create_task(self._pump(), name=f"feed-{key[2]}")

    def add(self, stdout_offset: int, stderr_offset: int, held: Mapping[StreamName, range] | None = None) -> Follower:
        follower = Follower(self, stdout_offset, stderr_offset)
        follower.held = held or {}
        self._followers.append(follower)
        return follower

    def listen(self) -> Follower:
        return self.add(self._passed[StreamName.STDOUT], self._passed[StreamName.STDERR])

    async def join(self, guest: Guest, stdout_offset: int, stderr_offset: int, present: bool) -> Follower:
        """Attaches anew from these offsets; who follows already drops what it has seen. One at a time."""
        self._task.cancel()  # offers nothing more from here on
        follower = self.add(stdout_offset, stderr_offset)
        await asyncio.gather(self._task, return_exceptions=True)
        seen = [each.positions for each in self._followers]
        try:
            self.process = await guest.attach(
                self.key[2],
                stdout_offset=min(position[StreamName.STDOUT] for position in seen),
                stderr_offset=min(position[StreamName.STDERR] for position in seen),
                present=present,
            )
            follower.held = self.process.held
        except BaseException as error:
            self._end(error if isinstance(error, TorporError) else GuestLost("The attachment was interrupted."))
            raise
        self._task = asyncio.create_task(self._pump(), name=f"feed-{self.key[2]}")
        return follower

    def leave(self, follower: Follower) -> None:
        if follower in self._followers:
            self._followers.remove(follower)
        self._room.set()
        if not self._followers and not self.over:
            self.over = True
            self._task.cancel()
            self.process.detach()
            self._hub.drop(self)

    def made_room(self) -> None:
        self._room.set()

    async def _pump(self) -> None:
        try:
            async for piece in self.process.output():
                self._passed[piece.stream] = piece.offset + len(piece.data)
                for follower in self._followers:
                    follower.offer(piece)
                await self._wait_for_room()
            exited = await self.process.wait()
        except TorporError as error:
            self._end(error)
        else:
            self._end(exited)

    async def _wait_for_room(self) -> None:
        while slow := [follower for follower in self._followers if follower.full]:
            self._room.clear()
            alone = len(slow) == len(self._followers)
            try:
                async with asyncio.timeout(None if alone else STALL_SECONDS):
                    await self._room.wait()
            except TimeoutError:
                for follower in slow:
                    if follower.full:
                        follower.end(TooLarge("This reader was too slow for the others; attach again from the offset that was reached."))
                        self._followers.remove(follower)

    def _end(self, result: Exited | TorporError) -> None:
        self.over = True
        self._hub.drop(self)
        for follower in self._followers:
            follower.end(result)


class Follower:
    """One who follows a command: reads its output, and may write to it. To be left with `leave`."""

    def __init__(self, feed: Feed, stdout_offset: int, stderr_offset: int) -> None:
        self._feed = feed
        self._pieces: deque[Output] = deque()
        self._held = 0
        self._arrived = asyncio.Event()
        self._result: Exited | TorporError | None = None
        self.positions = {StreamName.STDOUT: stdout_offset, StreamName.STDERR: stderr_offset}
        self.held: Mapping[StreamName, range] = {}
        self._asked = dict(self.positions)

    @property
    def pid(self) -> int:
        return self._feed.process.pid

    @property
    def exec_id(self) -> str:
        return self._feed.process.exec_id

    @property
    def full(self) -> bool:
        return self._held >= HELD_BYTES

    def offer(self, piece: Output) -> None:
        """From the feed: takes what it has not seen yet."""
        seen = self.positions[piece.stream] - piece.offset
        if self._result is not None or seen >= len(piece.data) > 0:
            return
        fresh = piece if seen <= 0 else Output(piece.stream, piece.offset + seen, piece.data[seen:])
        self.positions[piece.stream] = fresh.offset + len(fresh.data)
        self._pieces.append(fresh)
        self._held += len(fresh.data)
        self._arrived.set()

    def end(self, result: Exited | TorporError) -> None:
        if self._result is None:
            self._result = result
        self._arrived.set()

    async def output(self) -> AsyncGenerator[Output]:
        """Pieces in order until the command's streams ended. Raises GuestLost, TooLarge (too slow, see above)."""
        while True:
            while self._pieces:
                piece = self._pieces.popleft()
                self._held -= len(piece.data)
                self._feed.made_room()
                yield piece
            if self._result is not None:
                break
            self._arrived.clear()
            await self._arrived.wait()
        if isinstance(self._result, TorporError):
            raise self._result

    async def until_now(self) -> AsyncIterator[Output]:
        """As output, and ends when all has been given that there was when this follower joined, with `present`."""
        left = {name for name, held in self.held.items() if max(self._asked[name], held.start) < held.stop}
        if not left:
            return
        async with aclosing(self.output()) as pieces:
            async for piece in pieces:
                yield piece
                if piece.offset + len(piece.data) >= self.held[piece.stream].stop:
                    left.discard(piece.stream)
                if not left:
                    return

    async def wait(self) -> Exited:
        """How it ended; after `output` has."""
        while self._result is None:
            self._arrived.clear()
            await self._arrived.wait()
        if isinstance(self._result, TorporError):
            raise self._result
        return self._result

    async def write(self, data: bytes) -> None:
        await self._feed.process.write(data)

    async def close_stdin(self) -> None:
        await self._feed.process.close_stdin()

    async def resize(self, terminal: Terminal) -> None:
        await self._feed.process.resize(terminal)

    async def signal(self, number: int) -> None:
        await self._feed.process.signal(number)

    async def kill_tree(self) -> None:
        await self._feed.process.kill_tree()

    def leave(self) -> None:
        """No more output; the command runs on. Idempotent."""
        self._pieces.clear()
        self._held = 0
        self.end(GuestLost("This reader has left."))
        self._feed.leave(self)
