"""From the error tree to the native dialect's errors, through one table.

    {"error": {"code": "not_found", "reason": "guest_os_error", "message": "...", "request_id": "..."}}

`code` is the dialect's word, which its SDK sorts by; `reason` is torpor's own, finer one (model.errors; for a denial its DenyReason or AccountReason). What an
operator must mend, and what our own code broke, is logged in full and told in general words only: such messages name paths of the host.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse

from torpor.log import Log
from torpor.model import errors as e

log = Log()


@dataclass(frozen=True, slots=True)
class Row:
    """How one class of error looks: HTTP status, the dialect's code, whether its message may be shown, and seconds for Retry-After (0: none)."""

    status: int
    code: str
    shown: bool = True
    retry_after: int = 0


TABLE: Mapping[type[e.TorporError], Row] = {
    e.TorporError: Row(500, "internal_error", shown=False),
    e.CallerError: Row(400, "invalid_request"),
    e.InvalidInput: Row(400, "invalid_request"),
    e.NotFound: Row(404, "not_found"),
    e.Denied: Row(409, "invalid_state"),
    e.Conflict: Row(409, "conflict"),
    e.NameTaken: Row(409, "template_name_taken"),
    e.NameReserved: Row(409, "name_reserved"),
    e.Unauthorized: Row(401, "unauthorized"),
    e.Forbidden: Row(403, "forbidden"),
    e.AccountRefused: Row(403, "forbidden"),
    e.TooLarge: Row(413, "too_large"),
    e.RateLimited: Row(429, "rate_limited", retry_after=1),
    e.QuotaExceeded: Row(429, "quota_exceeded", retry_after=30),
    e.HostError: Row(502, "agent_error", shown=False),
    e.MissingTool: Row(503, "host_unavailable", shown=False, retry_after=60),
    e.NoPermission: Row(502, "agent_error", shown=False),
    e.NoSpace: Row(503, "no_space", retry_after=30),
    e.HomeBusy: Row(503, "host_unavailable", shown=False, retry_after=5),
    e.TimedOut: Row(502, "agent_error"),
    e.HostUnavailable: Row(503, "host_unavailable", retry_after=5),
    e.Overloaded: Row(503, "no_hosts_available", retry_after=5),
    e.GuestError: Row(502, "agent_error"),
    e.GuestOSError: Row(502, "agent_error"),
    e.GuestLost: Row(502, "agent_error"),
    e.GuestProtocolError: Row(502, "agent_error"),
    e.ArtefactError: Row(502, "agent_error"),
    e.Corrupt: Row(502, "agent_error", shown=False),
    e.Incompatible: Row(409, "conflict"),
    e.Undelivered: Row(502, "delivery_failed"),
    e.VmmError: Row(502, "agent_error", shown=False),
    e.InternalError: Row(500, "internal_error", shown=False),
}
"""Every class of the tree stands here by itself."""

_GUEST_OS: Mapping[int, Row] = {
    **dict.fromkeys((errno.ENOENT,), Row(404, "not_found")),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), Row(403, "forbidden")),
    **dict.fromkeys((errno.EEXIST, errno.ENOTEMPTY, errno.EBUSY, errno.ETXTBSY), Row(409, "conflict")),
    **dict.fromkeys((errno.EPIPE, errno.ECONNREFUSED), Row(409, "invalid_state")),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), Row(507, "no_space")),
    **dict.fromkeys(
        (errno.EISDIR, errno.ENOTDIR, errno.EINVAL, errno.ENAMETOOLONG, errno.ELOOP, errno.E2BIG, errno.ENOEXEC, errno.EXDEV, errno.EFBIG),
        Row(400, "invalid_request"),
    ),
}
_DENIED: Mapping[e.DenyReason, Row] = {e.DenyReason.IN_USE: Row(409, "conflict")}
_ACCOUNT: Mapping[e.AccountReason, int] = {
    e.AccountReason.EMAIL_TAKEN: 409,
    e.AccountReason.SIGNUP_COOLDOWN: 409,
    e.AccountReason.SIGNUP_CLOSED: 403,
    e.AccountReason.INVALID_TOKEN: 400,
    e.AccountReason.ALREADY_ACTIVATED: 400,
    e.AccountReason.NOT_ACTIVATED: 403,
    e.AccountReason.DISABLED: 403,
    e.AccountReason.DEACTIVATED: 403,
    e.AccountReason.WRONG_PASSWORD: 401,
    e.AccountReason.OWNS_TEAM: 409,
    e.AccountReason.LAST_OWNER: 403,
    e.AccountReason.LAST_ADMIN: 400,
}
"""The dialect's code is the reason's own name."""
_SURROGATES = re.compile("[\ud800-\udfff]")
_OURS = "Something failed on our side; the log has the details under this request id."


def row_of(error: e.TorporError) -> Row:
    """The row of this error: its class's, refined by errno or by the reason of a denial."""
    row = next(TABLE[kind] for kind in type(error).__mro__ if kind in TABLE)
    if isinstance(error, e.GuestOSError):
        row = _GUEST_OS.get(error.errno, row)
    if isinstance(error, e.Denied):
        row = _DENIED.get(error.reason, row)
    if isinstance(error, e.AccountRefused):
        row = Row(_ACCOUNT[error.reason], error.reason.value)
    return row


def reason_of(error: e.TorporError) -> str:
    return error.reason.value if isinstance(error, (e.Denied, e.AccountRefused)) else error.code


def body_of(error: e.TorporError, request_id: str) -> dict[str, Any]:
    """The JSON of an error, as in a response and in a WebSocket's error frame."""
    row = row_of(error)
    message = clean(str(error)) if row.shown else _OURS
    return {"error": {"code": row.code, "reason": reason_of(error), "message": message, "request_id": request_id}}


def respond(error: e.TorporError, request_id: str) -> JSONResponse:
    """The response to a request that failed with this error; logs what the caller is not shown."""
    row = row_of(error)
    if not row.shown:
        log.error("request_failed", error=str(error), kind=type(error).__name__, exc_info=error if row.status == 500 else None)
    headers = {}
    if row.retry_after:
        headers["Retry-After"] = str(max(1, getattr(error, "retry_after", row.retry_after)))
    if row.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body_of(error, request_id), row.status, headers)


def plain(status: int, code: str, message: str, request_id: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error that no exception of the tree stands for: what HTTP itself refuses."""
    return JSONResponse({"error": {"code": code, "reason": code, "message": clean(message), "request_id": request_id}}, status, headers)


def clean(text: str) -> str:
    """Text that every JSON reader takes: names from a guest may hold bytes that are no UTF-8 (lone surrogates in Python), which become U+FFFD."""
    return _SURROGATES.sub("\ufffd", text)
