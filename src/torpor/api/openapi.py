"""The OpenAPI file: what the routes say of themselves, plus who may call them."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from torpor.api.auth import COOKIE, HOST_COOKIE, Needs

_SCHEMES = {
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "A team's API key."},
    "bearer": {"type": "http", "scheme": "bearer", "description": "A login's token, or an API key."},
    "cookie": {
        "type": "apiKey",
        "in": "cookie",
        "name": COOKIE,
        "description": f"A browser's login, over TLS as {HOST_COOKIE}; changing requests need X-CSRF-Token too.",
    },
}
_ABOUT = """Runs untrusted code in microVMs that sleep and wake in milliseconds.

Everything under `/v1` is also answered under `/api/v1`; `/v1/sandboxes` is `/v1/capsules`. Errors are `{"error": {"code", "reason", "message",
"request_id"}}`. WebSockets (`/v1/capsules/{id}/exec/stream`, `/processes/{selector}/stream`, `/pty`) are described in docs/api.md."""


def needs_of(route: APIRoute) -> Needs | None:
    """Who may call a route: what its dependencies say."""
    return next((found.call.at(route.path) for found in route.dependant.dependencies if isinstance(found.call, Needs)), None)


def document(app: FastAPI) -> dict[str, Any]:
    """OpenAPI 3.1. `x-scope` of an operation names the scope its caller needs, `x-user` and `x-admin` who else cannot call it."""
    tree: dict[str, Any] = get_openapi(title=app.title, version=app.version, openapi_version="3.1.0", description=_ABOUT, routes=app.routes)
    tree.setdefault("components", {})["securitySchemes"] = _SCHEMES
    for name in ("HTTPValidationError", "ValidationError"):
        tree["components"].get("schemas", {}).pop(name, None)
    for route in app.routes:
        if isinstance(route, APIRoute) and route.include_in_schema:
            for method in route.methods or ():
                _finish(tree["paths"][route.path_format][method.lower()], needs_of(route))
    return tree


def _finish(operation: dict[str, Any], needs: Needs | None) -> None:
    """What the framework says of its own validation errors is not what we answer."""
    if operation["responses"].get("422", {}).get("content", {}).get("application/json", {}).get("schema", {}).get("$ref", "").endswith("HTTPValidationError"):
        del operation["responses"]["422"]
    for status, response in operation["responses"].items():
        if status in ("429", "503"):
            response["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
    if needs is None:
        return
    operation["security"] = [{"bearer": []}, {"cookie": []}] if needs.user else [{"key": []}, {"bearer": []}, {"cookie": []}]
    operation["x-scope"] = needs.scope
    if needs.user:
        operation["x-user"] = True
    if needs.admin:
        operation["x-admin"] = True
