"""Moments as callers of every dialect write them."""

from __future__ import annotations

from datetime import datetime

from torpor.model.errors import InvalidInput


def moment(name: str, text: str) -> float:
    """Seconds since the epoch, of a time with its zone (RFC 3339). Raises InvalidInput, which names the field."""
    try:
        found = datetime.fromisoformat(text)
        if found.tzinfo is not None:
            return found.timestamp()
    except (ValueError, OverflowError):
        pass
    raise InvalidInput(f"{name}: {text[:40]!r} is not a time such as 2030-01-31T12:00:00Z.")
