"""What the native routers share: their callers, what every route may answer, how JSON leaves."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path
from fastapi.routing import APIRoute
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from torpor.api.auth import Needs, services_of
from torpor.api.follow import Hub
from torpor.api.native.ids import Prefix, inner
from torpor.api.native.models import Error
from torpor.api.services import Services
from torpor.lifecycle.sandbox import FINAL, demand_running
from torpor.model.records import Sandbox, SandboxState
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


class Guarded(APIRoute):
    """A route that asks who is calling, and whether the sandbox of its path is theirs, before it reads a byte of the body: whoever may not ask learns nothing
    of what a good question is, and no body of a stranger is taken in."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        needs = next((found.call for found in self.dependant.dependencies if isinstance(found.call, Needs)), None)
        if needs is None:
            return handle
        asked: Needs = needs

        async def guarded(request: Request) -> Response:
            caller = await asked(request)
            if request.method != "GET" and "capsule_id" in request.path_params:
                await self.look(await services_of(request).sandboxes.get(caller, inner(Prefix.SANDBOX, request.path_params["capsule_id"])))
            return await handle(request)

        return guarded

    async def look(self, sandbox: Sandbox) -> None:
        """At the sandbox, before the body is read."""


class Inside(Guarded):
    """A route whose work is inside the sandbox: one that is not to be reached is refused before the body is read."""

    async def look(self, sandbox: Sandbox) -> None:
        """Raises Denied."""
        demand_reachable(sandbox)


def demand_reachable(sandbox: Sandbox) -> None:
    """Raises Denied for one that has ended, or sleeps and is not to be woken."""
    if sandbox.state in FINAL or (sandbox.state is SandboxState.PAUSED and not sandbox.auto_resume):
        demand_running(sandbox.state)


async def reachable(socket: HTTPConnection, caller: Caller, capsule_id: str) -> str:
    """The id of the sandbox of a WebSocket, looked at before the first frame is waited for. Raises InvalidInput, NotFound, Denied."""
    sandbox_id = inner(Prefix.SANDBOX, capsule_id)
    demand_reachable(await services_of(socket).sandboxes.get(caller, sandbox_id))
    return sandbox_id


def router(tag: str, prefix: str = "/v1", kind: type[Guarded] = Guarded) -> APIRouter:
    return APIRouter(prefix=prefix, tags=[tag], responses=refusals(), route_class=kind)
