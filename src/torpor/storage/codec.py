"""Records to rows and back, by a list that names every field: a field added to a record fails here, at import, until somebody decides how it is stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, Generic, TypeVar

from sqlalchemy import Column, Table

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Kind:
    """How one field is stored: in `columns` (empty: in one of the field's own name), and the two ways between. `encode` gives one value a column."""

    encode: Callable[[Any], Sequence[Any]] | None = None
    decode: Callable[[Sequence[Any]], Any] | None = None
    parts: tuple[str, ...] = ()


PLAIN = Kind()
MAPPING = Kind(lambda value: (dict(value),))
NAMES = Kind(lambda value: (list(value),), lambda cells: tuple(cells[0]))


def choice(values: type[Enum]) -> Kind:
    """An enum by its value. None stays None where the column allows it."""
    by_value: dict[Any, Enum] = {member.value: member for member in values}

    def decode(cells: Sequence[Any]) -> Any:
        return None if cells[0] is None else by_value[cells[0]]

    return Kind(lambda value: (None if value is None else value.value,), decode)


def nested(record: type[Any], *, optional: bool = False, **kinds: Kind) -> Kind:
    """A record within a record, its fields in columns `<field>_<part>`. Each of its kinds fills one column. With `optional`, None is all columns NULL."""
    _demand_fields(record, kinds)
    names = tuple(kinds)
    ways = tuple(kinds.values())
    nothing = (None,) * len(names)

    def encode(value: Any) -> Sequence[Any]:
        if value is None:
            return nothing
        return tuple(way.encode(getattr(value, name))[0] if way.encode else getattr(value, name) for name, way in zip(names, ways, strict=True))

    def decode(cells: Sequence[Any]) -> Any:
        if optional and cells[0] is None:
            return None
        return record(*(way.decode((cell,)) if way.decode else cell for cell, way in zip(cells, ways, strict=True)))

    return Kind(encode, decode, names)


def document(record: type[Any]) -> Kind:
    """A record within a record, as one JSON object; lists come back as tuples. What an older version stored lacks newer fields: their defaults hold."""
    names = [each.name for each in fields(record)]

    def decode(cells: Sequence[Any]) -> Any:
        held = {name: tuple(value) if isinstance(value, list) else value for name, value in cells[0].items()}
        return record(**held)

    return Kind(lambda value: ({name: getattr(value, name) for name in names},), decode)


class Codec(Generic[R]):
    """One record class in one table. `columns` is what to select, in the order `record` reads it."""

    def __init__(self, record: type[R], table: Table, **kinds: Kind) -> None:
        _demand_fields(record, kinds)
        self._record = record
        self._plan: list[tuple[str, tuple[str, ...], Kind]] = []
        self._ways: list[tuple[Callable[[Sequence[Any]], Any] | None, int, int]] = []
        at = 0
        for name, kind in kinds.items():
            names = tuple(f"{name}_{part}" for part in kind.parts) or (name,)
            self._plan.append((name, names, kind))
            self._ways.append((kind.decode, at, at + len(names)))
            at += len(names)
        self.columns: list[Column[Any]] = [table.c[column] for _, names, _ in self._plan for column in names]
        self.width = at

    def row(self, record: R) -> dict[str, Any]:
        """Column name to value, of every stored column."""
        cells: dict[str, Any] = {}
        for name, names, kind in self._plan:
            value = getattr(record, name)
            if kind.encode is None:
                cells[names[0]] = value
            else:
                cells.update(zip(names, kind.encode(value), strict=True))
        return cells

    def record(self, row: Sequence[Any], start: int = 0) -> R:
        """The record whose cells begin at `start` of the row."""
        cells = tuple(row)
        return self._record(*[decode(cells[start + first : start + end]) if decode else cells[start + first] for decode, first, end in self._ways])


def _demand_fields(record: type[Any], kinds: Mapping[str, Kind]) -> None:
    wanted = [field.name for field in fields(record)]
    if wanted != list(kinds):
        raise TypeError(f"{record.__name__} has the fields {wanted}; the storage knows {list(kinds)}.")
