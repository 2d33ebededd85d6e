"""How clients name templates: `[space/]name[:tag]`, an id, or a snapshot's id, which is one of these."""

from __future__ import annotations

import re

from torpor.model.errors import InvalidInput
from torpor.model.records import PLATFORM_TEAM, Team, Template
from torpor.service.tags import DEFAULT, Reference

_REFERENCE = re.compile(r"(?:(?P<space>[A-Za-z0-9_-]{1,128})/)?(?P<name>[A-Za-z0-9_][A-Za-z0-9._-]{0,63})(?::(?P<tag>[A-Za-z0-9._-]{1,64}))?\Z")
_NAME = re.compile(r"[a-z0-9_-]{1,64}\Z")
_TAG = re.compile(r"[a-z0-9._-]{1,64}\Z")
UNNAMED = re.compile(r"template-[0-9a-f]{8}\Z")
"""What torpor calls a snapshot that was given no name."""


def parse(text: str) -> Reference:
    """Raises InvalidInput."""
    found = _REFERENCE.match(text)
    if found is None:
        raise InvalidInput(f"{text[:80]!r} names no template: [space/]name[:tag].")
    return Reference(found["name"], found["space"] or "", found["tag"] or "")


def parse_new(text: str, team: Team) -> Reference:
    """The name of something to be made, in small letters. Raises InvalidInput."""
    wanted = parse(text.lower())
    if not _NAME.match(wanted.name) or (wanted.tag and not _TAG.match(wanted.tag)):
        raise InvalidInput(f"{text[:80]!r}: a name has letters, digits, '_' and '-', a tag '.' as well.")
    if wanted.space not in ("", team.slug):
        raise InvalidInput(f"The team's own names begin with {team.slug}/, or with nothing.")
    return wanted


def check_tag(text: str) -> str:
    """Raises InvalidInput."""
    tag = text.lower()
    if not _TAG.match(tag):
        raise InvalidInput(f"{text[:80]!r} is no tag: up to 64 letters, digits, '.', '_' and '-'.")
    return tag


def is_named(template: Template) -> bool:
    return not UNNAMED.match(template.name)


def full_name(template: Template, team: Team) -> str:
    """With what stands before it; of the platform's nothing does."""
    return template.name if template.team_id == PLATFORM_TEAM else f"{team.slug}/{template.name}"


def snapshot_id(template: Template, names: list[str]) -> str:
    return names[0] if names else f"{template.id}:{DEFAULT}"
