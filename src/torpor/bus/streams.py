"""The bus of several processes: one Redis stream that every process appends to and reads.

    publish --> own mailboxes, at once
            \\-> XADD torpor:notices ---> XREAD in every other process --> its mailboxes

A process skips what it wrote itself. The stream is trimmed; it carries wake-ups, not truth. Whenever something may have been missed (Redis was away, a
reader fell behind the trimmed end, a publisher could not write) the mailboxes concerned get Notice('lost').
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from torpor.bus.local import LOST, ROOM, Mailboxes
from torpor.log import Log
from torpor.model.errors import HostUnavailable
from torpor.ports.bus import Notice

STREAM = "torpor:notices"
KEPT = 10_000
"""Entries the stream keeps, about."""
BATCH = 500
BLOCK = 10.0
"""Seconds one XREAD waits."""
PATIENCE = 2.0
"""Seconds a publisher waits for Redis at most; after that the bus counts as away until the reader has reached it again."""
_PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Seconds between tries to reach a Redis that is away; the last one repeats."""

_APPEND = """
for at = 3, #ARGV, 3 do
  local number = redis.call('INCR', KEYS[2])
  if number == 1 then  -- a Redis that has forgotten everything: on from where no number has been yet
    local time = redis.call('TIME')
    number = time[1] * 1000000 + time[2]
    redis.call('SET', KEYS[2], string.format('%.0f', number))
  end
  local id = string.format('%.0f-1', number)
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], id, 'from', ARGV[2], 'topic', ARGV[at], 'subject', ARGV[at + 1], 'team', ARGV[at + 2])
end
"""
"""Appends notices under numbers without gaps, so that a reader sees what it missed. ARGV: entries to keep, who writes, then three words a notice."""

_log = Log()


class RedisBus:
    """See ports.bus.Bus. `url` as redis-py takes it: redis://host:port/0, rediss://, unix://path."""

    def __init__(self, url: str, *, stream: str = STREAM, room: int = ROOM, kept: int = KEPT) -> None:
        self._url = url
        self._stream = stream
        self._kept = kept
        self._name = uuid.uuid4().hex
        self._mailboxes = Mailboxes(room)
        self._is_up = False
        self._owes = False
        self._closing = False

    async def open(self) -> None:
        # A publisher's connection that lay idle over a restart of Redis is found dead only when it is used: once more, then, on a new one.
        self._writing = self._client(PATIENCE, tries=2)
        self._reading = self._client(BLOCK + PATIENCE, tries=1)
        self._script = self._writing.register_script(_APPEND)
        try:
            self._last = await self._tip()
        except (RedisError, OSError) as error:
            await self._writing.aclose()
            await self._reading.aclose()
            raise HostUnavailable(f"Redis cannot be reached ({error}).") from error
        self._is_up = True
        self._reader = asyncio.create_task(self._follow(), name="torpor-bus")

    async def close(self) -> None:
        self._closing = True
        self._reader.cancel()
        # redis-py may take a cancel in the middle of a read for its own: the end of the connection it cannot overlook.
        await self._reading.connection_pool.disconnect(inuse_connections=True)
        await asyncio.wait([self._reader])
        self._mailboxes.close()
        await self._writing.aclose()
        await self._reading.aclose()

    def subscribe(self, *topics: str) -> AbstractAsyncContextManager[AsyncIterator[Notice]]:
        return self._mailboxes.subscribe(*topics)

    async def publish(self, *notices: Notice) -> None:
        self._mailboxes.deliver(*notices)
        if not self._is_up:
            self._owes = True
            return
        try:
            await self._append(*notices)
        except (RedisError, OSError) as error:
            self._owes = True
            if self._is_up:
                self._is_up = False
                _log.warning("bus_away", error=str(error))
                await self._reading.connection_pool.disconnect(inuse_connections=True)  # wakes the reader, which reaches Redis anew

    def _client(self, patience: float, tries: int) -> Redis:
        return Redis.from_url(
            self._url, socket_timeout=patience, socket_connect_timeout=PATIENCE, retry=Retry(NoBackoff(), tries - 1), decode_responses=True, protocol=2
        )

    async def _append(self, *notices: Notice) -> None:
        words = [word for notice in notices for word in (notice.topic, notice.subject, notice.team_id)]
        await self._script(keys=[self._stream, f"{self._stream}:count"], args=[self._kept, self._name, *words])

    async def _tip(self) -> int:
        """The number of the newest entry; 0 in a stream that does not exist, where everything is new."""
        newest: Any = await self._reading.xrevrange(self._stream, count=1)
        return _number(newest[0][0]) if newest else 0

    async def _follow(self) -> None:
        """Reads for ever; between two reaches of Redis it tells everybody that something may be lost."""
        failures = 0
        while not self._closing:
            try:
                if not self._is_up:
                    await self._reach()
                failures = 0
                await self._read()
            except (RedisError, OSError) as error:
                if self._closing:
                    return
                if self._is_up:
                    self._is_up = False
                    _log.warning("bus_away", error=str(error))
                await asyncio.sleep(_PAUSES[min(failures, len(_PAUSES) - 1)])
                failures += 1

    async def _reach(self) -> None:
        self._last = await self._tip()
        if self._owes:
            await self._append(LOST)
            self._owes = False
        self._is_up = True
        _log.info("bus_back")
        self._mailboxes.deliver(LOST)

    async def _read(self) -> None:
        answer: Any = await self._reading.xread({self._stream: f"{self._last}-1"}, count=BATCH, block=int(BLOCK * 1000))
        entries: list[tuple[str, dict[str, str]]] = answer[0][1] if answer else []
        for identity, fields in entries:
            number = _number(identity)
            if self._last and number != self._last + 1:
                self._mailboxes.deliver(LOST)  # so far behind that the stream was trimmed before it was read
            self._last = number
            if fields["from"] != self._name:
                self._mailboxes.deliver(Notice(fields["topic"], fields["subject"], fields["team"]))


def _number(identity: str) -> int:
    return int(identity.partition("-")[0])
