"""The bounded wait of a lifecycle request: `Prefer: wait=N` (seconds) or `Prefer: respond-async` (RFC 7240); without it the operation's own bound.

When the work is done within it, the answer is the final one; else 202 with the sandbox in its transient state. The work goes on either way.
"""

from __future__ import annotations

import re

from starlette.requests import Request

from torpor.model.errors import InvalidInput

QUICK = 4.0
"""Create, resume and delete: within the 5 s that the dialect's SDK waits."""
LONG = 55.0
"""Pause and snapshot: within its 60 s."""
MOST = 600.0
_WAIT = re.compile(r"wait\s*=\s*\"?(\d{1,9})\"?\Z", re.IGNORECASE)


def bound(request: Request, default: float) -> float:
    """Seconds to wait. Raises InvalidInput for a `wait` that is no whole number; preferences of others are ignored, as the RFC says."""
    for header in request.headers.getlist("prefer"):
        for part in header.split(","):
            word = part.split(";")[0].strip()
            if word.lower() == "respond-async":
                return 0.0
            if word.lower().startswith("wait"):
                found = _WAIT.match(word)
                if found is None:
                    raise InvalidInput(f"Prefer: {word[:40]!r} is not wait=SECONDS.")
                return min(float(found[1]), MOST)
    return default
