"""What the tables' code asks of a connection, whichever database is behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar

from sqlalchemy import Executable

from torpor.model.errors import InternalError

T = TypeVar("T")
Cells = Sequence[Any]
"""One row."""
Parameters = Mapping[str, Any] | Sequence[Mapping[str, Any]]
Dialect = Literal["sqlite", "postgresql"]


class Connection(Protocol):
    """One transaction, for one task. Errors are ours (see storage.errors)."""

    @property
    def dialect(self) -> Dialect: ...

    async def fetch(self, statement: Executable, parameters: Parameters | None = None, *, heavy: bool = False) -> Sequence[Cells]:
        """Runs a statement that returns rows. `heavy`: it may look at many, so it must not hold up the event loop."""
        ...

    async def change(self, statement: Executable, parameters: Parameters | None = None, *, heavy: bool = False) -> int:
        """Runs a statement that returns none; how many rows it changed (with several sets of parameters: undefined)."""
        ...


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Runs `work` to its end even when the caller is cancelled meanwhile; the cancel goes on afterwards."""
    task = asyncio.ensure_future(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        if not task.cancelled():
            task.exception()  # retrieved: nobody waits for it any more
        raise asyncio.CancelledError
    return task.result()


def demand_writing(writing: bool) -> None:
    """Raises InternalError in a transaction that was opened to read."""
    if not writing:
        raise InternalError("A write was tried outside a writing transaction.")
