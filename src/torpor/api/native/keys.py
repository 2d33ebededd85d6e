"""API keys, tickets, and the audit log."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import Depends, Path, Query
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from torpor.api.auth import Needs
from torpor.api.native.common import Given, router
from torpor.api.native.idempotency import key_and_digest
from torpor.api.native.ids import Prefix, inner, show, stamp
from torpor.api.native.models import Answer, Body, Short
from torpor.api.native.pages import Cursor, Limit, page, part
from torpor.api.times import moment
from torpor.model.errors import InvalidInput, NotFound
from torpor.model.records import ActorKind, ApiKey, AuditEntry
from torpor.model.sandbox import base36
from torpor.service.access import TICKET_SECONDS
from torpor.service.caller import Caller
from torpor.service.first import E2B_PREFIX, NATIVE_PREFIX

keys = router("keys")
TeamReader = Annotated[Caller, Depends(Needs("team:read"))]
TeamWriter = Annotated[Caller, Depends(Needs("team:write"))]
_SHAPES = {"torpor": NATIVE_PREFIX, "e2b": E2B_PREFIX}
_WORD = re.compile(r"[a-z_]{1,64}\Z")


class NewKey(Body):
    name: Short = ""
    scopes: Annotated[list[Short] | None, Field(max_length=64, description="Unless given: all.")] = None
    expires_at: Annotated[Short | None, Field(description="RFC 3339 with a zone; never unless given.")] = None
    kind: Annotated[Literal["torpor", "e2b"], Field(description="`e2b`: in the shape that E2B's clients look for; it opens the same.")] = "torpor"


class Key(Answer):
    """`key` is there in the answer to its making only. `created_by`: a user or a key; `creator_email` of a user."""

    id: str
    team_id: str
    name: str
    key_prefix: str
    created_by: str
    created_at: str
    scopes: list[str]
    expires_at: str | None = None
    last_used: str | None = None
    creator_email: str | None = None
    key: str | None = None


class Ticket(Answer):
    ticket: str
    expires_in: int


class AuditLog(Answer):
    items: list[dict[str, Any]]
    next_before: str | None = None
    next_before_id: str | None = None


def tree(key: ApiKey, creators: Mapping[str, str]) -> dict[str, Any]:
    """The JSON of a key's record. `creators`: e-mail addresses of users by their ids."""
    fields: dict[str, Any] = {
        "id": show(Prefix.KEY, key.id),
        "team_id": show(Prefix.TEAM, key.team_id),
        "name": key.name,
        "key_prefix": key.prefix,
        "created_by": show(Prefix.USER if key.created_by in creators else Prefix.KEY, key.created_by),
        "created_at": stamp(key.created_at),
        "scopes": list(key.scopes),
    }
    if key.expires_at is not None:
        fields["expires_at"] = stamp(key.expires_at)
    if key.last_used_at is not None:
        fields["last_used"] = stamp(key.last_used_at)
    if key.created_by in creators:
        fields["creator_email"] = creators[key.created_by]
    return fields


@keys.post("/api-keys", status_code=201, response_model=Key)
async def create(request: Request, body: NewKey, caller: TeamWriter, services: Given) -> Response:
    """A new key of the team. It is shown in this answer and never again. Repeated with the same Idempotency-Key: the same key with another secret, if the first
    was not used yet, else without any."""
    again, digest = await key_and_digest(request)
    key, secret = await services.keys.create(
        caller,
        body.name,
        body.scopes or (),
        moment("expires_at", body.expires_at) if body.expires_at is not None else None,
        shape=_SHAPES[body.kind],
        idempotency_key=again,
        request_digest=digest,
    )
    return JSONResponse(tree(key, await services.keys.creators([key])) | ({"key": secret} if secret else {}), 201)


@keys.get("/api-keys", response_model=list[Key])
async def list_(request: Request, caller: TeamReader, services: Given, cursor: Cursor = "", limit: Limit = 1000) -> Response:
    """The team's keys that were not revoked, newest first."""
    found = part("keys", await services.keys.list(caller), lambda key: (key.created_at, key.id), cursor, limit)
    creators = await services.keys.creators(found.items)
    return page(request, [tree(key, creators) for key in found.items], found.next)


@keys.delete("/api-keys/{key_id}", status_code=204, response_class=Response)
async def revoke(key_id: Annotated[str, Path(description="A key's id.")], caller: TeamWriter, services: Given) -> Response:
    """Revokes a key: it stops working at once. 204 also when there is none."""
    try:
        await services.keys.revoke(caller, inner(Prefix.KEY, key_id))
    except NotFound:
        return Response(status_code=204)
    return Response(status_code=204)


@keys.post("/auth/ticket", status_code=201, response_model=Ticket)
async def ticket(caller: Annotated[Caller, Depends(Needs("sandboxes:read"))], services: Given) -> Response:
    """A secret for `?ticket=` of one WebSocket or event stream, with the caller's own rights."""
    return JSONResponse({"ticket": await services.access.ticket(caller), "expires_in": int(TICKET_SECONDS)}, 201)


# The audit log


_ACTORS = {ActorKind.USER: Prefix.USER, ActorKind.API_KEY: Prefix.KEY}
_RESOURCES = {"sandbox": Prefix.SANDBOX, "api_key": Prefix.KEY, "user": Prefix.USER, "member": Prefix.USER, "team": Prefix.TEAM}


def audit_tree(entry: AuditEntry) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "id": show(Prefix.AUDIT, base36(entry.sequence)),
        "actor_type": entry.actor.kind.value,
        "actor_id": show(_ACTORS[entry.actor.kind], entry.actor.id) if entry.actor.kind in _ACTORS else entry.actor.id,
        "actor_name": entry.actor.name,
        "resource_type": entry.resource_type,
        "resource_id": show(_RESOURCES[entry.resource_type], entry.resource_id) if entry.resource_type in _RESOURCES else entry.resource_id,
        "action": entry.action,
        "scope": entry.scope,
        "status": entry.status.value,
        "metadata": dict(entry.metadata),
        "created_at": stamp(entry.at),
    }
    if entry.request_id:
        fields["request_id"] = entry.request_id
    return fields


Words = Annotated[list[str] | None, Query(description="Repeated, or joined by commas.")]


@keys.get("/audit-logs", response_model=AuditLog)
async def audit(
    caller: TeamReader,
    services: Given,
    resource_type: Words = None,
    action: Words = None,
    before: Annotated[str | None, Query(max_length=64, description="RFC 3339 with a zone: what happened earlier. With before_id that one decides.")] = None,
    before_id: Annotated[str, Query(max_length=512, description="The next_before_id of the page before.")] = "",
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> Response:
    """What was done in the team and what was refused, newest first, without gaps."""
    earlier = moment("before", before) if before is not None else None
    found = await services.audit.list(
        caller,
        resource_types=_words(resource_type),
        actions=_words(action),
        before=None if before_id else earlier,
        cursor=before_id,
        limit=limit,
    )
    answer: dict[str, Any] = {"items": [audit_tree(entry) for entry in found.items]}
    if found.next:
        answer |= {"next_before": stamp(found.items[-1].at if found.items else time.time()), "next_before_id": found.next}
    return JSONResponse(answer)


def _words(given: list[str] | None) -> list[str]:
    """Raises InvalidInput."""
    words = [word for each in given or () for word in each.split(",")]
    if len(words) > 50 or not all(_WORD.match(word) for word in words):
        raise InvalidInput("resource_type and action are words of small letters and '_'.")
    return words
