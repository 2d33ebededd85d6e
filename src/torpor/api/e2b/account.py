"""API keys and teams, and everything of E2B's that torpor has not: each refused by name."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import Query
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from torpor.api.e2b.common import Body, Given, Json, Reader, TeamReader, TeamWriter, Text, decoded, id_of, key_and_digest, router, stamp, uuid_of
from torpor.api.e2b.errors import NotBuilt
from torpor.model.errors import InvalidInput, NotFound
from torpor.model.records import ApiKey
from torpor.service.caller import Caller
from torpor.service.first import E2B_PREFIX

account = router()
_SECRET_LENGTH = 40


class NewKey(Body):
    name: Annotated[Text, Field(min_length=1, max_length=256)]


# Keys


def tree(key: ApiKey) -> Json:
    prefix, _, shown = key.prefix.partition("_")
    fields: Json = {
        "id": uuid_of(key.id),
        "name": key.name,
        "mask": {"prefix": f"{prefix}_", "valueLength": _SECRET_LENGTH, "maskedValuePrefix": shown, "maskedValueSuffix": ""},
        "createdAt": stamp(key.created_at),
        "createdBy": None,
        "lastUsed": stamp(key.last_used_at) if key.last_used_at is not None else None,
    }
    return fields


@account.post("/api-keys")
async def create(request: Request, body: NewKey, caller: TeamWriter, services: Given) -> Response:
    """A key in the shape that E2B's clients look for. It is shown in this answer and never again."""
    again, digest = await key_and_digest(request)
    key, secret = await services.keys.create(caller, body.name, _narrowest(caller), shape=E2B_PREFIX, idempotency_key=again, request_digest=digest)
    return JSONResponse(tree(key) | {"key": secret}, 201)


def _narrowest(caller: Caller) -> tuple[str, ...]:
    """A key makes keys within its own scopes."""
    return tuple(sorted(caller.scopes))


@account.get("/api-keys")
async def list_(caller: TeamReader, services: Given) -> Response:
    return JSONResponse([tree(key) for key in await services.keys.list(caller)])


@account.patch("/api-keys/{segment}")
async def rename(segment: str, body: NewKey, caller: TeamWriter, services: Given) -> Response:
    await services.keys.rename(caller, id_of(decoded(segment)), body.name)
    return Response(status_code=204)


@account.delete("/api-keys/{segment}")
async def revoke(segment: str, caller: TeamWriter, services: Given) -> Response:
    await services.keys.revoke(caller, id_of(decoded(segment)))
    return Response(status_code=204)


# Teams


@account.get("/teams")
async def teams(caller: TeamReader, services: Given) -> Response:
    """The caller's. Keys are not kept, so none is told."""
    team = await services.tags.team(caller)
    return JSONResponse([{"teamID": team.id, "name": team.name, "apiKey": "", "isDefault": True}])


Second = Annotated[int | None, Query(ge=0, le=1 << 40)]


@account.get("/teams/{segment}/metrics")
async def team_metrics(segment: str, caller: TeamReader, services: Given, start: Second = None, end: Second = None) -> Response:
    """How many sandboxes ran at once, the most of each minute."""
    _demand_own(caller, segment)
    now = time.time()
    stats = await services.figures.stats(caller, now - (start if start is not None else now - 3600), 60.0)
    told = [one for one in stats.series if end is None or one.at <= end]
    return JSONResponse([{"timestamp": stamp(one.at), "timestampUnix": int(one.at), "concurrentSandboxes": one.running} for one in told])


@account.get("/teams/{segment}/metrics/max")
async def most(segment: str, caller: TeamReader, services: Given, metric: str, start: Second = None, end: Second = None) -> Response:
    _demand_own(caller, segment)
    if metric == "sandbox_start_rate":
        raise NotBuilt("the metric sandbox_start_rate")
    if metric != "concurrent_sandboxes":
        raise InvalidInput("metric: concurrent_sandboxes.")
    now = time.time()
    stats = await services.figures.stats(caller, now - (start if start is not None else now - 3600), 60.0)
    told = [one for one in stats.series if end is None or one.at <= end]
    highest = max(told, key=lambda one: one.running, default=None)
    at = highest.at if highest is not None else now
    return JSONResponse({"timestamp": stamp(at), "timestampUnix": int(at), "value": highest.running if highest is not None else 0})


def _demand_own(caller: Caller, segment: str) -> None:
    if decoded(segment).removeprefix("team-") != caller.team_id:
        raise NotFound("There is no such team.")


# What is not here

_ABSENT = {
    "volumes": "volumes",
    "volumecontent": "volumes",
    "secrets": "secrets",
    "access-tokens": "access tokens; use an API key or a login's token",
    "nodes": "nodes; see `torpor hosts`",
    "events": "webhooks of E2B's; see the native API's channels",
}


def _absent(path: str, feature: str) -> None:
    async def refuse(caller: Reader) -> Response:
        raise NotBuilt(feature)

    for place in (f"/{path}", f"/{path}/{{rest:path}}"):
        account.add_api_route(place, refuse, methods=["GET", "POST", "PUT", "PATCH", "DELETE"], name=f"no {path}")


for _path, _feature in _ABSENT.items():
    _absent(_path, _feature)
