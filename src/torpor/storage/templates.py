"""Templates in their table. Two partial unique indexes hold the names: one READY and one CREATING template of a name in a team."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import bindparam, delete, func, insert, select, update

from torpor.model.errors import NameTaken, NotFound
from torpor.model.records import PLATFORM_TEAM, Template, TemplateState
from torpor.ports.records import Page
from torpor.storage import tables
from torpor.storage.connection import Connection
from torpor.storage.pages import newest_first
from torpor.storage.rows import TEMPLATE

_T = tables.templates
_C = _T.c
_OURS = select(*TEMPLATE.columns)
_READY = _C.state == TemplateState.READY.value

_ADD = insert(_T)
_GET = _OURS.where(_C.id == bindparam("id"))
_NAMED = select(_C.id).where(_C.team_id == bindparam("team"), _C.name == bindparam("called"), _C.state.in_(["ready", "creating"]))
_FIND = (
    _OURS.where(_READY, _C.name == bindparam("called"), _C.team_id.in_([bindparam("team"), PLATFORM_TEAM]))
    .order_by((_C.team_id == PLATFORM_TEAM).asc())
    .limit(1)
)
_UPDATE = update(_T).where(_C.id == bindparam("which"))
_REMOVE = delete(_T).where(_C.id == bindparam("which"))
_UNSETTLED = _OURS.where(_C.state.in_(["creating", "deleting"])).order_by(_C.created_at, _C.id)
_STORED = select(func.coalesce(func.sum(_C.size_bytes), 0)).where(_C.team_id == bindparam("team"))


class TemplateRows:
    """See ports.records.Templates."""

    def __init__(self, connection: Connection) -> None:
        self._db = connection

    async def add(self, template: Template) -> None:
        if template.state is not TemplateState.DELETING:
            taken = await self._db.fetch(_NAMED, {"team": template.team_id, "called": template.name})
            may_share = template.replaces if template.state is TemplateState.CREATING else ""
            if any(row[0] != may_share for row in taken):
                raise NameTaken(f"There is a template called {template.name!r} already.")
        await self._db.change(_ADD, TEMPLATE.row(template))

    async def get(self, template_id: str) -> Template | None:
        rows = await self._db.fetch(_GET, {"id": template_id})
        return TEMPLATE.record(rows[0]) if rows else None

    async def find(self, team_id: str, name: str) -> Template | None:
        rows = await self._db.fetch(_FIND, {"team": team_id, "called": name})
        return TEMPLATE.record(rows[0]) if rows else None

    async def update(self, template: Template) -> None:
        if not await self._db.change(_UPDATE, {"which": template.id, **TEMPLATE.row(template)}):
            raise NotFound("No such template.")

    async def remove(self, template_id: str) -> None:
        await self._db.change(_REMOVE, {"which": template_id})

    async def list(self, team_id: str, *, platform: bool = True, cursor: str = "", limit: int = 100) -> Page[Template]:
        statement = _OURS.where(_READY)
        if team_id:
            statement = statement.where(_C.team_id.in_([team_id, PLATFORM_TEAM] if platform else [team_id]))
        elif not platform:
            statement = statement.where(_C.team_id != PLATFORM_TEAM)
        return await newest_first(self._db, "templates", statement, ((_C.created_at, float), (_C.id, str)), cursor, limit, TEMPLATE.record)

    async def unsettled(self) -> Sequence[Template]:
        return [TEMPLATE.record(row) for row in await self._db.fetch(_UNSETTLED, heavy=True)]

    async def stored_bytes(self, team_id: str) -> int:
        (row,) = await self._db.fetch(_STORED, {"team": team_id})
        return int(row[0])
