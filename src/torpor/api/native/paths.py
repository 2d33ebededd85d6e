"""Paths as callers write them, and the guest's absolute ones."""

from __future__ import annotations

import posixpath

from torpor.model.errors import InvalidInput


def absolute(path: str, home: str) -> str:
    """`~` and what is relative begin at `home`. Nothing else is resolved: `..` and links are the guest's own. Raises InvalidInput for what no path can be."""
    if not path or "\0" in path or len(path.encode("utf-8", "surrogateescape")) > 4095:
        raise InvalidInput("A path has 1 to 4095 bytes, none of them NUL.")
    if path == "~" or path.startswith("~/"):
        path = home + path[1:]
    return path if path.startswith("/") else posixpath.join(home, path)
