"""Templates in their table. Two partial unique indexes hold the names: one READY and one CREATING template of a name in a team."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import bindparam, delete, func, insert, select, update

from torpor.model.errors import NameTaken, NotFound
from torpor.model.records import PLATFORM_TEAM, Template, TemplateState, TemplateTag
from torpor.ports.records import Page, TemplateFilter
from torpor.storage import tables
from torpor.storage.connection import Connection
from torpor.storage.pages import newest_first
from torpor.storage.rows import TAG, TEMPLATE

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

_TAGS = tables.template_tags
_OF_NAME = (_TAGS.c.team_id == bindparam("team"), _TAGS.c.name == bindparam("called"))
_RETAG = delete(_TAGS).where(*_OF_NAME, _TAGS.c.tag == bindparam("labelled"))
_TAG = insert(_TAGS)
_TAGGED = select(*TAG.columns).where(*_OF_NAME).order_by(_TAGS.c.assigned_at.desc(), _TAGS.c.id)
_TAGS_OF = select(*TAG.columns).where(_TAGS.c.template_id == bindparam("which")).order_by(_TAGS.c.assigned_at.desc(), _TAGS.c.id)
_UNTAG = delete(_TAGS).where(_TAGS.c.id == bindparam("which"))
_UNTAG_ALL = delete(_TAGS).where(_TAGS.c.template_id == bindparam("which"))


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
        await self._db.change(_UNTAG_ALL, {"which": template_id})
        await self._db.change(_REMOVE, {"which": template_id})

    async def list(self, team_id: str, *, platform: bool = True, only: TemplateFilter | None = None, cursor: str = "", limit: int = 100) -> Page[Template]:
        statement = _OURS.where(_READY)
        if only is not None:
            wanted = {_C.kind: only.kind.value if only.kind else "", _C.name: only.name, _C.sandbox_id: only.sandbox_id}
            statement = statement.where(*(column == value for column, value in wanted.items() if value))
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

    async def tag(self, tag: TemplateTag) -> None:
        await self._db.change(_RETAG, {"team": tag.team_id, "called": tag.name, "labelled": tag.tag})
        await self._db.change(_TAG, TAG.row(tag))

    async def tagged(self, team_id: str, name: str) -> Sequence[TemplateTag]:
        return [TAG.record(row) for row in await self._db.fetch(_TAGGED, {"team": team_id, "called": name})]

    async def tags_of(self, template_id: str) -> Sequence[TemplateTag]:
        return [TAG.record(row) for row in await self._db.fetch(_TAGS_OF, {"which": template_id})]

    async def untag(self, tag_id: str) -> None:
        await self._db.change(_UNTAG, {"which": tag_id})
