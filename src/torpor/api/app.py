"""The application: routes of the dialects, what lies around them, and the errors of HTTP itself."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import cache, partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import Match
from starlette.types import ASGIApp, Scope

from torpor import __version__
from torpor.api import operations
from torpor.api.auth import note_refusal
from torpor.api.dialect import Dialects, dialect_of
from torpor.api.e2b import ROUTERS as E2B_ROUTERS
from torpor.api.e2b.envd.app import PORT as ENVD_PORT
from torpor.api.e2b.envd.app import make_envd
from torpor.api.e2b.errors import E2B, has_path
from torpor.api.errors import row_of
from torpor.api.follow import Hub
from torpor.api.middleware import Bounds, Context, Faults, Meters, Paths, request_id_of
from torpor.api.native import (
    account,
    admin,
    admin_capsules,
    capsules,
    channels,
    commands,
    events,
    figures,
    files,
    keys,
    ports,
    pty,
    snapshots,
    streams,
    teams,
)
from torpor.api.openapi import document
from torpor.api.origins import AnyOrigin
from torpor.api.proxy.app import make_proxy
from torpor.api.proxy.headers import Smuggling, single
from torpor.api.reach import Reach
from torpor.api.services import Services
from torpor.model.errors import GuestError, TorporError

BODY_LIMIT = 4 << 20
_LIMITS: dict[str, int | None] = {"/files/stream/write": None, "/files/write": files.WRITE_LIMIT + (1 << 20)}
_ROUTERS = (
    operations.router,
    figures.figures,  # before the capsules: `stats` is no id
    capsules.capsules,
    commands.commands,
    streams.streams,
    pty.pty,
    files.files,
    ports.ports,
    snapshots.snapshots,
    events.events,
    keys.keys,
    account.account,
    teams.teams,
    admin.admin,
    admin_capsules.admin_capsules,
    channels.channels,
    *E2B_ROUTERS,
)
_CODES = {404: "not_found", 405: "method_not_allowed", 406: "invalid_request", 415: "invalid_request"}


def make_app(services: Services, reach: Reach | None = None, inner: Mapping[int, ASGIApp] | None = None) -> FastAPI:
    """An ASGI application on these use cases, which the caller opens before and closes after it serves. Whoever stops it sets `app.state.stopping`: streams
    without end end then. `reach`: where the ports of sandboxes are found; `inner`: what answers for some of them (api.proxy), beside E2B's data plane."""
    reach = reach or Reach()
    app = FastAPI(title="torpor", version=__version__, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    registry = CollectorRegistry()
    app.state.services = services
    app.state.reach = reach
    app.state.claims = lambda scope: _is_proxied(reach, scope)
    app.state.hub = Hub()
    app.state.stopping = asyncio.Event()
    app.state.registry = registry
    app.state.meters = Meters(registry)
    for router in _ROUTERS:
        app.router.routes.extend(router.routes)  # flat: one table to match, and to derive the documentation from
    app.openapi = cache(partial(document, app))  # type: ignore[method-assign]
    app.add_exception_handler(TorporError, _typed)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_middleware(Bounds, limit=BODY_LIMIT, exceptions=_LIMITS)
    app.add_middleware(Paths)
    app.add_middleware(Faults)
    app.add_middleware(AnyOrigin, claims=has_path)
    app.add_middleware(Dialects, dialects=(E2B,))
    app.add_middleware(Context, meters=app.state.meters)
    inner = {ENVD_PORT: make_envd(services, app.state.hub)} | dict(inner or {})
    app.add_middleware(make_proxy, services=services, reach=reach, registry=registry, inner=inner)
    return app


def _is_proxied(reach: Reach, scope: Scope) -> bool:
    """What api.protocol asks of a request to switch protocols: the proxy takes those for sandboxes whole."""
    try:
        return reach.claims(single(scope["headers"]), scope.get("server"))
    except Smuggling:
        return True


async def _typed(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, TorporError)
    if row_of(error).status == 403 and not isinstance(error, GuestError):
        await note_refusal(request, error)
    return dialect_of(request.scope).respond(error, request_id_of(request.scope))


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """What the models refuse: the first problem, named by its place."""
    assert isinstance(error, RequestValidationError)
    problem: dict[str, Any] = dict(error.errors()[0])
    where = ".".join(str(part) for part in problem["loc"])
    return dialect_of(request.scope).plain(400, "invalid_request", f"{where}: {problem['msg']}"[:500], request_id_of(request.scope), None)


async def _http(request: Request, error: Exception) -> JSONResponse:
    """What the framework refuses. A typed error may hide behind it: bodies are read inside of it."""
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, TorporError):
        return dialect_of(request.scope).respond(error.__cause__, request_id_of(request.scope))
    code = _CODES.get(error.status_code, "invalid_request" if error.status_code < 500 else "internal_error")
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(sorted(_methods(request)))
    messages = {404: "There is nothing at this path.", 405: f"{request.method} is not possible here."}
    message = messages.get(error.status_code, str(error.detail))
    return dialect_of(request.scope).plain(error.status_code, code, message, request_id_of(request.scope), headers)


def _methods(request: Request) -> set[str]:
    """What the path can: the framework names the methods of one of its routes only."""
    found: set[str] = set()
    for route in request.app.routes:
        if isinstance(route, APIRoute) and route.matches(request.scope)[0] is not Match.NONE:
            found |= route.methods or set()
    return found
