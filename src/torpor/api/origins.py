"""Pages of every origin may call the dialects whose callers show a key in a header; no page of elsewhere may read anything else.

What a browser adds to a request by itself must never count there: the requests lose their cookies here, before anybody looks at them, and an answer never
allows credentials, so that a browser hands none to a page that sent them all the same. A page can do what it has a key for, as a program can.

A preflight names the headers that a request will have without their values. One that will name a sandbox (api.reach) is answered here too: the request itself
finds its way to the sandbox, whose server says who may read what it answers.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

SECONDS = 7200
"""For how long a browser remembers a preflight's answer."""


class AnyOrigin:
    """`claims`: whether a request is one of those dialects'; by its path alone, for a page chooses the rest."""

    def __init__(self, app: ASGIApp, claims: Callable[[Scope], bool]) -> None:
        self._app = app
        self._claims = claims
        self._open = CORSMiddleware(app, allow_origins=("*",), allow_methods=("*",), allow_headers=("*",), expose_headers=("*",), max_age=SECONDS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (self._claims(scope) or _will_name_a_sandbox(scope)):
            cookieless = [pair for pair in scope["headers"] if pair[0] != b"cookie"]
            await self._open({**scope, "headers": cookieless}, receive, send)
            return
        await self._app(scope, receive, send)


def _will_name_a_sandbox(scope: Scope) -> bool:
    if scope["method"] != "OPTIONS":
        return False
    headers = Headers(scope=scope)
    asked = headers.get("access-control-request-headers", "").lower().split(",")
    return "access-control-request-method" in headers and "e2b-sandbox-id" in {name.strip() for name in asked}
