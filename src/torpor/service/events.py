"""The stream of a team's events: in order, from a sequence number on, none left out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from torpor.model.records import Event
from torpor.ports.bus import Notice
from torpor.service.caller import Caller
from torpor.service.context import Context

_PAGE = 500


class Events:
    def __init__(self, context: Context) -> None:
        self._context = context

    async def last(self, caller: Caller) -> int:
        """The sequence number of the team's latest event, 0 when there is none."""
        async with self._context.store.look() as records:
            return await records.events.last(caller.team_id)

    async def of(self, caller: Caller, resource_id: str, limit: int = 50) -> Sequence[Event]:
        """The latest of one resource of the team, in order."""
        async with self._context.store.look() as records:
            return [event for event in await records.events.of(resource_id, limit) if event.team_id == caller.team_id]

    async def stream(self, caller: Caller, after: int | None = None, *, resource_id: str = "") -> AsyncIterator[Event]:
        """Events after that number (None: from now on), without end. Notices of the bus wake it; it looks by itself as well, for notices may be lost."""
        async with self._context.bus.subscribe("event") as notices:
            seen = await self.last(caller) if after is None else after
            hearing: asyncio.Future[object] = asyncio.ensure_future(_heard(notices, caller.team_id))
            try:
                while True:
                    while found := await self._after(caller.team_id, seen, resource_id):
                        for event in found:
                            yield event
                            seen = event.sequence
                    await self._context.wait(hearing, until=self._context.now() + self._context.policy.look_every)
                    if hearing.done():
                        hearing = asyncio.ensure_future(_heard(notices, caller.team_id))
            finally:
                hearing.cancel()

    async def _after(self, team_id: str, sequence: int, resource_id: str) -> Sequence[Event]:
        async with self._context.store.look() as records:
            return await records.events.after(team_id, sequence, resource_id=resource_id, limit=_PAGE)


async def _heard(notices: AsyncIterator[Notice], team_id: str) -> object:
    async for notice in notices:
        if notice.topic == "lost" or notice.team_id == team_id:
            return notice
    return None
