"""Server-sent events (the HTML standard's event streams): id, event and data; a comment now and then keeps what lies between awake."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from torpor.api.streaming import Streamed

KEEP_ALIVE_SECONDS = 15.0
EVENT_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"description": "Events.", "content": {"text/event-stream": {"schema": {"type": "string"}}}},
}


@dataclass(frozen=True, slots=True)
class Server:
    """One event. `data` is one line of JSON."""

    event: str
    data: str
    id: str = ""

    def encode(self) -> bytes:
        head = f"id: {self.id}\n" if self.id else ""
        return f"{head}event: {self.event}\ndata: {self.data}\n\n".encode()


def sse(request: Request, events: AsyncGenerator[Server, None]) -> Streamed:
    """A response that lasts as long as `events`, which is closed when the client leaves, and when the server stops: clients come back with Last-Event-ID."""
    return Streamed(
        _encoded(events, request.app.state.stopping), media_type="text/event-stream", headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )


async def _encoded(events: AsyncGenerator[Server, None], stopping: asyncio.Event) -> AsyncGenerator[bytes, None]:
    async with aclosing(events):
        coming, stopped = asyncio.ensure_future(_next(events)), asyncio.ensure_future(stopping.wait())
        try:
            while True:
                await asyncio.wait([coming, stopped], timeout=KEEP_ALIVE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if stopped.done():
                    return
                if not coming.done():
                    yield b": keep-alive\n\n"
                    continue
                if (event := coming.result()) is None:
                    return
                yield event.encode()
                coming = asyncio.ensure_future(_next(events))
        finally:
            for task in (coming, stopped):
                task.cancel()
            await asyncio.gather(coming, stopped, return_exceptions=True)


async def _next(events: AsyncIterator[Server]) -> Server | None:
    return await anext(events, None)
