"""Teams, their members, and users, in their tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Table, and_, bindparam, delete, exists, func, insert, or_, select, update

from torpor.model.errors import Conflict, NotFound
from torpor.model.records import Limits, Member, Role, Team, TeamSummary, User, UserStatus, UserSummary
from torpor.ports.records import Page
from torpor.storage import tables
from torpor.storage.connection import Cells, Connection
from torpor.storage.pages import newest_first
from torpor.storage.rows import MEMBER, TEAM, USER

_T = tables.teams.c
_U = tables.users.c
_M = tables.members.c

_ADD_TEAM = insert(tables.teams)
_TEAM = select(*TEAM.columns).where(_T.id == bindparam("id"))
_UPDATE_TEAM = update(tables.teams).where(_T.id == bindparam("which"))
_COUNT_TEAMS = select(func.count()).select_from(tables.teams)

_ADD_MEMBER = insert(tables.members)
_PLACE = (_M.team_id == bindparam("team"), _M.user_id == bindparam("who"))
_MEMBER = select(*MEMBER.columns).where(*_PLACE)
_MEMBERS = (
    select(*MEMBER.columns, *USER.columns)
    .join_from(tables.members, tables.users, _U.id == _M.user_id)
    .where(_M.team_id == bindparam("team"))
    .order_by(_M.joined_at, _M.user_id)
)
_SET_ROLE = update(tables.members).where(*_PLACE)
_REMOVE_MEMBER = delete(tables.members).where(*_PLACE)
_OF_USER = (
    select(*TEAM.columns, *MEMBER.columns)
    .join_from(tables.members, tables.teams, _T.id == _M.team_id)
    .where(_M.user_id == bindparam("who"), _T.deleted_at.is_(None))
    .order_by(_M.is_default.desc(), _M.joined_at, _M.team_id)
)
_THINGS: tuple[Table, ...] = (tables.api_keys, tables.sessions, tables.deliveries, tables.channels, tables.team_samples, tables.members)
_REMOVE_THINGS = [delete(table).where(table.c.team_id == bindparam("team")) for table in _THINGS]
_OWNERS = tables.members.alias("owners")
_FIRST_OWNER = (
    select(_OWNERS.c.user_id)
    .where(_OWNERS.c.team_id == _T.id, _OWNERS.c.role == Role.OWNER.value)
    .order_by(_OWNERS.c.joined_at, _OWNERS.c.user_id)
    .limit(1)
    .scalar_subquery()
)
_SUMMARIES = select(
    *TEAM.columns,
    *USER.columns,
    select(func.count()).where(_M.team_id == _T.id).scalar_subquery().label("of_members"),
    select(func.count()).where(tables.sandboxes.c.team_id == _T.id, tables.sandboxes.c.live == 1).scalar_subquery().label("of_sandboxes"),
    select(func.count()).where(tables.channels.c.team_id == _T.id).scalar_subquery().label("of_channels"),
).join_from(tables.teams, tables.users, _U.id == _FIRST_OWNER, isouter=True)
_OTHERS = tables.members.alias("others")

_ADD_USER = insert(tables.users)
_USER = select(*USER.columns).where(_U.id == bindparam("id"))
_BY_EMAIL = select(*USER.columns).where(_U.email_key == bindparam("email"))
_UPDATE_USER = update(tables.users).where(_U.id == bindparam("which"))
_OF_THEIRS = and_(_M.user_id == _U.id, _M.team_id == _T.id, _T.deleted_at.is_(None))
_USER_SUMMARIES = select(
    *USER.columns,
    select(func.count()).select_from(tables.members, tables.teams).where(_OF_THEIRS).scalar_subquery().label("joined"),
    select(func.count()).select_from(tables.members, tables.teams).where(_OF_THEIRS, _M.role == Role.OWNER.value).scalar_subquery().label("owned"),
)
_COUNT_USERS = select(func.count()).select_from(tables.users)
_COUNT_ADMINS = select(func.count()).select_from(tables.users).where(_U.is_admin.is_(True), _U.status == UserStatus.ACTIVE.value)


class TeamRows:
    """See ports.records.Teams."""

    def __init__(self, connection: Connection) -> None:
        self._db = connection

    async def add(self, team: Team) -> None:
        await self._db.change(_ADD_TEAM, TEAM.row(team))

    async def get(self, team_id: str) -> Team | None:
        rows = await self._db.fetch(_TEAM, {"id": team_id})
        return TEAM.record(rows[0]) if rows else None

    async def update(self, team: Team) -> None:
        await self._demand(await self._db.change(_UPDATE_TEAM, {"which": team.id, **TEAM.row(team)}), "team")

    async def list(self, *, cursor: str = "", limit: int = 100) -> Page[Team]:
        return await newest_first(self._db, "teams", select(*TEAM.columns), ((_T.created_at, float), (_T.id, str)), cursor, limit, TEAM.record)

    async def count(self) -> int:
        (row,) = await self._db.fetch(_COUNT_TEAMS)
        return int(row[0])

    async def set_limits(self, team_id: str, limits: Limits) -> None:
        cells: dict[str, Any] = {f"limits_{name}": getattr(limits, name) for name in Limits.__dataclass_fields__}
        await self._demand(await self._db.change(_UPDATE_TEAM, {"which": team_id, **cells}), "team")

    async def add_member(self, member: Member) -> None:
        try:
            await self._db.change(_ADD_MEMBER, MEMBER.row(member))
        except Conflict:
            raise Conflict("The user is a member of the team already.") from None

    async def member(self, team_id: str, user_id: str) -> Member | None:
        rows = await self._db.fetch(_MEMBER, {"team": team_id, "who": user_id})
        return MEMBER.record(rows[0]) if rows else None

    async def members(self, team_id: str) -> Sequence[tuple[Member, User]]:
        rows = await self._db.fetch(_MEMBERS, {"team": team_id}, heavy=True)
        return [(MEMBER.record(row), USER.record(row, MEMBER.width)) for row in rows]

    async def set_role(self, team_id: str, user_id: str, role: Role) -> None:
        await self._demand(await self._db.change(_SET_ROLE, {"team": team_id, "who": user_id, "role": role.value}), "member")

    async def remove_member(self, team_id: str, user_id: str) -> None:
        await self._demand(await self._db.change(_REMOVE_MEMBER, {"team": team_id, "who": user_id}), "member")

    async def of_user(self, user_id: str) -> Sequence[tuple[Team, Member]]:
        rows = await self._db.fetch(_OF_USER, {"who": user_id})
        return [(TEAM.record(row), MEMBER.record(row, TEAM.width)) for row in rows]

    async def remove_things(self, team_id: str) -> None:
        for statement in _REMOVE_THINGS:
            await self._db.change(statement, {"team": team_id}, heavy=True)

    async def summaries(self, *, cursor: str = "", offset: int = 0, limit: int = 100) -> Page[TeamSummary]:
        first = TEAM.width + USER.width

        def summary(row: Cells) -> TeamSummary:
            owner = USER.record(row, TEAM.width) if row[TEAM.width] is not None else None
            return TeamSummary(TEAM.record(row), int(row[first]), owner, int(row[first + 1]), int(row[first + 2]))

        return await newest_first(self._db, "teams", _SUMMARIES.offset(offset), ((_T.created_at, float), (_T.id, str)), cursor, limit, summary)

    async def _demand(self, changed: int, what: str) -> None:
        if not changed:
            raise NotFound(f"No such {what}.")


class UserRows:
    """See ports.records.Users."""

    def __init__(self, connection: Connection) -> None:
        self._db = connection

    async def add(self, user: User) -> None:
        try:
            await self._db.change(_ADD_USER, _user_row(user))
        except Conflict:
            raise Conflict("The e-mail address is taken.") from None

    async def get(self, user_id: str) -> User | None:
        rows = await self._db.fetch(_USER, {"id": user_id})
        return USER.record(rows[0]) if rows else None

    async def by_email(self, email: str) -> User | None:
        rows = await self._db.fetch(_BY_EMAIL, {"email": email.casefold()})
        return USER.record(rows[0]) if rows else None

    async def update(self, user: User) -> None:
        if not await self._db.change(_UPDATE_USER, {"which": user.id, **_user_row(user)}):
            raise NotFound("No such user.")

    async def remove(self, user_id: str) -> None:
        await self._db.change(delete(tables.users).where(_U.id == user_id))

    async def search(self, prefix: str, *, seen_by: str, cursor: str = "", limit: int = 10) -> Page[User]:
        first = prefix.casefold()
        of_a_team = exists().where(_M.user_id == seen_by, _OTHERS.c.user_id == _U.id, _OTHERS.c.team_id == _M.team_id)
        statement = select(*USER.columns).where(
            _U.email_key >= first, _U.email_key < first + "\U0010ffff", _U.status == UserStatus.ACTIVE.value, or_(_U.email_key == first, of_a_team)
        )
        return await newest_first(self._db, "found-users", statement, ((_U.email_key, str),), cursor, limit, USER.record, oldest_first=True)

    async def list(self, *, cursor: str = "", limit: int = 100) -> Page[User]:
        return await newest_first(self._db, "users", select(*USER.columns), ((_U.created_at, float), (_U.id, str)), cursor, limit, USER.record)

    async def count(self) -> int:
        (row,) = await self._db.fetch(_COUNT_USERS)
        return int(row[0])

    async def summaries(self, *, cursor: str = "", offset: int = 0, limit: int = 100) -> Page[UserSummary]:
        def summary(row: Cells) -> UserSummary:
            return UserSummary(USER.record(row), int(row[USER.width]), int(row[USER.width + 1]))

        return await newest_first(self._db, "users", _USER_SUMMARIES.offset(offset), ((_U.created_at, float), (_U.id, str)), cursor, limit, summary)

    async def count_admins(self) -> int:
        (row,) = await self._db.fetch(_COUNT_ADMINS)
        return int(row[0])


def _user_row(user: User) -> dict[str, Any]:
    return {**USER.row(user), "email_key": user.email.casefold()}
