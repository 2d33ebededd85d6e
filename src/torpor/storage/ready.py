"""Selects that are made ready once: their text, the order of their parameters, and how each cell is read. For the few that every request needs: SQLAlchemy's
own way to run a statement costs more than such a read, twice as much as both on PostgreSQL (docs/decisions/0077-the-hottest-read-made-ready.md).

    _GET = ready(select(...))        marks it; a connection that knows how runs it so, every other as any statement
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sqlalchemy import Dialect, Executable, Float, Select

from torpor.storage.connection import Cells

_MARK = "torpor_ready"


def ready(statement: Select[Any]) -> Select[Any]:
    """For a statement that is never built anew, with parameters of text and numbers."""
    return statement.execution_options(**{_MARK: True})


def is_ready(statement: Executable) -> bool:
    return _MARK in statement.get_execution_options()


class Ready:
    """One of them for one database's driver."""

    def __init__(self, statement: Select[Any], dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        self.text = str(compiled)
        self._names: list[str] = list(getattr(compiled, "positiontup", None) or ())
        kinds = [column.type for column in statement.selected_columns]
        found = [None if isinstance(kind, Float) else kind.dialect_impl(dialect).result_processor(dialect, None) for kind in kinds]  # numbers come as such
        self._readers: list[tuple[int, Callable[[Any], Any]]] = [(at, reader) for at, reader in enumerate(found) if reader is not None]

    def arguments(self, parameters: Mapping[str, Any]) -> list[Any]:
        """In the driver's order."""
        return [parameters[name] for name in self._names]

    def rows(self, raw: Iterable[Iterable[Any]]) -> list[Cells]:
        """What the driver's rows hold, as SQLAlchemy would give it."""
        return [self._row(cells) for cells in raw]

    def _row(self, raw: Iterable[Any]) -> Cells:
        cells = list(raw)
        for at, reader in self._readers:
            cells[at] = reader(cells[at])
        return cells


class Shelf:
    """Those of one database."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._made: dict[Executable, Ready] = {}

    def of(self, statement: Executable) -> Ready | None:
        """None for a statement that is not marked."""
        found = self._made.get(statement)
        if found is None and is_ready(statement):
            assert isinstance(statement, Select)
            found = self._made[statement] = Ready(statement, self._dialect)
        return found
