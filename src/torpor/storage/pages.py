"""Pages of a list, by keyset: the rows after the cursor's, in the order of a unique key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy import Column, Select, tuple_

from torpor.ports.records import Page
from torpor.storage import cursors
from torpor.storage.connection import Cells, Connection

T = TypeVar("T")


async def newest_first(
    connection: Connection,
    of: str,
    statement: Select[Any],
    key: Sequence[tuple[Column[Any], type]],
    cursor: str,
    limit: int,
    make: Callable[[Cells], T],
    *,
    oldest_first: bool = False,
) -> Page[T]:
    """One page of `statement`, descending by `key` (columns with the kinds of their values, the last one unique), or ascending: `of` is to differ then.
    Raises InvalidInput."""
    cursors.check_limit(limit)
    columns = [column for column, _ in key]
    if cursor:
        after = cursors.decode(of, cursor, [kind for _, kind in key])
        if oldest_first:
            statement = statement.where(columns[0] > after[0] if len(columns) == 1 else tuple_(*columns) > tuple_(*after))
        else:
            statement = statement.where(columns[0] < after[0] if len(columns) == 1 else tuple_(*columns) < tuple_(*after))
    statement = statement.add_columns(*(column.label(f"page_{column.name}") for column in columns))
    rows = await connection.fetch(statement.order_by(*(column.asc() if oldest_first else column.desc() for column in columns)).limit(limit + 1), heavy=True)
    more = len(rows) > limit
    kept = rows[:limit]
    return Page([make(row) for row in kept], cursors.encode(of, tuple(kept[-1])[-len(columns) :]) if more else "")
