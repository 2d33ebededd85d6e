"""Ids and names as the native dialect writes them: a prefix and the 25 digits of inside."""

from __future__ import annotations

import re
import time
from enum import Enum

from torpor.model.errors import InvalidInput
from torpor.model.sandbox import check_id


class Prefix(Enum):
    """What stands before an id of this kind. `cl-` is from the dialect's other word for a sandbox, capsule."""

    SANDBOX = "cl-"
    TEAM = "team-"
    USER = "usr-"
    KEY = "key-"
    CHANNEL = "ch-"
    AUDIT = "log-"
    DELIVERY = "dlv-"
    TEMPLATE = "tpl-"
    OPERATION = "op-"
    SESSION = "ses-"


_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}\Z")
NAME_PATTERN = r"^[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}$"


def show(prefix: Prefix, inner: str) -> str:
    return prefix.value + inner if inner else ""


def inner(prefix: Prefix, text: str) -> str:
    """The id inside; the digits alone are taken too. Raises InvalidInput for another form."""
    digits = text.removeprefix(prefix.value)
    try:
        return check_id(digits)
    except InvalidInput:
        raise InvalidInput(f"{text[:40]!r} is not an id: {prefix.value} and 25 digits or lower-case letters.") from None


def check_name(text: str) -> str:
    """The name of a template, snapshot or channel. Raises InvalidInput."""
    if not _NAME.match(text):
        raise InvalidInput(f"{text[:80]!r} is not a name: a letter or digit, then up to 63 letters, digits, '.', '_' or '-'.")
    return text


def stamp(at: float) -> str:
    """RFC 3339 in UTC, whole seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
