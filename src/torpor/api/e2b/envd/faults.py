"""What went wrong, in the protocol's words: a code and a message.

    unary    HTTP status by the code, {"code": "not_found", "message": "..."}
    streams  HTTP 200, and an end-of-stream frame {"error": {...}}
    HTTP     {"code": 404, "message": "..."}

A sandbox that is not there is neither: it is answered as the proxy does, and once an answer has begun its connection is broken.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping

from torpor.api.errors import clean, row_of
from torpor.log import Log
from torpor.model import errors as e

log = Log()

STATUS: Mapping[str, int] = {
    "canceled": 499,
    "unknown": 500,
    "invalid_argument": 400,
    "deadline_exceeded": 504,
    "not_found": 404,
    "already_exists": 409,
    "permission_denied": 403,
    "resource_exhausted": 429,
    "failed_precondition": 400,
    "aborted": 409,
    "out_of_range": 400,
    "unimplemented": 501,
    "internal": 500,
    "unavailable": 503,
    "data_loss": 500,
    "unauthenticated": 401,
}
"""connectrpc.com/docs/protocol, "Error codes"."""

_OS: Mapping[int, str] = {
    errno.ENOENT: "not_found",
    errno.EEXIST: "already_exists",
    errno.ELOOP: "failed_precondition",
    errno.ENOTEMPTY: "failed_precondition",
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "permission_denied"),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EAGAIN, errno.ENOMEM), "resource_exhausted"),
    **dict.fromkeys((errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ENAMETOOLONG, errno.E2BIG, errno.ENOEXEC), "invalid_argument"),
}
_CODES: Mapping[type[e.TorporError], str] = {
    e.InvalidInput: "invalid_argument",
    e.NotFound: "not_found",
    e.Denied: "failed_precondition",
    e.Conflict: "aborted",
    e.Unauthorized: "unauthenticated",
    e.Forbidden: "permission_denied",
    e.TooLarge: "resource_exhausted",
    e.RateLimited: "resource_exhausted",
    e.QuotaExceeded: "resource_exhausted",
    e.Overloaded: "unavailable",
    e.HostUnavailable: "unavailable",
    e.NoSpace: "resource_exhausted",
    e.TimedOut: "deadline_exceeded",
    e.TorporError: "internal",
}


class Fault(Exception):
    """An answer that is an error. `code` is one of STATUS."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = clean(message)


class Gone(Exception):
    """The sandbox is not there, or ceased to be while it was used."""

    def __init__(self, sandbox_id: str) -> None:
        super().__init__("The sandbox was not found")
        self.sandbox_id = sandbox_id


def fault_of(error: e.TorporError) -> Fault:
    """In the protocol's words. What an operator must mend is logged, and told in general words only."""
    code = next(_CODES[kind] for kind in type(error).__mro__ if kind in _CODES)
    if isinstance(error, e.GuestOSError):
        code = _OS.get(error.errno, "internal")
    if not row_of(error).shown:
        log.error("envd_request_failed", error=str(error), kind=type(error).__name__)
        return Fault(code, "Something failed on our side; the log has the details.")
    return Fault(code, str(error))
