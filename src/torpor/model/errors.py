"""The error tree: one for all rooms, sorted by who is at fault. Every error has a stable `code`, says the cause, and, where somebody can mend it, how.

TorporError
  CallerError                     the request cannot be served as it was put
    InvalidInput                  a value is malformed or out of range
    NotFound                      no such sandbox, template, artefact, process or stream
    Denied                        the state forbids it; carries a DenyReason
    Conflict                      a name is taken, or something else depends on it
      NameTaken                   the team has a template of that name
      NameReserved                the platform has one: the name is not for teams
    Unauthorized                  no key or session, or one that is unknown, expired or revoked
    Forbidden                     a known caller who may not do this
    AccountRefused                a user's account does not allow it; carries an AccountReason
    TooLarge                      a body or answer beyond its limit
    RateLimited                   too many tries; carries seconds to wait
    QuotaExceeded                 the team's own limit is reached
  HostError                       this machine lacks something; an operator can mend it
    MissingTool                   a program or kernel feature is absent or too old
    NoPermission                  the operating system refused
    NoSpace                       a disk, budget or table is full
    HomeBusy                      another process owns $TORPOR_HOME
    TimedOut                      a bounded step did not end in time
    HostUnavailable               the host of this sandbox cannot be reached; carries seconds to wait
    Overloaded                    no host has room at present; carries seconds to wait
  GuestError                      what happened inside the microVM
    GuestOSError                  a system call in the guest failed; carries errno and path
    GuestLost                     the channel or the machine is gone
    GuestProtocolError            the guest sent what the protocol forbids
  ArtefactError                   a stored artefact cannot be used
    Corrupt                       damaged, truncated or foreign bytes
    Incompatible                  a sound artefact that does not fit this machine; carries the differing fields
  Undelivered                     somebody else's server did not take a message
  VmmError                        the virtual machine monitor refused or failed; carries its own words
  InternalError                   a broken promise of our own code
"""

from __future__ import annotations

import errno as errno_names
from enum import Enum


class TorporError(Exception):
    """Base of every error torpor raises on purpose. `code` is stable and lower_snake_case; `mend` is one sentence or ''."""

    code = "internal"

    def __init__(self, message: str, *, mend: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.mend = mend

    def __str__(self) -> str:
        return f"{self.message} {self.mend}".strip() if self.mend else self.message


class CallerError(TorporError):
    code = "invalid_request"


class InvalidInput(CallerError):
    code = "invalid_input"


class NotFound(CallerError):
    code = "not_found"


class DenyReason(Enum):
    """Why a request is refused in the state the machine is in. Values are stable names."""

    NOT_RUNNING = "not_running"
    BUSY = "busy"
    ENDED = "ended"
    ENDING = "ending"
    IN_USE = "in_use"
    ALREADY = "already"
    TOO_OLD = "too_old"


class Denied(CallerError):
    code = "denied"

    def __init__(self, reason: DenyReason, message: str, *, mend: str = "") -> None:
        super().__init__(message, mend=mend)
        self.reason = reason


class Conflict(CallerError):
    code = "conflict"


class NameTaken(Conflict):
    code = "name_taken"


class NameReserved(Conflict):
    code = "name_reserved"


class Unauthorized(CallerError):
    code = "unauthorized"


class Forbidden(CallerError):
    code = "forbidden"


class AccountReason(Enum):
    """Why something is refused because of the state of a user's account. Values are stable names."""

    EMAIL_TAKEN = "email_taken"
    SIGNUP_COOLDOWN = "signup_cooldown"
    SIGNUP_CLOSED = "signup_closed"
    INVALID_TOKEN = "invalid_token"  # noqa: S105 (a name, no token)
    ALREADY_ACTIVATED = "already_activated"
    NOT_ACTIVATED = "account_not_activated"
    DISABLED = "account_disabled"
    DEACTIVATED = "account_deactivated"
    WRONG_PASSWORD = "wrong_password"  # noqa: S105 (a name, no password)
    OWNS_TEAM = "owns_team_with_members"
    LAST_OWNER = "last_owner"
    LAST_ADMIN = "last_admin"


class AccountRefused(CallerError):
    code = "account_refused"

    def __init__(self, reason: AccountReason, message: str, *, mend: str = "") -> None:
        super().__init__(message, mend=mend)
        self.reason = reason


class TooLarge(CallerError):
    code = "too_large"


class RateLimited(CallerError):
    """`retry_after`: whole seconds after which a try has a chance."""

    code = "rate_limited"

    def __init__(self, message: str, retry_after: int, *, mend: str = "") -> None:
        super().__init__(message, mend=mend)
        self.retry_after = retry_after


class QuotaExceeded(CallerError):
    code = "quota_exceeded"


class HostError(TorporError):
    code = "host_error"


class MissingTool(HostError):
    code = "missing_tool"


class NoPermission(HostError):
    code = "no_permission"


class NoSpace(HostError):
    code = "no_space"


class HomeBusy(HostError):
    code = "home_busy"


class TimedOut(HostError):
    code = "timed_out"


class HostUnavailable(HostError):
    """`retry_after`: whole seconds after which a try has a chance."""

    code = "host_unavailable"

    def __init__(self, message: str, retry_after: int = 5, *, mend: str = "") -> None:
        super().__init__(message, mend=mend)
        self.retry_after = retry_after


class Overloaded(HostUnavailable):
    code = "overloaded"


class GuestError(TorporError):
    code = "guest_error"


class GuestOSError(GuestError):
    """A system call in the guest failed. `errno` is Linux's number in the guest, `path` the path concerned or ''."""

    code = "guest_os_error"

    def __init__(self, errno: int, message: str, path: str = "") -> None:
        super().__init__(message)
        self.errno = errno
        self.path = path

    @property
    def name(self) -> str:
        """The errno's symbol, such as ENOENT, or its number in digits where Linux has no symbol for it."""
        return errno_names.errorcode.get(self.errno, str(self.errno))


class GuestLost(GuestError):
    code = "guest_lost"


class GuestProtocolError(GuestError):
    code = "guest_protocol"


class ArtefactError(TorporError):
    code = "artefact_error"


class Corrupt(ArtefactError):
    code = "corrupt"


class Incompatible(ArtefactError):
    """`differences` maps a fingerprint field to (stored, here)."""

    code = "incompatible"

    def __init__(self, message: str, differences: dict[str, tuple[str, str]], *, mend: str = "") -> None:
        super().__init__(message, mend=mend)
        self.differences = differences


class Undelivered(TorporError):
    """`retry_after`: seconds that the other side asked for, 0 for none."""

    code = "undelivered"

    def __init__(self, message: str, retry_after: float = 0.0, *, mend: str = "") -> None:
        super().__init__(message, mend=mend)
        self.retry_after = retry_after


class VmmError(TorporError):
    code = "vmm_error"


class InternalError(TorporError):
    code = "internal"
