"""What the routers of this dialect share: callers, ids, times, and the wait for an operation's end."""

from __future__ import annotations

import hashlib
import math
import re
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import unquote
from uuid import UUID

from fastapi import APIRouter, Depends
from pydantic import AfterValidator, BaseModel, ConfigDict
from starlette.requests import Request

from torpor.api.auth import Needs, services_of
from torpor.api.services import Services
from torpor.lifecycle.sandbox import FINAL
from torpor.model.errors import Forbidden, InvalidInput, NotFound
from torpor.model.records import Sandbox, SandboxState
from torpor.service.caller import Caller
from torpor.service.sandboxes import Started

ENVD_VERSION = "0.6.13"
CLIENT_ID = "00000000"
"""What stands behind the dash in ids of long ago."""
MOST_SECONDS = 365 * 86400
PATIENCE = 330.0
"""Seconds: longer than any operation may last, so that an answer says how it ended."""
_IDEMPOTENCY = re.compile(r"[a-z0-9-]{1,255}\Z")
_BAD = re.compile("[\0\ud800-\udfff]")
_ID = re.compile(r"[a-z0-9]{1,64}\Z")
_FAR = "9999-01-01T00:00:00Z"


async def _services(request: Request) -> Services:
    return services_of(request)


class Asks(Needs):
    """As Needs; a caller who names a team by X-Team-ID acts for that one or not at all."""

    async def __call__(self, request: Request) -> Caller:
        caller = await super().__call__(request)
        named = request.headers.get("x-team-id")
        if named is not None and named.removeprefix("team-") != caller.team_id:
            raise Forbidden("The credential is not one of the team that X-Team-ID names.")
        return caller


Given = Annotated[Services, Depends(_services)]
Reader = Annotated[Caller, Depends(Asks("sandboxes:read"))]
Writer = Annotated[Caller, Depends(Asks("sandboxes:write"))]
TemplateReader = Annotated[Caller, Depends(Asks("templates:read"))]
TemplateWriter = Annotated[Caller, Depends(Asks("templates:write"))]
TeamReader = Annotated[Caller, Depends(Asks("team:read"))]
TeamWriter = Annotated[Caller, Depends(Asks("team:write"))]


def router() -> APIRouter:
    """Not in the OpenAPI file, which is the native dialect's."""
    return APIRouter(include_in_schema=False)


def _text(value: str) -> str:
    if _BAD.search(value):
        raise ValueError("holds a NUL or half a character")
    return value


Text = Annotated[str, AfterValidator(_text)]


class Body(BaseModel):
    """Strict about the types of what it knows, and silent about the rest. Names are E2B's own."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


def decoded(segment: str) -> str:
    """An id out of the path, which comes percent-encoded. Raises InvalidInput for what is no text."""
    try:
        text = unquote(segment, errors="strict")
    except UnicodeDecodeError:
        raise InvalidInput("The path holds bytes that are no UTF-8.") from None
    if _BAD.search(text) or len(text) > 512:
        raise InvalidInput("The path holds what is no id.")
    return text


def sandbox_id(segment: str) -> str:
    """`id`, `id-<client>` or the native `cl-id`. Raises InvalidInput for what can be none, NotFound for what none of ours looks like."""
    text = decoded(segment).removeprefix("cl-").split("-")[0]
    if not _ID.match(text):
        raise InvalidInput(f"{text[:40]!r} is no sandbox id.")
    if len(text) != 25:
        raise NotFound(f"There is no sandbox {text!r}.")
    return text


async def found(services: Services, caller: Caller, segment: str) -> Sandbox:
    """A sandbox that has not ended and does not. Raises NotFound, InvalidInput."""
    sandbox = await services.sandboxes.get(caller, sandbox_id(segment))
    if sandbox.state in FINAL or sandbox.state is SandboxState.STOPPING:
        raise NotFound(f"There is no sandbox {sandbox.id}.")
    return sandbox


async def settled(services: Services, started: Started) -> Sandbox:
    """The sandbox when its operation is over. Raises what the operation failed with."""
    return await services.sandboxes.settled(started.sandbox.id, started.operation_id, PATIENCE)


async def key_and_digest(request: Request) -> tuple[str, str]:
    """The Idempotency-Key ('' without one) and the digest of the request that it stands for. Raises InvalidInput."""
    key = request.headers.get("idempotency-key")
    if key is None:
        return "", ""
    if not _IDEMPOTENCY.match(key):
        raise InvalidInput("The Idempotency-Key must have 1 to 255 small letters, digits and dashes.")
    digest = hashlib.sha256(f"{request.method} {request.scope['path']}\n".encode() + await request.body())
    return f"e2b {key}", digest.hexdigest()


def stamp(at: float | None) -> str:
    """RFC 3339 in UTC with microseconds, rounded down, so that what is read back is no later. None: a time that does not come."""
    if at is None:
        return _FAR
    whole = math.floor(at * 1e6)
    return datetime.fromtimestamp(whole // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{whole % 1_000_000:06d}Z"


def uuid_of(inner: str) -> str:
    """An id of ours, where E2B's clients take nothing but a UUID."""
    return str(UUID(int=int(inner, 36) & ((1 << 128) - 1)))


def id_of(text: str) -> str:
    """The other way; 25 digits are taken as they are. Raises NotFound for what is neither."""
    if len(text) == 25 and _ID.match(text):
        return text
    try:
        value = UUID(text).int
    except ValueError:
        raise NotFound(f"There is nothing of the id {text[:40]!r}.") from None
    digits = ""
    for _ in range(25):
        value, rest = divmod(value, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[rest] + digits
    return digits


def limit_of(limit: int | None, most: int = 100) -> int:
    """A page's length. Raises InvalidInput."""
    if limit is None:
        return most
    if not 1 <= limit <= most:
        raise InvalidInput(f"limit: 1 to {most}.")
    return limit


Json = dict[str, Any]
