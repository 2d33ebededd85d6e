"""What happens, as it happens: a team's events over SSE, and the last ones of a sandbox.

`event` of each is a word that the dialect's SDK knows; `name` is the true one. What it has no word for is left out unless `all=true` is asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, cast

from fastapi import Depends, Header, Query
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from torpor.api.auth import Needs
from torpor.api.errors import clean
from torpor.api.native.common import CapsuleId, Given, Reader, router
from torpor.api.native.ids import Prefix, inner, show, stamp
from torpor.api.native.models import Answer
from torpor.api.native.sse import EVENT_STREAM, Server, sse
from torpor.api.native.state import tree as capsule_tree
from torpor.api.services import Services
from torpor.model.errors import InvalidInput, NotFound
from torpor.model.records import Event
from torpor.service.caller import Caller

events = router("events")

WORDS = {
    "capsule.created": "capsule.create",
    "capsule.running": "capsule.resume",
    "capsule.paused": "capsule.pause",
    "capsule.destroyed": "capsule.destroy",
    "template.snapshot.created": "template.snapshot.create",
    "template.snapshot.deleted": "template.snapshot.delete",
    "host.up": "host.up",
    "host.down": "host.down",
}
CHANGED = "capsule.state.changed"
_PREFIXES = {
    "sandbox": Prefix.SANDBOX,
    "api_key": Prefix.KEY,
    "user": Prefix.USER,
    "member": Prefix.USER,
    "team": Prefix.TEAM,
    "channel": Prefix.CHANNEL,
    "snapshot": Prefix.TEMPLATE,
}
_NUMBER = re.compile(r"\d{1,18}\Z")


class EventList(Answer):
    events: list[dict[str, Any]]


def word(event: Event) -> str | None:
    """The dialect's word for it, None when it has none."""
    if event.name.startswith("capsule."):
        return WORDS.get(event.name, CHANGED)
    return WORDS.get(event.name)


def tree(event: Event) -> dict[str, Any]:
    """The JSON of an event."""
    fields: dict[str, Any] = {
        "id": event.sequence,
        "event": word(event) or event.name,
        "name": event.name,
        "resource": {"id": resource(event), "type": event.resource_type},
        "actor": {"type": event.actor.kind.value, "id": event.actor.id, "name": event.actor.name},
        "metadata": {name: clean(value) for name, value in event.data.items()},
        "timestamp": stamp(event.at),
    }
    if fields["event"] not in (CHANGED, "host.up", "host.down"):
        fields["outcome"] = "error" if "error" in event.data else "success"
    if "error" in event.data:
        fields["error"] = clean(event.data.get("message", event.data["error"]))
    return fields


def resource(event: Event) -> str:
    prefix = _PREFIXES.get(event.resource_type)
    return show(prefix, event.resource_id) if prefix is not None else event.resource_id


@events.get("/events/stream", response_class=Response, responses=EVENT_STREAM)
async def stream(
    request: Request,
    caller: Annotated[Caller, Depends(Needs("sandboxes:read", ticket=True))],
    services: Given,
    last_event_id: Annotated[str | None, Header(description="Go on after this event.")] = None,
    after: Annotated[str | None, Query(max_length=18, description="The same for those who cannot set headers; 0 is the beginning.")] = None,
    everything: Annotated[bool, Query(alias="all")] = False,
) -> Response:
    """The team's events, none left out: from the one that Last-Event-ID names on, else from now on. The first message, `connected`, says where that is."""
    given = last_event_id or after
    if given is not None and not _NUMBER.match(given):
        raise InvalidInput(f"{given[:40]!r} is no event's id.")
    begin = int(given) if given is not None else await services.events.last(caller)
    return sse(request, _stream(services, caller, begin, everything))


async def _stream(services: Services, caller: Caller, begin: int, everything: bool) -> AsyncGenerator[Server, None]:
    yield Server("connected", json.dumps({"event": "connected", "name": "connected", "id": begin}), str(begin))
    async with aclosing(cast("AsyncGenerator[Event, None]", services.events.stream(caller, begin))) as found:
        async for event in found:
            if everything or word(event) is not None:
                shown = tree(event) | await _sandbox(services, caller, event)
                yield Server(shown["event"], json.dumps(shown), str(event.sequence))


async def _sandbox(services: Services, caller: Caller, event: Event) -> dict[str, Any]:
    """What the event is about, as it is by now; nothing when it is forgotten already."""
    if event.resource_type != "sandbox":
        return {}
    try:
        return {"sandbox": capsule_tree(await services.sandboxes.get(caller, event.resource_id))}
    except NotFound:
        return {}


@events.get("/capsules/{capsule_id}/events", response_model=EventList)
async def of_capsule(capsule_id: CapsuleId, caller: Reader, services: Given, limit: Annotated[int, Query(ge=1, le=200)] = 50) -> Response:
    """The last events of a sandbox, oldest first; kept as long as its record."""
    sandbox_id = inner(Prefix.SANDBOX, capsule_id)
    await services.sandboxes.get(caller, sandbox_id)
    return JSONResponse({"events": [tree(event) for event in await services.events.of(caller, sandbox_id, limit)]})
