"""Range headers: which part of a file is asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass

_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})\Z")


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes `first` to before `end` of a file of `size`; `whole` when no Range asked for less."""

    first: int
    end: int
    size: int
    whole: bool


class Unsatisfiable(Exception):
    """A Range that lies outside the file."""


def part_of(header: str | None, size: int) -> Part:
    """What a Range header asks for (RFC 9110, 14.2): one range of bytes; anything else is ignored. Raises Unsatisfiable."""
    found = _RANGE.match(header.replace(" ", "")) if header else None
    if found is None or found.groups() == ("", ""):
        return Part(0, size, size, True)
    first, last = found[1], found[2]
    if not first:
        begin, end = max(0, size - int(last)), size
    else:
        begin, end = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < begin:
            return Part(0, size, size, True)
    if begin >= size or begin >= end:
        raise Unsatisfiable
    return Part(begin, end, size, False)
