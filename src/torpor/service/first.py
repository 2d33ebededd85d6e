"""The first start of an installation: the platform's team, a team with a key, and an administrator. Key and password are shown once."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from torpor.model.errors import Conflict
from torpor.model.records import PLATFORM_TEAM, SYSTEM, ApiKey, AuditEntry, AuditStatus, Member, Role, Team, User, UserStatus
from torpor.ports.records import Records
from torpor.service.access import digest_of
from torpor.service.audit import of_platform
from torpor.service.context import Context
from torpor.service.names import new_slug
from torpor.service.passwords import Passwords

ADMIN_EMAIL = "admin@localhost"
_HOLD = "first start"


@dataclass(frozen=True, slots=True)
class FirstStart:
    """What was made: of an installation that had teams, but no users yet, the administrator only (`key` '' then). `e2b_key` opens the same as `key`. Keys and
    password are kept nowhere."""

    team_id: str
    key: str
    email: str = ""
    password: str = ""
    e2b_key: str = ""


NATIVE_PREFIX, E2B_PREFIX = "trp_", "e2b_"
"""What a key begins with; E2B's clients look for theirs. It opens the same."""


def new_key(shape: str = NATIVE_PREFIX) -> str:
    return shape + secrets.token_hex(20)


async def first_start(context: Context, passwords: Passwords | None = None) -> FirstStart | None:
    """Makes what is missing, in one transaction; None when there are teams and users already."""
    async with context.store.look() as records:
        if await records.teams.count() and await records.users.count():
            return None
    password = secrets.token_urlsafe(15)
    hashed = await (passwords or Passwords()).hash(password)
    async with context.store.write() as records:
        await records.hold(_HOLD)
        try:
            team_id, key, e2b_key = ("", "", "") if await records.teams.count() else await _teams(context, records)
            if await records.users.count():
                return FirstStart(team_id, key, e2b_key=e2b_key) if key else None
            await _admin(context, records, hashed, team_id)
        except Conflict:  # another process was first
            return None
    return FirstStart(team_id, key, ADMIN_EMAIL, password, e2b_key)


async def _teams(context: Context, records: Records) -> tuple[str, str, str]:
    now, team_id = context.now(), context.new_id()
    await records.teams.add(Team(PLATFORM_TEAM, "Platform", "platform", now))
    await records.teams.add(Team(team_id, "Default", new_slug(), now))
    keys = []
    for name, shape in (("first key", NATIVE_PREFIX), ("first key for E2B's clients", E2B_PREFIX)):
        secret = new_key(shape)
        key = ApiKey(context.new_id(), team_id, name, digest_of(secret), secret[:10], now)
        await records.keys.add(key)
        await records.audit.add(AuditEntry(team_id, now, SYSTEM, "api_key", key.id, "create", AuditStatus.SUCCESS, metadata={"name": key.name}))
        keys.append(secret)
    return team_id, keys[0], keys[1]


async def _admin(context: Context, records: Records, hashed: str, team_id: str) -> None:
    """The administrator, who owns the first team if that is new too."""
    now = context.now()
    admin = User(context.new_id(), ADMIN_EMAIL, "Administrator", hashed, UserStatus.ACTIVE, True, now)
    await records.users.add(admin)
    if team_id:
        await records.teams.add_member(Member(team_id, admin.id, Role.OWNER, now, is_default=True))
    await of_platform(records, SYSTEM, now, ("user", admin.id), "create", AuditStatus.SUCCESS, email=ADMIN_EMAIL, admin="yes")
