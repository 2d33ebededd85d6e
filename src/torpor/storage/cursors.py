"""Keyset cursors: the sort key of a page's last row, in text that is opaque to whoever carries it. Rows that come and go skip and repeat nothing."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence

from torpor.model.errors import InvalidInput

MAX_PAGE = 1000


def encode(of: str, key: Sequence[str | float]) -> str:
    """A cursor of the list called `of`."""
    return base64.urlsafe_b64encode(json.dumps([of, *key], separators=(",", ":")).encode()).decode().rstrip("=")


def decode(of: str, cursor: str, kinds: Sequence[type]) -> tuple[str | float, ...]:
    """The sort key in a cursor of that list, with values of these kinds. Raises InvalidInput for anything `encode` did not make for it."""
    try:
        found = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
    except (ValueError, binascii.Error, RecursionError):
        raise InvalidInput("The cursor is not one of ours.") from None
    if not isinstance(found, list) or [type(value) for value in found] != [str, *kinds] or found[0] != of or encode(of, found[1:]) != cursor:
        raise InvalidInput("The cursor is not one of this list.")
    if any(isinstance(value, int) and not 0 <= value < 2**63 for value in found[1:]):
        raise InvalidInput("The cursor is not one of this list.")
    return tuple(found[1:])


def check_limit(limit: int) -> int:
    """Returns a page's length. Raises InvalidInput unless 1 to MAX_PAGE."""
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidInput(f"A page of {limit} is out of range; allowed are 1 to {MAX_PAGE}.")
    return limit
