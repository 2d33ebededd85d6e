"""Server-sent events, and the team's event stream, which goes on where it broke off."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, cast

import httpx

from torpor.client.answers import Event, read
from torpor.client.errors import ApiError, BadAnswer, ConnectionLost, Unreachable
from torpor.client.transport import Http, segment, translated

QUIET_SECONDS = 60.0
"""A stream that says nothing for so long, not even the server's keep-alive of every 15 s, is dead."""
_MOST = 1 << 20


@dataclass(frozen=True, slots=True)
class Sent:
    """One server-sent event."""

    event: str
    data: str
    id: str

    def tree(self) -> dict[str, Any]:
        """Raises BadAnswer."""
        try:
            tree = json.loads(self.data)
            if isinstance(tree, dict):
                return tree
        except (ValueError, RecursionError):
            pass
        raise BadAnswer("The server sent an event that is no JSON object.")


class Parser:
    """Events out of bytes, as the HTML standard's event streams define them (9.2.6), for servers that end lines with a line feed."""

    def __init__(self) -> None:
        self._left = b""
        self._fields: dict[str, list[str]] = {}

    def feed(self, data: bytes) -> list[Sent]:
        """The events that these bytes complete. Raises BadAnswer for a line without end."""
        *lines, self._left = (self._left + data).split(b"\n")
        if len(self._left) > _MOST:
            raise BadAnswer("The server sent an event that does not end.")
        return [event for line in lines if (event := self._line(line.decode(errors="replace").rstrip("\r"))) is not None]

    def _line(self, line: str) -> Sent | None:
        if line:
            name, _, value = line.partition(":")
            if name:
                self._fields.setdefault(name, []).append(value.removeprefix(" "))
            return None
        fields, self._fields = self._fields, {}
        if "data" not in fields:
            return None
        return Sent(fields.get("event", ["message"])[-1], "\n".join(fields["data"]), fields.get("id", [""])[-1])


async def events_of(response: httpx.Response) -> AsyncIterator[Sent]:
    """Until the server ends the stream. Raises ConnectionLost, BadAnswer."""
    if not response.headers.get("content-type", "").startswith("text/event-stream"):
        raise BadAnswer("What answers at this address is no torpor server: it sent no event stream.")
    parser = Parser()
    with translated():
        async for piece in response.aiter_bytes():
            for event in parser.feed(piece):
                yield event


class AsyncEvents:
    """What happens in the team."""

    def __init__(self, http: Http) -> None:
        self._http = http

    async def stream(self, *, after: int | None = None, patience: float = 60.0) -> AsyncIterator[Event]:
        """Events as they happen, none left out and none twice: those after the event with the id `after` (0: all that are remembered), else those from now on.
        Goes on where it broke off when the connection does or the server restarts, for up to `patience` seconds. Raises ConnectionLost, ApiError."""
        async with aclosing(cast("Any", self._numbered(after, patience))) as found:
            async for event in found:
                if event is not None:
                    yield event

    async def _numbered(self, after: int | None, patience: float) -> AsyncIterator[Event | None]:
        """The same; None when a connection stands, from which on nothing is missed."""
        last, since, pause = after, time.monotonic(), 0.05
        while True:
            headers = {"Last-Event-ID": str(last)} if last is not None else None
            try:
                async with self._http.streamed("GET", "/v1/events/stream", params={"all": "true"}, headers=headers, quiet=QUIET_SECONDS) as response:
                    async with aclosing(cast("Any", events_of(response))) as events:
                        async for sent in events:
                            since, pause = time.monotonic(), 0.05
                            if sent.event == "connected":
                                last = _number(sent.id) if last is None else last
                                yield None
                            else:
                                event = read(Event, sent.tree())
                                last = event.id
                                yield event
            except (Unreachable, ConnectionLost) as error:
                if time.monotonic() - since > patience:
                    raise ConnectionLost(f"The event stream broke and did not come back: {error}") from None
            except ApiError as error:
                if error.status not in (429, 502, 503) or time.monotonic() - since > patience:
                    raise
            await asyncio.sleep(pause)
            pause = min(1.0, pause * 2)

    async def of(self, sandbox_id: str, *, limit: int = 50) -> list[Event]:
        """The last events of a sandbox, oldest first (at most 200)."""
        tree = (await self._http.ask("GET", f"/v1/capsules/{segment(sandbox_id)}/events", params={"limit": limit})).tree()
        if not isinstance(tree, dict) or not isinstance(tree.get("events"), list):
            raise BadAnswer("The server sent no events.")
        return [read(Event, each) for each in tree["events"]]


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise BadAnswer("The server sent an event whose id is no number.")
    return int(text)
