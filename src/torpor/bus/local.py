"""The bus of one process, and the mailboxes that every bus delivers to."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from torpor.ports.bus import Notice

ROOM = 1000
"""Notices that wait for one reader at most."""
LOST = Notice("lost")


class Mailbox:
    """One subscriber's queue. Full, it drops the oldest; whoever reads is told LOST in their place, once."""

    def __init__(self, topics: frozenset[str], room: int) -> None:
        self._topics = topics
        self._waiting: deque[Notice] = deque(maxlen=room)
        self._lost = False
        self._closed = False
        self._news = asyncio.Event()

    def put(self, notice: Notice) -> None:
        if notice == LOST:
            self._lost = True
        elif not self._topics or notice.topic in self._topics:
            self._lost |= len(self._waiting) == self._waiting.maxlen
            self._waiting.append(notice)
        else:
            return
        self._news.set()

    def close(self) -> None:
        """Lets the reader finish what waits; then its iteration ends."""
        self._closed = True
        self._news.set()

    def __aiter__(self) -> AsyncIterator[Notice]:
        return self

    async def __anext__(self) -> Notice:
        while not self._lost and not self._waiting:
            if self._closed:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        if self._lost:
            self._lost = False
            return LOST
        return self._waiting.popleft()


class Mailboxes:
    """All of one process."""

    def __init__(self, room: int = ROOM) -> None:
        self._room = room
        self._open: set[Mailbox] = set()

    def deliver(self, *notices: Notice) -> None:
        for mailbox in self._open:
            for notice in notices:
                mailbox.put(notice)

    def close(self) -> None:
        for mailbox in self._open:
            mailbox.close()

    @asynccontextmanager
    async def subscribe(self, *topics: str) -> AsyncIterator[AsyncIterator[Notice]]:
        mailbox = Mailbox(frozenset(topics), self._room)
        self._open.add(mailbox)
        try:
            yield mailbox
        finally:
            self._open.discard(mailbox)


class LocalBus:
    """See ports.bus.Bus; all publishers and subscribers are in this process."""

    def __init__(self, room: int = ROOM) -> None:
        self._mailboxes = Mailboxes(room)

    async def open(self) -> None:
        return

    async def close(self) -> None:
        self._mailboxes.close()

    async def publish(self, *notices: Notice) -> None:
        self._mailboxes.deliver(*notices)

    def subscribe(self, *topics: str) -> AbstractAsyncContextManager[AsyncIterator[Notice]]:
        return self._mailboxes.subscribe(*topics)
