"""Errors of operations as they travel: an OSError keeps its errno and path, the rest of the kinds are ours. The host turns them into torpor.model.errors."""

from __future__ import annotations

import os
from typing import Any


class Refusal(Exception):
    """An operation that cannot be served as it was put. `kind`: invalid, not_found or denied; `reason` is a DenyReason's value for denied."""

    def __init__(self, kind: str, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.reason = reason


def fault(error: BaseException) -> dict[str, Any]:
    """The `error` object of a reply."""
    if isinstance(error, Refusal):
        return {"kind": error.kind, "message": str(error), "reason": error.reason}
    if isinstance(error, OSError) and error.errno:
        path = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else ""
        return {"kind": "os", "errno": error.errno, "message": os.strerror(error.errno), "path": path}
    return {"kind": "broken", "message": f"{type(error).__name__}: {error}"[:500]}
