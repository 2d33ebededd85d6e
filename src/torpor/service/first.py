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
    """What was made: of an installation that had teams, but no users yet, the administrator only (`key` '' then). Key and password are kept nowhere."""

    team_id: str
    key: str
    email: str = ""
    password: str = ""


def new_key() -> str:
    return "trp_" + secrets.token_hex(20)


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
            team_id, key = ("", "") if await records.teams.count() else await _teams(context, records)
            if await records.users.count():
                return FirstStart(team_id, key) if key else None
            await _admin(context, records, hashed, team_id)
        except Conflict:  # another process was first
            return None
    return FirstStart(team_id, key, ADMIN_EMAIL, password)


async def _teams(context: Context, records: Records) -> tuple[str, str]:
    now, team_id, key = context.now(), context.new_id(), new_key()
    await records.teams.add(Team(PLATFORM_TEAM, "Platform", "platform", now))
    await records.teams.add(Team(team_id, "Default", new_slug(), now))
    first = ApiKey(context.new_id(), team_id, "first key", digest_of(key), key[:10], now)
    await records.keys.add(first)
    await records.audit.add(AuditEntry(team_id, now, SYSTEM, "api_key", first.id, "create", AuditStatus.SUCCESS, metadata={"name": first.name}))
    return team_id, key


async def _admin(context: Context, records: Records, hashed: str, team_id: str) -> None:
    """The administrator, who owns the first team if that is new too."""
    now = context.now()
    admin = User(context.new_id(), ADMIN_EMAIL, "Administrator", hashed, UserStatus.ACTIVE, True, now)
    await records.users.add(admin)
    if team_id:
        await records.teams.add_member(Member(team_id, admin.id, Role.OWNER, now, is_default=True))
    await of_platform(records, SYSTEM, now, ("user", admin.id), "create", AuditStatus.SUCCESS, email=ADMIN_EMAIL, admin="yes")
