"""The audit log, events, channels and deliveries, in their tables.

Sequence numbers come from a row per team, which stays locked until the transaction ends: whoever reads up to a number has seen everything before it. A
number drawn from a database's own sequence would not do: its transaction may commit after a later one's.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import and_, bindparam, case, delete, exists, func, insert, literal_column, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from torpor.model.errors import Conflict, NotFound
from torpor.model.records import AuditEntry, Channel, Delivery, DeliveryState, Event
from torpor.model.sandbox import base36
from torpor.ports.records import Page
from torpor.storage import tables
from torpor.storage.connection import Connection
from torpor.storage.pages import newest_first
from torpor.storage.rows import AUDIT, CHANNEL, DELIVERY, EVENT

_N = tables.sequences.c
_A = tables.audit.c
_E = tables.events.c
_C = tables.channels.c
_D = tables.deliveries.c


def _draw(dialect: Any, column: str) -> Any:
    first = {"team_id": bindparam("team"), "audit": int(column == "audit"), "events": int(column == "events")}
    raised = {column: _N[column] + 1}
    return dialect.insert(tables.sequences).values(first).on_conflict_do_update(index_elements=["team_id"], set_=raised).returning(_N[column])


_DRAW = {(name, column): _draw(dialect, column) for name, dialect in (("sqlite", sqlite), ("postgresql", postgresql)) for column in ("audit", "events")}

_ADD_AUDIT = insert(tables.audit)
_ADD_EVENT = insert(tables.events)
_AFTER = select(*EVENT.columns).where(_E.team_id == bindparam("team"), _E.sequence > bindparam("after")).order_by(_E.sequence).limit(bindparam("most"))
_AFTER_OF = _AFTER.where(_E.resource_id == bindparam("resource"))
_NUMBERED = select(*EVENT.columns).where(_E.team_id == bindparam("team"), _E.sequence.in_(bindparam("sequences", expanding=True)))
_LAST = select(_N.events).where(_N.team_id == bindparam("team"))
_OF = select(*EVENT.columns).where(_E.resource_id == bindparam("resource")).order_by(_E.sequence.desc()).limit(bindparam("most"))
_FORGET_EVENTS = delete(tables.events).where(_E.at < bindparam("before"))

_LISTENING = select(_C.id, _C.events).where(_C.team_id == bindparam("team"))
_ADD_DELIVERY = insert(tables.deliveries)
_ADD_CHANNEL = insert(tables.channels)
_THE_CHANNEL = (_C.team_id == bindparam("team"), _C.id == bindparam("which"))
_CHANNEL = select(*CHANNEL.columns).where(*_THE_CHANNEL)
_CHANNELS = select(*CHANNEL.columns).where(_C.team_id == bindparam("team")).order_by(_C.created_at.desc(), _C.id.desc())
_UPDATE_CHANNEL = update(tables.channels).where(*_THE_CHANNEL)
_REMOVE_CHANNEL = delete(tables.channels).where(*_THE_CHANNEL)
_REMOVE_DELIVERIES = delete(tables.deliveries).where(_D.team_id == bindparam("team"), _D.channel_id == bindparam("which"))
_WAITS = _D.state == literal_column("'waiting'")  # in the statement itself: partial indexes serve nothing that a parameter says
_OLDER = tables.deliveries.alias("older").c
_OLDEST = select(func.min(_OLDER.event_sequence)).where(_OLDER.channel_id == _C.id, _OLDER.state == literal_column("'waiting'")).scalar_subquery()
_HEADS = (
    select(_D.id, _D.due_at, _D.claimed_until, _D.team_id)
    .join_from(tables.channels, tables.deliveries, _D.channel_id == _C.id)
    .where(_WAITS, _D.event_sequence == _OLDEST)
    .subquery("heads")
)
"""The oldest waiting delivery of each channel."""
_RANKED = select(
    _HEADS.c.id,
    _HEADS.c.due_at,
    _HEADS.c.claimed_until,
    func.row_number()
    .over(
        partition_by=_HEADS.c.team_id,
        order_by=(case((_HEADS.c.claimed_until > bindparam("now"), 0), else_=1), case((_HEADS.c.due_at <= bindparam("now"), 0), else_=1), _HEADS.c.due_at),
    )
    .label("turn"),
).subquery("ranked")
_IN_TURN = select(_RANKED.c.id).where(_RANKED.c.turn <= bindparam("of_team"))
_TAKEN = (
    select(_D.id)
    .where(_D.id.in_(_IN_TURN), _WAITS, _D.due_at <= bindparam("now"), _D.claimed_until <= bindparam("now"))
    .order_by(_D.due_at, _D.id)
    .limit(bindparam("most"))
    .with_for_update(skip_locked=True)
)
_CLAIM = update(tables.deliveries).where(_D.id.in_(_TAKEN)).values(claimed_until=bindparam("until")).returning(_D.id)
_CLAIMED = (
    select(*DELIVERY.columns, *CHANNEL.columns, *EVENT.columns)
    .join_from(tables.deliveries, tables.channels, _C.id == _D.channel_id)
    .join(tables.events, (_E.team_id == _D.team_id) & (_E.sequence == _D.event_sequence))
    .where(_D.id.in_(bindparam("ids", expanding=True)))
    .order_by(_D.due_at, _D.id)
)
_SETTLE = update(tables.deliveries).where(_D.id == bindparam("which"), _WAITS)
_GIVE_UP = (
    update(tables.deliveries)
    .where(_D.channel_id == bindparam("which"), _WAITS, _D.due_at < bindparam("before"))
    .values(state=DeliveryState.DEAD.value, due_at=bindparam("now"), error=bindparam("why"), claimed_until=0.0)
)
_HURRY = update(tables.deliveries).where(_D.channel_id == bindparam("which"), _WAITS, _D.due_at > bindparam("now")).values(due_at=bindparam("now"))
_THE_DELIVERY = (_D.team_id == bindparam("team"), _D.channel_id == bindparam("channel"), _D.id == bindparam("which"))
_DELIVERY = select(*DELIVERY.columns).where(*_THE_DELIVERY)
_REVIVE = (
    update(tables.deliveries)
    .where(*_THE_DELIVERY, _D.state == DeliveryState.DEAD.value)
    .values(state=DeliveryState.WAITING.value, attempts=0, due_at=bindparam("now"), error="", claimed_until=0.0)
)
_ANY_WAITING = select(_D.due_at).where(_WAITS).limit(1)
_NEXT_DUE = select(func.min(case((_HEADS.c.claimed_until > _HEADS.c.due_at, _HEADS.c.claimed_until), else_=_HEADS.c.due_at)))
_FORGET_DELIVERED = delete(tables.deliveries).where(
    or_(
        and_(_D.state != DeliveryState.WAITING.value, _D.due_at < bindparam("before")),
        ~exists().where(_C.id == _D.channel_id),
        ~exists().where(_E.team_id == _D.team_id, _E.sequence == _D.event_sequence),
    )
)


class AuditRows:
    """See ports.records.Audit."""

    def __init__(self, connection: Connection) -> None:
        self._db = connection

    async def add(self, entry: AuditEntry) -> int:
        (row,) = await self._db.fetch(_DRAW[self._db.dialect, "audit"], {"team": entry.team_id})
        await self._db.change(_ADD_AUDIT, AUDIT.row(replace(entry, sequence=row[0])))
        return int(row[0])

    async def list(
        self,
        team_id: str,
        *,
        scopes: Collection[str],
        resource_types: Collection[str] = (),
        actions: Collection[str] = (),
        before: float | None = None,
        cursor: str = "",
        limit: int = 50,
    ) -> Page[AuditEntry]:
        statement = select(*AUDIT.columns).where(_A.team_id == team_id, _A.scope.in_(sorted(scopes)))
        if resource_types:
            statement = statement.where(_A.resource_type.in_(sorted(resource_types)))
        if actions:
            statement = statement.where(_A.action.in_(sorted(actions)))
        if before is not None:
            statement = statement.where(_A.at < before)
        return await newest_first(self._db, "audit", statement, ((_A.sequence, int),), cursor, limit, AUDIT.record)


class EventRows:
    """See ports.records.Events."""

    def __init__(self, connection: Connection) -> None:
        self._db = connection

    async def add(self, event: Event) -> int:
        (row,) = await self._db.fetch(_DRAW[self._db.dialect, "events"], {"team": event.team_id})
        sequence = int(row[0])
        await self._db.change(_ADD_EVENT, EVENT.row(replace(event, sequence=sequence)))
        for channel_id, wanted in await self._db.fetch(_LISTENING, {"team": event.team_id}):
            if event.name in wanted:
                delivery = Delivery(base36(uuid.uuid4().int), channel_id, event.team_id, sequence, DeliveryState.WAITING, 0, event.at)
                await self._db.change(_ADD_DELIVERY, DELIVERY.row(delivery))
        return sequence

    async def after(self, team_id: str, sequence: int, *, resource_id: str = "", limit: int = 500) -> Sequence[Event]:
        values = {"team": team_id, "after": sequence, "most": limit}
        if resource_id:
            rows = await self._db.fetch(_AFTER_OF, {**values, "resource": resource_id}, heavy=True)
        else:
            rows = await self._db.fetch(_AFTER, values, heavy=True)
        return [EVENT.record(row) for row in rows]

    async def numbered(self, team_id: str, sequences: Collection[int]) -> Mapping[int, Event]:
        rows = await self._db.fetch(_NUMBERED, {"team": team_id, "sequences": sorted(sequences)}, heavy=True)
        return {event.sequence: event for event in map(EVENT.record, rows)}

    async def last(self, team_id: str) -> int:
        rows = await self._db.fetch(_LAST, {"team": team_id})
        return int(rows[0][0]) if rows else 0

    async def of(self, resource_id: str, limit: int = 50) -> Sequence[Event]:
        rows = await self._db.fetch(_OF, {"resource": resource_id, "most": limit})
        return [EVENT.record(row) for row in reversed(rows)]

    async def forget(self, before: float) -> int:
        return await self._db.change(_FORGET_EVENTS, {"before": before}, heavy=True)


class ChannelRows:
    """See ports.records.Channels."""

    def __init__(self, connection: Connection) -> None:
        self._db = connection

    async def add(self, channel: Channel) -> None:
        try:
            await self._db.change(_ADD_CHANNEL, CHANNEL.row(channel))
        except Conflict:
            raise Conflict(f"There is a channel called {channel.name!r} already.") from None

    async def get(self, team_id: str, channel_id: str) -> Channel | None:
        rows = await self._db.fetch(_CHANNEL, {"team": team_id, "which": channel_id})
        return CHANNEL.record(rows[0]) if rows else None

    async def update(self, channel: Channel) -> None:
        values = {"team": channel.team_id, "which": channel.id, **CHANNEL.row(channel)}
        try:
            changed = await self._db.change(_UPDATE_CHANNEL, values)
        except Conflict:
            raise Conflict(f"There is a channel called {channel.name!r} already.") from None
        if not changed:
            raise NotFound("No such channel.")

    async def list(self, team_id: str) -> Sequence[Channel]:
        return [CHANNEL.record(row) for row in await self._db.fetch(_CHANNELS, {"team": team_id}, heavy=True)]

    async def remove(self, team_id: str, channel_id: str) -> None:
        for statement in (_REMOVE_CHANNEL, _REMOVE_DELIVERIES):
            await self._db.change(statement, {"team": team_id, "which": channel_id}, heavy=True)

    async def claim(self, now: float, until: float, limit: int, *, of_team: int = 4) -> Sequence[tuple[Delivery, Channel, Event]]:
        taken = [row[0] for row in await self._db.fetch(_CLAIM, {"now": now, "until": until, "most": limit, "of_team": of_team}, heavy=True)]
        if not taken:
            return []
        rows = await self._db.fetch(_CLAIMED, {"ids": taken}, heavy=True)
        first, second = DELIVERY.width, DELIVERY.width + CHANNEL.width
        return [(DELIVERY.record(row), CHANNEL.record(row, first), EVENT.record(row, second)) for row in rows]

    async def settle(self, delivery_id: str, state: DeliveryState, *, attempts: int, due_at: float, error: str) -> None:
        cells = {"state": state.value, "attempts": attempts, "due_at": due_at, "error": error, "claimed_until": 0.0}
        await self._db.change(_SETTLE, {"which": delivery_id, **cells})

    async def give_up(self, channel_id: str, before: float, now: float, error: str) -> int:
        return await self._db.change(_GIVE_UP, {"which": channel_id, "before": before, "now": now, "why": error}, heavy=True)

    async def hurry(self, channel_id: str, now: float) -> None:
        await self._db.change(_HURRY, {"which": channel_id, "now": now}, heavy=True)

    async def revive(self, team_id: str, channel_id: str, delivery_id: str, now: float) -> bool:
        return bool(await self._db.change(_REVIVE, {"team": team_id, "channel": channel_id, "which": delivery_id, "now": now}))

    async def delivery(self, team_id: str, channel_id: str, delivery_id: str) -> Delivery | None:
        rows = await self._db.fetch(_DELIVERY, {"team": team_id, "channel": channel_id, "which": delivery_id})
        return DELIVERY.record(rows[0]) if rows else None

    async def deliveries(self, team_id: str, channel_id: str, *, state: DeliveryState | None = None, cursor: str = "", limit: int = 50) -> Page[Delivery]:
        statement = select(*DELIVERY.columns).where(_D.team_id == team_id, _D.channel_id == channel_id)
        if state is not None:
            statement = statement.where(_D.state == state.value)
        return await newest_first(self._db, "deliveries", statement, ((_D.event_sequence, int), (_D.id, str)), cursor, limit, DELIVERY.record)

    async def next_due(self) -> float | None:
        if not await self._db.fetch(_ANY_WAITING):  # asked after every event, and so nearly always
            return None
        (row,) = await self._db.fetch(_NEXT_DUE, heavy=True)
        return None if row[0] is None else float(row[0])

    async def forget_delivered(self, before: float) -> int:
        return await self._db.change(_FORGET_DELIVERED, {"before": before}, heavy=True)
