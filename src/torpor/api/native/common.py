"""What the native routers share: their callers, what every route may answer, how JSON leaves."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path
from starlette.requests import HTTPConnection, Request

from torpor.api.auth import Needs, services_of
from torpor.api.follow import Hub
from torpor.api.native.models import Error
from torpor.api.services import Services
from torpor.service.caller import Caller


async def _services(request: Request) -> Services:
    return services_of(request)


def hub_of(connection: HTTPConnection) -> Hub:
    found: Hub = connection.app.state.hub
    return found


Given = Annotated[Services, Depends(_services)]
Reader = Annotated[Caller, Depends(Needs("sandboxes:read"))]
Writer = Annotated[Caller, Depends(Needs("sandboxes:write"))]
Runner = Annotated[Caller, Depends(Needs("sandboxes:exec"))]
FileReader = Annotated[Caller, Depends(Needs("files:read"))]
FileWriter = Annotated[Caller, Depends(Needs("files:write"))]
TemplateReader = Annotated[Caller, Depends(Needs("templates:read"))]
TemplateWriter = Annotated[Caller, Depends(Needs("templates:write"))]
CapsuleId = Annotated[str, Path(description="A sandbox's id: cl- and 25 digits or lower-case letters.", examples=["cl-0000000000000000000000000"])]

_MEANINGS = {
    400: "The request is malformed.",
    401: "No valid key or login.",
    403: "Known, but not allowed.",
    404: "There is no such thing, or it is another team's.",
    405: "The path exists, the method does not.",
    409: "The present state, or something else that exists, forbids it.",
    413: "The body is too large.",
    429: "A limit is reached; Retry-After says when to try again.",
    500: "Something failed on our side.",
    502: "The host or the guest failed.",
    503: "No room, or a host cannot be reached; Retry-After says when to try again.",
    507: "The sandbox's disk is full.",
}


def refusals(*without: int) -> dict[int | str, dict[str, Any]]:
    """The errors that any route may answer, for the OpenAPI file."""
    return {status: {"model": Error, "description": meaning} for status, meaning in _MEANINGS.items() if status not in without}


def router(tag: str, prefix: str = "/v1") -> APIRouter:
    return APIRouter(prefix=prefix, tags=[tag], responses=refusals())
