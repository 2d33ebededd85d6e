"""What people, teams and e-mail addresses may be called."""

from __future__ import annotations

import re
import secrets

from torpor.model.errors import InvalidInput

_TEAM = re.compile(r"[A-Za-z0-9 _\-@']{1,128}\Z")
_EMAIL = re.compile(r"[^@\s\"<>,;]{1,64}@[^@\s\"<>,;]{1,189}\Z")


def check_email(text: str) -> str:
    """As written, without what stands around it. Only its shape is looked at: no mail is sent. Raises InvalidInput."""
    email = text.strip()
    if not _EMAIL.match(email) or not email.isprintable():
        raise InvalidInput("This is no e-mail address.")
    return email


def check_person(text: str) -> str:
    """Raises InvalidInput."""
    name = text.strip()
    if not 1 <= len(name) <= 100 or not name.isprintable():
        raise InvalidInput("A name has 1 to 100 characters.")
    return name


def check_team(text: str) -> str:
    """Raises InvalidInput."""
    if not _TEAM.match(text) or not text.strip():
        raise InvalidInput("A team's name has 1 to 128 letters, digits, spaces or _ - @ '.")
    return text


def team_of(person: str) -> str:
    """What a user's first team is called."""
    named = f"{person}'s Team"
    return named if _TEAM.match(named) else "My Team"


def new_slug() -> str:
    return f"{secrets.token_hex(3)}-{secrets.token_hex(3)}"
