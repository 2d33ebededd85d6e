"""What the guest says of failures, as errors of ours. Its texts are bounded and never trusted to be more than texts."""

from __future__ import annotations

import errno
from typing import Any

from torpor.model.errors import Denied, DenyReason, GuestLost, GuestOSError, GuestProtocolError, InvalidInput, NotFound, TorporError
from torpor.wire.guest import ProtocolError, from_json

Json = dict[str, Any]
_REASONS = {reason.value: reason for reason in DenyReason}


def reply_error(fields: Json) -> TorporError | None:
    """The error of a reply, or None."""
    error = fields.get("error")
    if error is None:
        return None
    if not isinstance(error, dict):
        raise ProtocolError("an error that is none")
    kind, message = error.get("kind"), str(error.get("message", ""))[:1000]
    if kind == "os" and isinstance(error.get("errno"), int):
        path = str(error.get("path", ""))[:8192]
        return GuestOSError(error["errno"], f"{message}: {path}" if path else message, path)
    if kind == "invalid":
        return InvalidInput(message)
    if kind == "not_found":
        return NotFound(message)
    if kind == "denied":
        return Denied(_REASONS.get(str(error.get("reason")), DenyReason.BUSY), message)
    return GuestProtocolError(f"The guest agent failed: {message or kind}.")


def end_error(payload: bytes) -> TorporError | None:
    """Why a stream ended, from its END's payload; None for a plain end."""
    return reply_error(from_json(payload)) if payload else None


def broken_pipe() -> GuestOSError:
    return GuestOSError(errno.EPIPE, "Nobody reads this any more.")


def lost(fields: Json) -> TorporError | None:
    """The reason in a listener's last call, after which no event comes."""
    reason = fields.get("lost")
    return reason if isinstance(reason, TorporError) else None


__all__ = ["GuestLost", "broken_pipe", "end_error", "lost", "reply_error"]
