"""Errors of operations, brought back from the event that tells of them: the caller who waits may be in another process than the one that failed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torpor.model import errors
from torpor.model.errors import DenyReason, TorporError

_PLAIN: dict[str, Callable[..., TorporError]] = {
    kind.code: kind
    for kind in (
        errors.InvalidInput,
        errors.NotFound,
        errors.Conflict,
        errors.NameTaken,
        errors.NameReserved,
        errors.TooLarge,
        errors.QuotaExceeded,
        errors.MissingTool,
        errors.NoPermission,
        errors.NoSpace,
        errors.HomeBusy,
        errors.TimedOut,
        errors.HostUnavailable,
        errors.Overloaded,
        errors.GuestLost,
        errors.GuestProtocolError,
        errors.Corrupt,
        errors.VmmError,
        errors.InternalError,
    )
}


def rebuilt(data: Mapping[str, str]) -> TorporError:
    """The error that `moves.described` put into an event. Fields that only its first place could know (an errno, differing fingerprints) are empty."""
    code, message, mend = data["error"], data.get("message", ""), data.get("mend", "")
    if code == errors.Denied.code:
        return errors.Denied(DenyReason(data["error_reason"]), message, mend=mend)
    if code == errors.Incompatible.code:
        return errors.Incompatible(message, {}, mend=mend)
    if code in _PLAIN:
        return _PLAIN[code](message, mend=mend) if mend else _PLAIN[code](message)
    return errors.VmmError(message, mend=mend) if code == "guest_error" else errors.InternalError(message, mend=mend)


def ours(error: Exception) -> TorporError:
    """Any error as one of the tree: what is not from it is a fault of our own code."""
    return error if isinstance(error, TorporError) else errors.InternalError(f"{type(error).__name__}: {error}")
