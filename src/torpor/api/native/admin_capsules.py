"""The platform team's own sandboxes, out of which templates for everybody are made: the handlers of every other sandbox, under /v1/admin, where `Needs` asks
for an administrator and acts for the platform's team."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.routing import APIRoute, APIWebSocketRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from torpor.api.auth import Needs
from torpor.api.native import capsules, commands, figures, files, pty, streams
from torpor.api.native.common import CapsuleId, Given, router
from torpor.api.native.idempotency import key_and_digest
from torpor.api.native.ids import Prefix, inner
from torpor.api.native.models import Body, Name, Template
from torpor.api.native.snapshots import answer, finished, name_for
from torpor.api.native.wait import LONG, bound
from torpor.service.caller import Caller

admin_capsules = router("admin", "/v1/admin")

_HANDLERS = {
    capsules.create,
    capsules.list_,
    capsules.get,
    capsules.delete,
    commands.execute,
    commands.processes,
    commands.kill,
    figures.metrics,
    files.read,
    files.write,
    files.list_,
    files.mkdir,
    files.remove,
    pty.terminal,
    streams.exec_stream,
    streams.process_stream,
}
_SOURCES: tuple[APIRouter, ...] = (capsules.capsules, commands.commands, figures.figures, files.files, streams.streams, pty.pty)


class NewTemplate(Body):
    name: Name | None = None


def _copy(route: BaseRoute) -> None:
    if isinstance(route, APIRoute) and route.endpoint in _HANDLERS:
        admin_capsules.add_api_route(
            route.path.removeprefix("/v1"),
            route.endpoint,
            route_class_override=type(route),
            methods=sorted(route.methods or ()),
            response_model=route.response_model,
            response_class=route.response_class,
            status_code=route.status_code,
            responses=route.responses,
            openapi_extra=route.openapi_extra,
        )
    elif isinstance(route, APIWebSocketRoute) and route.endpoint in _HANDLERS:
        admin_capsules.add_api_websocket_route(route.path.removeprefix("/v1"), route.endpoint)


for _source in _SOURCES:
    for _route in _source.routes:
        _copy(_route)


@admin_capsules.post(
    "/capsules/{capsule_id}/snapshot", status_code=201, response_model=Template, responses={202: {"description": "Being made.", "model": None}}
)
async def snapshot(
    request: Request, capsule_id: CapsuleId, body: NewTemplate, caller: Annotated[Caller, Depends(Needs("admin", admin=True))], services: Given
) -> Response:
    """A template for everybody, of one of the platform's sandboxes, which ends when the template is there. A template of that name stays until the new one is
    complete."""
    seconds = bound(request, LONG)
    sandbox_id = inner(Prefix.SANDBOX, capsule_id)
    key, digest = await key_and_digest(request)
    name = name_for(body.name, key, sandbox_id)
    started = await services.admin.snapshot(caller, sandbox_id, name, idempotency_key=key, request_digest=digest)
    sandbox, template = await finished(services, caller, started, name, seconds)
    if template is not None:
        await services.admin.ended(sandbox, template.id, seconds)
    return answer(sandbox, template, name)
