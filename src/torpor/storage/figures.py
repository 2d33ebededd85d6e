"""Metric points, samples of teams, usage by day, idempotency keys and the installation's values, in their tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Table, bindparam, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite

from torpor.model.records import MetricPoint, Remembered, TeamSample, Tier, UsageDay
from torpor.storage import tables
from torpor.storage.connection import Connection
from torpor.storage.rows import POINT, REMEMBERED, SAMPLE, USAGE

_P = tables.metric_points.c
_S = tables.team_samples.c
_U = tables.usage_days.c
_R = tables.remembered.c
_V = tables.values.c

_DIALECTS: tuple[tuple[str, Any], ...] = (("sqlite", sqlite), ("postgresql", postgresql))


def _replacing(table: Table, *keys: str) -> dict[str, Any]:
    """Inserts that take the place of a row with the same key."""
    made = {}
    for name, dialect in _DIALECTS:
        statement = dialect.insert(table)
        others = {column.name: statement.excluded[column.name] for column in table.c if column.name not in keys}
        made[name] = statement.on_conflict_do_update(index_elements=keys, set_=others)
    return made


def _adding(table: Table, *keys: str) -> dict[str, Any]:
    """Inserts that add their amounts to a row with the same key."""
    made = {}
    for name, dialect in _DIALECTS:
        statement = dialect.insert(table)
        others = {column.name: column + statement.excluded[column.name] for column in table.c if column.name not in keys}
        made[name] = statement.on_conflict_do_update(index_elements=keys, set_=others)
    return made


def _unless_there(table: Table) -> dict[str, Any]:
    return {name: dialect.insert(table).on_conflict_do_nothing() for name, dialect in _DIALECTS}


_ADD_POINTS = _replacing(tables.metric_points, "sandbox_id", "tier", "at")
_POINTS = select(*POINT.columns).where(_P.sandbox_id == bindparam("sandbox"), _P.tier == bindparam("tier"), _P.at >= bindparam("since")).order_by(_P.at)
_ADD_SAMPLES = _replacing(tables.team_samples, "team_id", "at")
_SAMPLES = select(*SAMPLE.columns).where(_S.team_id == bindparam("team"), _S.at >= bindparam("since")).order_by(_S.at)
_ADD_USAGE = _adding(tables.usage_days, "team_id", "day")
_USAGE = select(*USAGE.columns).where(_U.team_id == bindparam("team"), _U.day >= bindparam("first"), _U.day <= bindparam("last")).order_by(_U.day)
_FORGET_POINTS = delete(tables.metric_points).where(_P.at < bindparam("before"))
_FORGET_SAMPLES = delete(tables.team_samples).where(_S.at < bindparam("before"))

_BEGIN = _unless_there(tables.remembered)
_ENTRY = (_R.team_id == bindparam("team"), _R.key == bindparam("which"))
_REMEMBERED = select(*REMEMBERED.columns).where(*_ENTRY)
_FINISH = update(tables.remembered).where(*_ENTRY)
_DROP = delete(tables.remembered).where(*_ENTRY)
_FORGET = delete(tables.remembered).where(_R.created_at < bindparam("before"))
_VALUE = select(_V.value).where(_V.name == bindparam("which"))
_SET_VALUE = _replacing(tables.values, "name")
_SET_NEW_VALUE = _unless_there(tables.values)


class FigureRows:
    """See ports.records.Figures."""

    def __init__(self, connection: Connection) -> None:
        self._db = connection

    async def add_points(self, sandbox_id: str, tier: Tier, points: Sequence[MetricPoint]) -> None:
        if points:
            rows = [{"sandbox_id": sandbox_id, "tier": tier.value, **POINT.row(point)} for point in points]
            await self._db.change(_ADD_POINTS[self._db.dialect], rows, heavy=True)

    async def points(self, sandbox_id: str, tier: Tier, since: float) -> Sequence[MetricPoint]:
        rows = await self._db.fetch(_POINTS, {"sandbox": sandbox_id, "tier": tier.value, "since": since}, heavy=True)
        return [POINT.record(row) for row in rows]

    async def add_samples(self, samples: Sequence[TeamSample]) -> None:
        if samples:
            await self._db.change(_ADD_SAMPLES[self._db.dialect], [SAMPLE.row(sample) for sample in samples], heavy=True)

    async def samples(self, team_id: str, since: float) -> Sequence[TeamSample]:
        return [SAMPLE.record(row) for row in await self._db.fetch(_SAMPLES, {"team": team_id, "since": since}, heavy=True)]

    async def add_usage(self, days: Sequence[UsageDay]) -> None:
        if days:
            rows = [USAGE.row(day) for day in sorted(days, key=lambda day: (day.team_id, day.day))]
            await self._db.change(_ADD_USAGE[self._db.dialect], rows, heavy=True)

    async def usage(self, team_id: str, first: str, last: str) -> Sequence[UsageDay]:
        return [USAGE.record(row) for row in await self._db.fetch(_USAGE, {"team": team_id, "first": first, "last": last}, heavy=True)]

    async def forget(self, points_before: float, samples_before: float) -> None:
        await self._db.change(_FORGET_POINTS, {"before": points_before}, heavy=True)
        await self._db.change(_FORGET_SAMPLES, {"before": samples_before}, heavy=True)


class MemoryRows:
    """See ports.records.Memory."""

    def __init__(self, connection: Connection) -> None:
        self._db = connection

    async def begin(self, entry: Remembered) -> Remembered | None:
        if await self._db.change(_BEGIN[self._db.dialect], REMEMBERED.row(entry)):
            return None
        (row,) = await self._db.fetch(_REMEMBERED, {"team": entry.team_id, "which": entry.key})
        return REMEMBERED.record(row)

    async def finish(self, team_id: str, key: str, result: str) -> None:
        await self._db.change(_FINISH, {"team": team_id, "which": key, "result": result})

    async def drop(self, team_id: str, key: str) -> None:
        await self._db.change(_DROP, {"team": team_id, "which": key})

    async def forget(self, before: float) -> int:
        return await self._db.change(_FORGET, {"before": before}, heavy=True)

    async def value(self, name: str) -> str | None:
        rows = await self._db.fetch(_VALUE, {"which": name})
        return str(rows[0][0]) if rows else None

    async def set_value(self, name: str, value: str, *, only_new: bool = False) -> str:
        statement = (_SET_NEW_VALUE if only_new else _SET_VALUE)[self._db.dialect]
        await self._db.change(statement, {"name": name, "value": value})
        (row,) = await self._db.fetch(_VALUE, {"which": name})
        return str(row[0])
