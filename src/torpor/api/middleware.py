"""What lies around every request, as plain ASGI, outermost first:

Context     request id, access log, counters, security headers
Faults      what nobody expected becomes a 500 with its request id
Paths       other spellings of a path become the one that is routed
Bounds      bodies end where they must
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog
from prometheus_client import Counter, Gauge, Histogram
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from torpor.api.dialect import dialect_of
from torpor.log import Log
from torpor.model.errors import InternalError, TooLarge, TorporError

log = Log()

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
_SECURITY_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_STRICT_CONTENT = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
_NO_STORE = (b"cache-control", b"no-store")


def request_id_of(scope: Scope) -> str:
    return str(scope.get("state", {}).get("request_id", ""))


class Meters:
    """What /metrics shows: HTTP's own counters, and how many sandboxes are in each state, asked for when somebody looks."""

    def __init__(self, registry: Any) -> None:
        self.requests = Counter("torpor_http_requests_total", "Requests answered.", ["method", "route", "status"], registry=registry)
        self.seconds = Histogram("torpor_http_request_seconds", "Time until a request was answered in full.", ["route"], registry=registry)
        self.sandboxes = Gauge("torpor_sandboxes", "Sandboxes by state.", ["state"], registry=registry)
        self.open = Gauge("torpor_http_requests_open", "Requests and WebSockets under way.", registry=registry)


class Context:
    """A request's id (the caller's X-Request-Id if it is a sane one), one line in the log when it is over, and headers that keep browsers careful. Neither
    query strings nor headers are logged: they may carry secrets."""

    def __init__(self, app: ASGIApp, meters: Meters) -> None:
        self._app = app
        self._meters = meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"").decode("latin-1")
        request_id = given if _REQUEST_ID.match(given) else secrets.token_hex(13)
        scope.setdefault("state", {})["request_id"] = request_id
        structlog.contextvars.bind_contextvars(request_id=request_id)
        begin, seen = time.perf_counter(), _Seen(scope, request_id, send)
        self._meters.open.inc()
        try:
            await self._app(scope, receive, seen)
        finally:
            self._meters.open.dec()
            self._note(scope, seen, time.perf_counter() - begin)
            structlog.contextvars.unbind_contextvars("request_id")

    def _note(self, scope: Scope, seen: _Seen, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "")
        method = scope.get("method", "WEBSOCKET")
        self._meters.requests.labels(method if route else "other", route, str(seen.status)).inc()
        if scope["type"] == "http":
            self._meters.seconds.labels(route).observe(seconds)
        caller = scope["state"].get("caller")
        log.info(
            "request",
            request_id=seen.request_id,
            method=method,
            path=scope["path"][:300],
            status=seen.status,
            milliseconds=round(seconds * 1e3, 1),
            bytes=seen.bytes,
            client=(scope.get("client") or ("",))[0],
            team=getattr(caller, "team_id", ""),
        )


class _Seen:
    """Looks at what is sent: status, bytes; adds our headers."""

    def __init__(self, scope: Scope, request_id: str, send: Send) -> None:
        self._send = send
        self._page = scope["path"].startswith("/docs")
        self.request_id = request_id
        self.status = 499
        self.bytes = 0

    async def __call__(self, message: Message) -> None:
        kind = message["type"]
        if kind in ("http.response.start", "websocket.http.response.start"):
            self.status = message["status"]
            present = {name.lower() for name, _ in message.get("headers", [])}
            ours = (*_SECURITY_HEADERS, _NO_STORE) if self._page else (*_SECURITY_HEADERS, _STRICT_CONTENT, _NO_STORE)
            extra = [(b"x-request-id", self.request_id.encode()), *(pair for pair in ours if pair[0] not in present)]
            message = {**message, "headers": [*message.get("headers", []), *extra]}
        elif kind == "http.response.body":
            self.bytes += len(message.get("body", b""))
        elif kind == "websocket.accept":
            self.status = 101
            message = {**message, "headers": [*message.get("headers", []), (b"x-request-id", self.request_id.encode())]}
        await self._send(message)


class Faults:
    """The last resort: an error that no handler took becomes a typed 500, or, once the response has begun, a broken connection, so that nobody takes half an
    answer for a whole one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except (ClientDisconnect, WebSocketDisconnect):
            log.debug("client_left")
        except TorporError as error:
            if begun or scope["type"] != "http":
                log.warning("response_broken_off", error=str(error), kind=type(error).__name__)
                raise BrokenOff from error
            await dialect_of(scope).respond(error, request_id_of(scope))(scope, receive, send)
        except Exception as error:
            log.error("request_crashed", exc_info=error)
            if begun or scope["type"] != "http":
                raise BrokenOff from error
            await dialect_of(scope).respond(InternalError(repr(error)), request_id_of(scope))(scope, receive, send)


class BrokenOff(Exception):
    """Tells the server to close a connection whose response cannot be completed. What went wrong was logged."""


Rewrite = tuple[re.Pattern[str], str]

ALIASES: Sequence[Rewrite] = (
    (re.compile(r"/api(?=/(v1|health|openapi\.(?:json|yaml)|docs)(/|\Z))"), ""),
    (re.compile(r"/v1/(admin/)?sandboxes(?=/|\Z)"), r"/v1/\1capsules"),
)
"""`/api/v1/...` is `/v1/...`; a sandbox is also called a capsule."""


class Paths:
    """Other spellings of a path: the routes know one each."""

    def __init__(self, app: ASGIApp, aliases: Sequence[Rewrite] = ALIASES) -> None:
        self._app = app
        self._aliases = aliases

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            path = before = scope["path"]
            for pattern, replacement in self._aliases:
                if pattern.match(path):
                    path = pattern.sub(replacement, path, count=1)
            if path != before:
                scope = {**scope, "path": path, "raw_path": path.encode()}
        await self._app(scope, receive, send)


DRAINED = 16 << 20
"""Bytes of a body that is too large that are taken in, and dropped, before it is refused."""
DRAIN_SECONDS = 5.0


class Bounds:
    """Bodies end at `limit` bytes, or where `exceptions` (the ends of paths, the longest first) say; None is no bound. Raises TooLarge into whoever reads."""

    def __init__(self, app: ASGIApp, limit: int, exceptions: Mapping[str, int | None]) -> None:
        self._app = app
        self._limit = limit
        self._exceptions = exceptions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = self._of(scope["path"]) if scope["type"] == "http" else None
        if limit is None:
            await self._app(scope, receive, send)
            return
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
        if declared.isdigit() and int(declared) > limit:
            if int(declared) <= limit + DRAINED:
                await _drained(receive, DRAINED)
            said = f"The body may have {limit} bytes at most."
            response = dialect_of(scope).plain(413, "too_large", said, request_id_of(scope), {"Connection": "close"})
            await response(scope, receive, send)
            return
        await self._app(scope, _bounded(receive, limit), send)

    def _of(self, path: str) -> int | None:
        return next((limit for end, limit in self._exceptions.items() if path.endswith(end)), self._limit)


async def _drained(receive: Receive, most: int) -> None:
    """Takes the rest of a body and drops it, up to so many bytes, for DRAIN_SECONDS at most. A client that still sends when the connection is closed never
    sees why."""
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            while most > 0:
                message = await receive()
                most -= len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body"):
                    return
    except TimeoutError:
        return


def _bounded(receive: Receive, limit: int) -> Callable[[], Any]:
    taken = 0

    async def bounded() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > limit:
            if message.get("more_body"):
                await _drained(receive, DRAINED)
            raise TooLarge(f"The body may have {limit} bytes at most.")
        return message

    return bounded
