"""A load of one request again and again over several connections, with next to no work of its own: as many as will go, or so many a second."""

from __future__ import annotations

import asyncio
import time
from collections import deque

CONNECTIONS = 16
SECONDS = 60.0
"""What one answer may take before it counts as lost."""


class _Line(asyncio.Protocol):
    """One connection, one request at a time. All answers must be as long as the first, whose status must be 200."""

    def __init__(self, request: bytes, done: asyncio.Queue[_Line]) -> None:
        self._request = request
        self._done = done
        self._got = 0
        self._first = b""
        self.size = 0
        self.due = 0.0
        self.latencies: list[float] = []
        self.broken = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def ask(self, due: float) -> None:
        """Latency counts from `due`, when the request was to be sent, for a client that is late must not hide a wait."""
        self.due = due
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._got += len(data)
        if not self.size:
            self._first += data
            self._learn()
        if self.size and self._got >= self.size:
            if self._got > self.size or (self._got == len(data) and not data.startswith(b"HTTP/1.1 200 ")):
                self.broken = data[:200].decode(errors="replace")
            self._got = 0
            self.latencies.append((time.perf_counter() - self.due) * 1e3)
            self._done.put_nowait(self)

    def _learn(self) -> None:
        head, found, _ = self._first.partition(b"\r\n\r\n")
        if found:
            fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
            self.size = len(head) + 4 + int(fields[b"content-length"])

    def connection_lost(self, exc: Exception | None) -> None:
        if self._got or not self.latencies:
            self.broken = f"the connection was lost: {exc}"
            self._done.put_nowait(self)


class Load:
    """`request`: a whole one, without a body."""

    def __init__(self, port: int, request: bytes) -> None:
        self._port = port
        self._request = request
        self._done: asyncio.Queue[_Line] = asyncio.Queue()
        self._lines: list[_Line] = []

    async def __aenter__(self) -> Load:
        loop = asyncio.get_running_loop()
        for _ in range(CONNECTIONS):
            _, line = await loop.create_connection(lambda: _Line(self._request, self._done), "127.0.0.1", self._port)
            self._lines.append(line)
        return self

    async def __aexit__(self, *_: object) -> None:
        for line in self._lines:
            line.transport.close()

    async def many(self, count: int) -> float:
        """As fast as they are answered; requests a second."""
        begin, left = time.perf_counter(), count
        for line in self._lines:
            line.ask(begin)
        while left:
            line = await self._next()
            left -= 1
            if left >= len(self._lines):
                line.ask(time.perf_counter())
        return count / (time.perf_counter() - begin)

    async def paced(self, rate: float, stop: asyncio.Event) -> list[float]:
        """So many a second until `stop`; the milliseconds of each. One that finds all connections taken waits, which counts."""
        free = deque(self._lines)
        for line in self._lines:
            line.latencies = []
        begin, number = time.perf_counter(), 0
        while not stop.is_set():
            due = begin + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            while not self._done.empty():
                free.append(self._checked(self._done.get_nowait()))
            free.popleft().ask(due) if free else (await self._next()).ask(due)
            number += 1
        while len(free) < len(self._lines):
            free.append(await self._next())
        return [each for line in self._lines for each in line.latencies]

    async def _next(self) -> _Line:
        return self._checked(await asyncio.wait_for(self._done.get(), SECONDS))

    def _checked(self, line: _Line) -> _Line:
        if line.broken:
            raise ConnectionError(line.broken)
        return line
