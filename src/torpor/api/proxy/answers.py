"""What the proxy answers itself. Whom it answers shows from the id in the request:

E2B's SDK     {"sandboxId", "message", "code"[, "port"]} with words that it looks for: "was not found", "port is not open"
native        {"error": {"code", "reason", "message", "request_id"}}, through the dialect's one table
a browser     a page, with the same status
"""

from __future__ import annotations

import errno
import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import HTMLResponse, JSONResponse, Response

from torpor.api.errors import respond, row_of
from torpor.model.errors import Denied, DenyReason, Forbidden, GuestError, GuestOSError, HostUnavailable, NotFound, QuotaExceeded, TorporError, Unauthorized

NOT_FOUND = "The sandbox was not found"
CLOSED = "The sandbox is running but port is not open"
BETWEEN = "The sandbox is still changing its state"
BROKEN = "The server in the sandbox broke off or did not speak HTTP"
CROWDED = "Too many connections to the sandbox are open"
_PRIVATE = "There is no such sandbox, or its ports are private: send its team's key, a traffic token or a signed address."
SOON = {"Retry-After": "1"}
_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{status} {message}</title><meta name="viewport" content="width=device-width">
<style>body{{font:16px/1.5 system-ui,sans-serif;margin:15vh auto;max-width:34rem;padding:0 1rem;color:#222;background:#fff}}code{{color:#666}}
@media(prefers-color-scheme:dark){{body{{color:#ddd;background:#161616}}}}</style></head>
<body><h1>{message}</h1><p>{more}</p><p><code>{status} {shown}</code></p></body></html>"""
_OWN_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}


class Refused(Exception):
    """The proxy's answer instead of the sandbox's, in E2B's words; `error` is the native dialect's."""

    def __init__(self, status: int, message: str, error: TorporError, headers: Mapping[str, str] | None = None, *, port: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.error = error
        self.headers = dict(headers or {})
        self.port = port


def not_found() -> Refused:
    """Unknown, another team's, or long ended; and, natively, private to who shows nothing."""
    return Refused(502, NOT_FOUND, NotFound(_PRIVATE))


def denied(message: str) -> Refused:
    """The traffic token is missing or wrong. Natively that a private sandbox exists is not told."""
    return Refused(403, message, NotFound(_PRIVATE))


def refusal(error: TorporError) -> Refused:
    """What waking or reaching a sandbox failed with."""
    row = row_of(error)
    retry = {"Retry-After": str(max(1, getattr(error, "retry_after", row.retry_after)))} if row.retry_after else {}
    match error:
        case NotFound():
            return Refused(502, NOT_FOUND, error)
        case Denied() if error.reason is DenyReason.BUSY:
            return Refused(409, BETWEEN, error, SOON)
        case Denied():
            return Refused(502, NOT_FOUND, error)
        case GuestOSError():
            refused = error.errno == errno.ECONNREFUSED
            words = "Nothing listens at this port of the sandbox." if refused else f"The sandbox's port cannot be reached: {error.message}."
            return Refused(502, CLOSED, GuestError(words), port=True)  # a gateway's error, whatever the guest's kernel said
        case Forbidden() | Unauthorized():
            return Refused(row.status, error.message, error)
        case QuotaExceeded() | HostUnavailable():
            return Refused(row.status, error.message, error, retry)
        case _:
            return Refused(row.status, error.message if row.shown else "The sandbox cannot be reached", error, retry)


@dataclass(frozen=True, slots=True)
class Asker:
    """What an answer depends on beside the error."""

    shown: str
    port: int
    native: bool
    browser: bool
    request_id: str


def is_browser(headers: Mapping[str, str]) -> bool:
    """Whether a person looks at the answer: a browser that navigates, and does not say that it wants data."""
    accept = headers.get("accept", "")
    if headers.get("sec-fetch-dest", "document") not in ("document", "iframe", "frame"):
        return False
    return "mozilla/" in headers.get("user-agent", "").lower() and ("text/html" in accept or (not accept and "sec-fetch-dest" in headers))


def response(refused: Refused, asker: Asker) -> Response:
    headers = refused.headers | _OWN_HEADERS
    if asker.browser:
        more = str(refused.error) if asker.native else ""
        page = _PAGE.format(status=refused.status, message=html.escape(refused.message), more=html.escape(more), shown=html.escape(asker.shown))
        return HTMLResponse(page, row_of(refused.error).status if asker.native else refused.status, headers)
    if asker.native:
        answer = respond(refused.error, asker.request_id)
        answer.headers.update({**headers, "X-Request-Id": asker.request_id})
        return answer
    body: dict[str, Any] = {"sandboxId": asker.shown, "message": refused.message}
    if refused.port:
        body["port"] = asker.port
    return JSONResponse(body | {"code": refused.status}, refused.status, headers)
