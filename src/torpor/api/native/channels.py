"""Channels: where a team wants to hear of what happens, and what became of what was sent there."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Depends, Path, Query
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from torpor.api.auth import Needs
from torpor.api.native.common import Given, router
from torpor.api.native.events import resource
from torpor.api.native.idempotency import key_and_digest
from torpor.api.native.ids import Prefix, check_name, inner, show, stamp
from torpor.api.native.models import Answer, Body, Short, Text
from torpor.api.native.pages import Cursor, Limit, page, part
from torpor.model.records import Channel as Record
from torpor.model.records import DeliveryState
from torpor.service.caller import Caller
from torpor.service.channels import Told

channels = router("channels")
TeamReader = Annotated[Caller, Depends(Needs("team:read"))]
TeamWriter = Annotated[Caller, Depends(Needs("team:write"))]
ChannelId = Annotated[str, Path(description="A channel's id: ch- and 25 digits or lower-case letters.")]
Value = Annotated[Text, Field(max_length=4096)]
Config = Annotated[
    dict[Short, Value],
    Field(
        max_length=16,
        description="webhook: url, secret (made unless given). slack, discord, teams, googlechat: webhook_url. telegram: bot_token, chat_id. "
        "matrix: homeserver_url, access_token, room_id.",
    ),
]
Events = Annotated[list[Short], Field(max_length=64, description="Names of events; docs/notifications.md has them.")]
Provider = Annotated[Short, Field(description="webhook, slack, discord, teams, googlechat, telegram or matrix.")]


class NewChannel(Body):
    name: Short
    provider: Provider
    config: Config
    events: Events


class ChangedChannel(Body):
    name: Short
    events: Events


class NewConfig(Body):
    config: Config


class TestedChannel(Body):
    provider: Provider
    config: Config


class Channel(Answer):
    """`secret`: what a webhook's messages are signed with; in the answer to its making only."""

    id: str
    team_id: str
    name: str
    provider: str
    events: list[str]
    created_at: str
    updated_at: str
    secret: str | None = None


class Tested(Answer):
    status: Literal["ok"]


class Delivery(Answer):
    """`event` and `resource_id` are missing when the event is forgotten. `next_attempt_at` of a waiting one, `ended_at` of the others."""

    id: str
    event_id: int
    state: Literal["waiting", "delivered", "dead"]
    attempts: int
    event: str | None = None
    resource_id: str | None = None
    created_at: str | None = None
    next_attempt_at: str | None = None
    ended_at: str | None = None
    error: str | None = None


def tree(channel: Record) -> dict[str, Any]:
    """The JSON of a channel; nothing of its config."""
    return {
        "id": show(Prefix.CHANNEL, channel.id),
        "team_id": show(Prefix.TEAM, channel.team_id),
        "name": channel.name,
        "provider": channel.provider,
        "events": list(channel.events),
        "created_at": stamp(channel.created_at),
        "updated_at": stamp(channel.updated_at),
    }


def delivery_tree(told: Told) -> dict[str, Any]:
    delivery, event = told.delivery, told.event
    fields: dict[str, Any] = {
        "id": show(Prefix.DELIVERY, delivery.id),
        "event_id": delivery.event_sequence,
        "state": delivery.state.value,
        "attempts": delivery.attempts,
        ("next_attempt_at" if delivery.state is DeliveryState.WAITING else "ended_at"): stamp(delivery.due_at),
    }
    if event is not None:
        fields |= {"event": event.name, "resource_id": resource(event), "created_at": stamp(event.at)}
    if delivery.error:
        fields["error"] = delivery.error
    return fields


def _name(text: str) -> str:
    """As it is kept. Raises InvalidInput."""
    return check_name(text.strip().lower().replace(" ", "-"))


@channels.post("/channels", status_code=201, response_model=Channel)
async def create(request: Request, body: NewChannel, caller: TeamWriter, services: Given) -> Response:
    """A new channel. Nothing is sent to it yet; `/v1/channels/test` does. Repeated with the same Idempotency-Key: the same
    channel, and its secret once more."""
    key, digest = await key_and_digest(request)
    channel, config = await services.channels.create(
        caller, _name(body.name), body.provider, body.config, body.events, idempotency_key=key, request_digest=digest
    )
    return JSONResponse(tree(channel) | ({"secret": config["secret"]} if "secret" in config else {}), 201)


@channels.get("/channels", response_model=list[Channel])
async def list_(request: Request, caller: TeamReader, services: Given, cursor: Cursor = "", limit: Limit = 1000) -> Response:
    """The team's channels, newest first."""
    found = part("channels", await services.channels.list(caller), lambda channel: (channel.created_at, channel.id), cursor, limit)
    return page(request, [tree(channel) for channel in found.items], found.next)


@channels.post("/channels/test", response_model=Tested)
async def test(body: TestedChannel, caller: TeamWriter, services: Given) -> Response:
    """Sends `channel.test` there and answers when it was taken; 502 `delivery_failed` when it was not."""
    await services.channels.test(caller, body.provider, body.config)
    return JSONResponse({"status": "ok"})


@channels.get("/channels/{channel_id}", response_model=Channel)
async def get(channel_id: ChannelId, caller: TeamReader, services: Given) -> Response:
    """One channel."""
    return JSONResponse(tree(await services.channels.get(caller, inner(Prefix.CHANNEL, channel_id))))


@channels.patch("/channels/{channel_id}", response_model=Channel)
async def update(channel_id: ChannelId, body: ChangedChannel, caller: TeamWriter, services: Given) -> Response:
    """Another name, other events."""
    return JSONResponse(tree(await services.channels.update(caller, inner(Prefix.CHANNEL, channel_id), _name(body.name), body.events)))


@channels.put("/channels/{channel_id}/config", response_model=Channel)
async def configure(channel_id: ChannelId, body: NewConfig, caller: TeamWriter, services: Given) -> Response:
    """Replaces the config; a webhook's secret stays unless another is given. What waits is sent there at once."""
    return JSONResponse(tree(await services.channels.configure(caller, inner(Prefix.CHANNEL, channel_id), body.config)))


@channels.delete("/channels/{channel_id}", status_code=204, response_class=Response)
async def delete(channel_id: ChannelId, caller: TeamWriter, services: Given) -> Response:
    """Deletes the channel and what waits for it; 204 also when there is none."""
    await services.channels.delete(caller, inner(Prefix.CHANNEL, channel_id))
    return Response(status_code=204)


@channels.post("/channels/{channel_id}/test", response_model=Tested)
async def test_saved(channel_id: ChannelId, caller: TeamWriter, services: Given) -> Response:
    """Sends `channel.test` to a channel that is there."""
    await services.channels.test_saved(caller, inner(Prefix.CHANNEL, channel_id))
    return JSONResponse({"status": "ok"})


@channels.get("/channels/{channel_id}/deliveries", response_model=list[Delivery])
async def deliveries(
    request: Request,
    channel_id: ChannelId,
    caller: TeamReader,
    services: Given,
    state: Annotated[DeliveryState | None, Query(description="Only these; `dead` are the ones that were given up.")] = None,
    cursor: Cursor = "",
    limit: Limit = 50,
) -> Response:
    """What was sent, waits, or was given up, newest events first; kept for 30 days."""
    found = await services.channels.deliveries(caller, inner(Prefix.CHANNEL, channel_id), state=state, cursor=cursor, limit=limit)
    return page(request, [delivery_tree(told) for told in found.items], found.next)


@channels.post("/channels/{channel_id}/deliveries/{delivery_id}/retry", response_model=Delivery)
async def retry(channel_id: ChannelId, delivery_id: str, caller: TeamWriter, services: Given) -> Response:
    """Sends a dead delivery once more; 409 when it is not dead."""
    told = await services.channels.retry(caller, inner(Prefix.CHANNEL, channel_id), inner(Prefix.DELIVERY, delivery_id))
    return JSONResponse(delivery_tree(told))
