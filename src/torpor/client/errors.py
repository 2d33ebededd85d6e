"""What can go wrong between a program and a torpor server: one tree, sorted by who can mend it.

ClientError
  ConfigurationError              no key, or an address that is none
  Unreachable                     no connection: nothing was asked of the server
  ConnectionLost                  it broke in the middle; what was asked may have been done or not
    InputLost                     what a command was given to read was on its way, and some of it may not have arrived
  Expired                         the time-out of the caller's own ran out
  BadAnswer                       what answered does not speak this API, or broke its promises
  OutputLost                      bytes of a command's output came before this reader, who needs all of them
  UnsafeArchive                   a sandbox sent files that would not stay where they belong
  CommandFailed                   a command that was to succeed did not; carries its result
  ApiError                        the server refused; carries status, code, reason, request_id, retry_after
    InvalidRequest                400, 405: a value is malformed or out of range
    Unauthorized                  401: no key, or one that is unknown, expired or revoked
    Forbidden                     403: a known key that may not do this, or a file the user may not touch
    NotFound                      404: no such sandbox, snapshot, file or process, or another team's
    InvalidState                  409: the sandbox's present state forbids it
    Conflict                      409: a name is taken, or something else depends on it
    TooLarge                      413
    LimitReached                  429: a quota, or too many requests
    GuestFailed                   502: the host or the guest failed
    Unavailable                   503: no room, or a host cannot be reached, at present
    DiskFull                      507: the sandbox's own disk
    ServerFailed                  500 and whatever else

The statuses and codes are those of docs/api.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.client.answers import Result


class ClientError(Exception):
    """Base of every error of this package. `code` is stable and lower_snake_case; `mend` is one sentence or ''."""

    code = "client_error"

    def __init__(self, message: str, *, mend: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.mend = mend


class ConfigurationError(ClientError):
    code = "configuration"


class Unreachable(ClientError):
    code = "unreachable"


class ConnectionLost(ClientError):
    code = "connection_lost"


class InputLost(ConnectionLost):
    code = "input_lost"


class Expired(ClientError):
    code = "expired"


class BadAnswer(ClientError):
    code = "bad_answer"


class OutputLost(ClientError):
    code = "output_lost"


class UnsafeArchive(ClientError):
    code = "unsafe_archive"


class CommandFailed(ClientError):
    """`result`: what came of it."""

    code = "command_failed"

    def __init__(self, message: str, result: Result) -> None:
        super().__init__(message)
        self.result = result


class ApiError(ClientError):
    """`status`: HTTP's. `code` and `reason`: the server's words, for programs. `request_id` leads to the server's log. `retry_after`: seconds after which the
    server thinks a try has a chance, or None."""

    code = "api_error"

    def __init__(self, message: str, *, status: int, code: str = "", reason: str = "", request_id: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code or type(self).code
        self.reason = reason
        self.request_id = request_id
        self.retry_after = retry_after


class InvalidRequest(ApiError):
    code = "invalid_request"


class Unauthorized(ApiError):
    code = "unauthorized"


class Forbidden(ApiError):
    code = "forbidden"


class NotFound(ApiError):
    code = "not_found"


class InvalidState(ApiError):
    code = "invalid_state"


class Conflict(ApiError):
    code = "conflict"


class TooLarge(ApiError):
    code = "too_large"


class LimitReached(ApiError):
    code = "rate_limited"


class GuestFailed(ApiError):
    code = "agent_error"


class Unavailable(ApiError):
    code = "host_unavailable"


class DiskFull(ApiError):
    code = "no_space"


class ServerFailed(ApiError):
    code = "internal_error"


_BY_STATUS: dict[int, type[ApiError]] = {
    400: InvalidRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    405: InvalidRequest,
    409: Conflict,
    413: TooLarge,
    422: InvalidRequest,
    429: LimitReached,
    502: GuestFailed,
    503: Unavailable,
    507: DiskFull,
}


def refusal(status: int, code: str, message: str, reason: str = "", request_id: str = "", retry_after: float | None = None) -> ApiError:
    """The error for an answer with this status and code."""
    kind = InvalidState if code == "invalid_state" else _BY_STATUS.get(status, ServerFailed)
    return kind(
        message or f"The server answered with status {status}.", status=status, code=code, reason=reason, request_id=request_id, retry_after=retry_after
    )
