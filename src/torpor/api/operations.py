"""What operators and programs ask of the server itself: health, counters, the OpenAPI file, the documentation page."""

from __future__ import annotations

import asyncio
import json
from ipaddress import ip_address
from typing import Any

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import JSONResponse, Response

from torpor import __version__
from torpor.api.auth import authenticate, services_of
from torpor.api.page import page
from torpor.model.errors import Forbidden, Unauthorized
from torpor.model.records import SandboxState

router = APIRouter()


@router.get("/health", tags=["operations"])
async def health(request: Request) -> Response:
    """Answers while the server serves. Clients that speak E2B get the words they compare with."""
    if request.headers.get("host", "").startswith("api.") or request.headers.get("x-api-key", "").startswith("e2b_"):
        return Response("Health check successful", media_type="text/plain")
    return JSONResponse({"status": "ok", "version": __version__})


@router.get("/metrics", include_in_schema=False)
async def metrics(request: Request) -> Response:
    """Prometheus counters, for this machine and administrators."""
    await _loopback_or_admin(request)
    counts = await services_of(request).counts()
    for state in SandboxState:
        request.app.state.meters.sandboxes.labels(state.value).set(counts.get(state, 0))
    return Response(generate_latest(request.app.state.registry), media_type=CONTENT_TYPE_LATEST)


@router.get("/openapi.json", include_in_schema=False)
async def openapi(request: Request) -> Response:
    return JSONResponse(await _document(request))


@router.get("/openapi.yaml", include_in_schema=False)
async def openapi_yaml(request: Request) -> Response:
    """The same: what is JSON is YAML too (YAML 1.2, 1.3)."""
    return Response(json.dumps(await _document(request), indent=1), media_type="application/yaml")


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> Response:
    """The API as one page, made from the OpenAPI file. It loads nothing from anywhere and runs nothing."""
    await _loopback_or_admin(request)
    return Response(
        page(await _document(request)), media_type="text/html", headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
    )


async def _document(request: Request) -> dict[str, Any]:
    """Made when it is first asked for: most servers are never asked, and it is a tenth of a start."""
    made: dict[str, Any] = await asyncio.to_thread(request.app.openapi)
    return made


async def _loopback_or_admin(request: Request) -> None:
    """Raises Forbidden. A proxy on this machine that passes requests of others on says so in a header, and does not count as loopback."""
    proxied = any(name in request.headers for name in ("x-forwarded-for", "forwarded", "x-real-ip"))
    if request.client is not None and not proxied and _is_loopback(request.client.host):
        return
    try:
        caller = await authenticate(request)
    except Unauthorized:
        raise Forbidden("This is for the machine itself and for administrators.") from None
    if not caller.is_admin:
        raise Forbidden("This is for the machine itself and for administrators.")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
