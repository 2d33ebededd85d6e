"""The `data` of a result that is a pandas DataFrame: {column: [values]}, as JSON can say it."""

from __future__ import annotations

import math
from typing import Any

MOST_CELLS = 200_000
"""A larger frame has no `data`: its text and its HTML show the ends of it, and the whole is better written to a file."""


def plain(value: Any) -> Any:
    """A value as JSON can hold it: what is not a number (or infinite) becomes null, times ISO 8601, the rest its text."""
    if value is None or isinstance(value, (bool, str, int)):
        return value
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (list, tuple, set)):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    text = value.isoformat() if hasattr(value, "isoformat") else str(value)
    return None if text in ("NaT", "<NA>") else text


def frame_data(frame: Any) -> dict[str, list[Any]] | None:
    """None for a frame that is too large."""
    if frame.size > MOST_CELLS:
        return None
    return {str(name): [plain(value) for value in frame.iloc[:, place].tolist()] for place, name in enumerate(frame.columns)}
