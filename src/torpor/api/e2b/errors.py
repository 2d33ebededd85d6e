"""From the error tree to E2B's errors, through one table, and which requests are in this dialect.

    {"code": 404, "message": "...", "error_code": "..."}        `code` repeats the status; `error_code` where E2B's clients know one

Its SDK puts a POST again on 429, 502, 503 and 504 unless `Should-Retry` says no, so those stand only where nothing was done, and say when to come again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from starlette.responses import JSONResponse
from starlette.types import Scope

from torpor.api.dialect import Dialect
from torpor.api.errors import clean
from torpor.log import Log
from torpor.model import errors as e

log = Log()


class NotBuilt(e.InvalidInput):
    """Something of E2B's that torpor has not."""

    code = "unsupported_feature"

    def __init__(self, feature: str) -> None:
        super().__init__(f"torpor does not offer {feature}.")


@dataclass(frozen=True, slots=True)
class Row:
    """`retry_after`: seconds for Retry-After, 0: none. `retry` False: the SDK is told not to try again, None: nothing is said."""

    status: int
    error_code: str = ""
    shown: bool = True
    retry_after: int = 0
    retry: bool | None = None


_CAPACITY = "sandbox_capacity_unavailable"
_UNRESPONSIVE = "sandbox_snapshot_guest_agent_unresponsive"
_OURS = Row(500, shown=False, retry=False)
TABLE: Mapping[type[e.TorporError], Row] = {
    e.TorporError: _OURS,
    e.CallerError: Row(400),
    e.InvalidInput: Row(400),
    NotBuilt: Row(400, "unsupported_feature"),
    e.NotFound: Row(404),
    e.Denied: Row(409),
    e.Conflict: Row(409),
    e.NameTaken: Row(409),
    e.NameReserved: Row(409),
    e.Unauthorized: Row(401),
    e.Forbidden: Row(403),
    e.AccountRefused: Row(403),
    e.TooLarge: Row(413),
    e.RateLimited: Row(429, retry_after=1),
    e.QuotaExceeded: Row(429, retry=False),
    e.HostError: _OURS,
    e.MissingTool: _OURS,
    e.NoPermission: _OURS,
    e.NoSpace: Row(503, _CAPACITY, retry_after=30),
    e.HomeBusy: Row(503, shown=False, retry_after=5),
    e.TimedOut: Row(500, retry=False),
    e.HostUnavailable: Row(503, retry_after=5),
    e.Overloaded: Row(503, _CAPACITY, retry_after=5),
    e.GuestError: Row(500, retry=False),
    e.GuestOSError: Row(500, retry=False),
    e.GuestLost: Row(500, _UNRESPONSIVE, retry=False),
    e.GuestProtocolError: Row(500, _UNRESPONSIVE, retry=False),
    e.ArtefactError: Row(500, retry=False),
    e.Corrupt: _OURS,
    e.Incompatible: Row(409, "sandbox_no_compatible_node"),
    e.Undelivered: Row(500, retry=False),
    e.VmmError: _OURS,
    e.InternalError: _OURS,
}
"""Every class of the tree stands here by itself."""
_UNSAID = "Something failed on our side; the log has the details under this request id:"


def row_of(error: e.TorporError) -> Row:
    if isinstance(error, e.Denied) and error.reason is e.DenyReason.IN_USE:
        return Row(400)
    return next(TABLE[kind] for kind in type(error).__mro__ if kind in TABLE)


def body_of(error: e.TorporError, request_id: str) -> dict[str, object]:
    row = row_of(error)
    body: dict[str, object] = {"code": row.status, "message": clean(str(error)) if row.shown else f"{_UNSAID} {request_id}"}
    return body | {"error_code": row.error_code} if row.error_code else body


def respond(error: e.TorporError, request_id: str) -> JSONResponse:
    """The response to a request that failed with this error; logs what the caller is not shown."""
    row = row_of(error)
    if not row.shown:
        log.error("request_failed", error=str(error), kind=type(error).__name__, exc_info=error if isinstance(error, e.InternalError) else None)
    headers = {}
    if row.retry_after:
        headers["Retry-After"] = str(max(1, getattr(error, "retry_after", row.retry_after)))
    if row.retry is not None:
        headers["Should-Retry"] = "true" if row.retry else "false"
    return JSONResponse(body_of(error, request_id), row.status, headers)


def plain(status: int, code: str, message: str, request_id: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error that no exception of the tree stands for: what HTTP itself refuses."""
    return JSONResponse({"code": status, "message": clean(message)}, status, headers)


_SANDBOXES = ("sandboxes", "snapshots", "templates", "default-templates", "v2", "v3")
_ACCOUNT = ("api-keys", "teams", "access-tokens", "volumes", "volumecontent", "secrets", "nodes", "events")
_FIRST = frozenset(_SANDBOXES + _ACCOUNT)
_OTHERS = frozenset(("v1", "api", "docs", "openapi.json", "openapi.yaml", "metrics", "health"))


def has_path(scope: Scope) -> bool:
    """Whether the path is one that this dialect has, and no other."""
    return _first(scope) in _FIRST


def _first(scope: Scope) -> str:
    return str(scope["path"].split("/", 2)[1]) if scope["path"].startswith("/") else ""


def claims(scope: Scope) -> bool:
    """By the path; what neither dialect has, by its key or the name that E2B's clients give the API."""
    if has_path(scope):
        return True
    if _first(scope) in _OTHERS:
        return False
    return any((name == b"host" and value.startswith(b"api.")) or (name == b"x-api-key" and value.startswith(b"e2b_")) for name, value in scope["headers"])


E2B = Dialect(claims, respond, plain, encoded_path=True)
