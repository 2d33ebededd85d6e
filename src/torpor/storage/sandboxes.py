"""Sandboxes in their table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, and_, bindparam, case, delete, func, insert, literal_column, or_, select, type_coerce, update
from sqlalchemy.dialects.postgresql import JSONB

from torpor.lifecycle.sandbox import FINAL, RESERVING
from torpor.model.errors import InternalError
from torpor.model.records import Reserved, Sandbox, SandboxState
from torpor.ports.records import Page, SandboxFilter
from torpor.storage import tables
from torpor.storage.connection import Connection, Dialect
from torpor.storage.pages import newest_first
from torpor.storage.ready import ready
from torpor.storage.rows import SANDBOX

_T = tables.sandboxes
_C = _T.c
_LIVE = _C.live == 1
_OURS = select(*SANDBOX.columns)
_DUE = and_(_C.due_at.is_not(None), _C.due_at <= bindparam("now"))

_ADD = insert(_T)
_GET = ready(_OURS.where(_C.id == bindparam("id")))
_LATER = case((_C.last_active_at > bindparam("after_last_active_at"), _C.last_active_at), else_=bindparam("after_last_active_at"))
_SWAP = (
    update(_T)
    .where(_C.id == bindparam("before_id"), _C.state == bindparam("before_state"), _C.generation == bindparam("before_generation"))
    .values({column.name: _LATER if column is _C.last_active_at else bindparam(f"after_{column.name}", type_=column.type) for column in SANDBOX.columns})
)
_TOUCH = update(_T).where(_C.id == bindparam("touched"), _C.last_active_at < bindparam("at")).values(last_active_at=bindparam("at"))
_ON_HOST = _OURS.where(_LIVE, _C.host_id == bindparam("host_id")).order_by(_C.id)
_OVERDUE = _OURS.where(_DUE, _C.operation_id.is_not(None)).order_by(_C.due_at)
_EXPIRING = _OURS.where(_DUE, _C.operation_id.is_(None)).order_by(_C.due_at)
_NEXT = select(func.min(_C.due_at)).where(_C.due_at.is_not(None))
_USING = select(func.count()).select_from(_T).where(_LIVE, _C.template_id == bindparam("template_id"))
_COUNTS = select(_C.state, func.count()).group_by(_C.state)
_RESERVES = _C.state.in_(sorted(state.value for state in RESERVING))
_ONE: ColumnElement[int] = literal_column("1")
_AMOUNTS: tuple[ColumnElement[int], ...] = (_ONE, _C.shape_vcpus, _C.shape_memory_mib)
_RESERVED = select(*(func.coalesce(func.sum(case((_RESERVES, amount), else_=0)), 0) for amount in _AMOUNTS), func.coalesce(func.sum(_C.stored_bytes), 0)).where(
    _LIVE
)
_ENDED = select(_C.id).where(_C.ended_at.is_not(None), _C.ended_at < bindparam("before"), _C.state.in_(sorted(state.value for state in FINAL)))
_FORGET_POINTS = delete(tables.metric_points).where(tables.metric_points.c.sandbox_id.in_(_ENDED))
_FORGET = delete(_T).where(_C.id.in_(_ENDED))


class SandboxRows:
    """See ports.records.Sandboxes."""

    def __init__(self, connection: Connection) -> None:
        self._db = connection

    async def add(self, sandbox: Sandbox) -> None:
        await self._db.change(_ADD, SANDBOX.row(sandbox))

    async def get(self, sandbox_id: str) -> Sandbox | None:
        rows = await self._db.fetch(_GET, {"id": sandbox_id})
        return SANDBOX.record(rows[0]) if rows else None

    async def swap(self, before: Sandbox, after: Sandbox) -> bool:
        if after.id != before.id or after.generation != before.generation + 1:
            raise InternalError("A sandbox's record was to be replaced by one that is not its next.")
        values = {f"after_{name}": value for name, value in SANDBOX.row(after).items()}
        values |= {"before_id": before.id, "before_state": before.state.value, "before_generation": before.generation}
        return await self._db.change(_SWAP, values) == 1

    async def touch(self, sandbox_id: str, at: float) -> None:
        await self._db.change(_TOUCH, {"touched": sandbox_id, "at": at})

    async def list(self, wanted: SandboxFilter, *, cursor: str = "", limit: int = 100) -> Page[Sandbox]:
        statement = _OURS.where(*_conditions(wanted, self._db.dialect))
        of = "sandboxes, oldest first" if wanted.oldest_first else "sandboxes"
        key = ((_C.created_at, float), (_C.id, str))
        return await newest_first(self._db, of, statement, key, cursor, limit, SANDBOX.record, oldest_first=wanted.oldest_first)

    async def on_host(self, host_id: str) -> Sequence[Sandbox]:
        return [SANDBOX.record(row) for row in await self._db.fetch(_ON_HOST, {"host_id": host_id}, heavy=True)]

    async def overdue(self, now: float) -> Sequence[Sandbox]:
        return [SANDBOX.record(row) for row in await self._db.fetch(_OVERDUE, {"now": now})]

    async def expiring(self, now: float) -> Sequence[Sandbox]:
        return [SANDBOX.record(row) for row in await self._db.fetch(_EXPIRING, {"now": now})]

    async def next_expiry(self) -> float | None:
        (row,) = await self._db.fetch(_NEXT)
        return None if row[0] is None else float(row[0])

    async def reserved(self, *, host_id: str = "", team_id: str = "") -> Reserved:
        statement = _RESERVED
        if host_id:
            statement = statement.where(_C.host_id == host_id)
        if team_id:
            statement = statement.where(_C.team_id == team_id)
        (row,) = await self._db.fetch(statement, heavy=True)
        return Reserved(*(int(cell) for cell in row))

    async def counts(self) -> Mapping[SandboxState, int]:
        return {SandboxState(state): count for state, count in await self._db.fetch(_COUNTS, heavy=True)}

    async def using_template(self, template_id: str) -> int:
        (row,) = await self._db.fetch(_USING, {"template_id": template_id})
        return int(row[0])

    async def forget_ended(self, before: float) -> int:
        await self._db.change(_FORGET_POINTS, {"before": before}, heavy=True)
        return await self._db.change(_FORGET, {"before": before}, heavy=True)


def _conditions(wanted: SandboxFilter, dialect: Dialect) -> list[ColumnElement[bool]]:
    found: list[Any] = []
    if wanted.team_id:
        found.append(_C.team_id == wanted.team_id)
    if wanted.states:
        found.append(_C.state.in_(sorted(state.value for state in wanted.states)))
        if not FINAL & set(wanted.states):
            found.append(_LIVE)  # says it again in the words of the indexes
    if wanted.template:
        found.append(or_(_C.template == wanted.template, _C.template_id == wanted.template))
    if wanted.dialect:
        found.append(_C.dialect == wanted.dialect)
    if wanted.since is not None:
        found.append(_C.created_at >= wanted.since)
    if wanted.labels:
        found += _labelled(wanted.labels, dialect)
    return found


def _labelled(labels: Mapping[str, str], dialect: Dialect) -> list[ColumnElement[bool]]:
    if dialect == "postgresql":
        return [type_coerce(_C.labels, JSONB).contains(dict(labels))]
    found: list[ColumnElement[bool]] = []
    for number, (key, value) in enumerate(sorted(labels.items())):
        each = func.json_each(_C.labels).table_valued("key", "value", name=f"label_{number}")
        found.append(select(literal_column("1")).select_from(each).where(each.c.key == key, each.c.value == value).exists())
    return found
