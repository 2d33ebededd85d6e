"""ports.records.Store on either database."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import Protocol

from sqlalchemy import bindparam, func, select

from torpor.model.errors import InvalidInput
from torpor.storage.connection import Connection
from torpor.storage.figures import FigureRows, MemoryRows
from torpor.storage.happenings import AuditRows, ChannelRows, EventRows
from torpor.storage.keys import ChoreRows, KeyRows
from torpor.storage.people import TeamRows, UserRows
from torpor.storage.sandboxes import SandboxRows
from torpor.storage.sqlite import SqliteDatabase
from torpor.storage.templates import TemplateRows

_HOLD = select(func.pg_advisory_xact_lock(bindparam("key")))


class Database(Protocol):
    """What a store needs of one: see storage.sqlite and storage.postgres."""

    async def open(self) -> None: ...
    async def close(self) -> None: ...
    def write(self) -> AbstractAsyncContextManager[Connection]: ...
    def read(self) -> AbstractAsyncContextManager[Connection]: ...
    def look(self) -> AbstractAsyncContextManager[Connection]: ...


class SqlRecords:
    """See ports.records.Records."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def sandboxes(self) -> SandboxRows:
        return SandboxRows(self._connection)

    @property
    def templates(self) -> TemplateRows:
        return TemplateRows(self._connection)

    @property
    def teams(self) -> TeamRows:
        return TeamRows(self._connection)

    @property
    def users(self) -> UserRows:
        return UserRows(self._connection)

    @property
    def keys(self) -> KeyRows:
        return KeyRows(self._connection)

    @property
    def audit(self) -> AuditRows:
        return AuditRows(self._connection)

    @property
    def events(self) -> EventRows:
        return EventRows(self._connection)

    @property
    def channels(self) -> ChannelRows:
        return ChannelRows(self._connection)

    @property
    def figures(self) -> FigureRows:
        return FigureRows(self._connection)

    @property
    def memory(self) -> MemoryRows:
        return MemoryRows(self._connection)

    @property
    def chores(self) -> ChoreRows:
        return ChoreRows(self._connection)

    async def hold(self, *names: str) -> None:
        if self._connection.dialect == "postgresql":  # SQLite has one writer at a time anyway
            for name in sorted(names):
                key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
                await self._connection.fetch(_HOLD, {"key": key})


class SqlStore:
    """See ports.records.Store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def open(self) -> None:
        await self._database.open()

    async def close(self) -> None:
        await self._database.close()

    @asynccontextmanager
    async def write(self) -> AsyncIterator[SqlRecords]:
        async with self._database.write() as connection:
            yield SqlRecords(connection)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[SqlRecords]:
        async with self._database.read() as connection:
            yield SqlRecords(connection)

    @asynccontextmanager
    async def look(self) -> AsyncIterator[SqlRecords]:
        async with self._database.look() as connection:
            yield SqlRecords(connection)


def make_store(database: str | Path) -> SqlStore:
    """A store, not open yet: of a SQLite file by its path (or sqlite:///path), of PostgreSQL by postgresql://user:password@host:port/database.
    Raises InvalidInput for another scheme."""
    if isinstance(database, Path):
        return SqlStore(SqliteDatabase(database))
    scheme, found, rest = database.partition("://")
    if not found:
        return SqlStore(SqliteDatabase(Path(database)))
    if scheme == "sqlite" and rest.startswith("/"):
        return SqlStore(SqliteDatabase(Path(rest[1:])))
    if scheme in ("postgres", "postgresql", "postgresql+asyncpg"):
        postgres = import_module("torpor.storage.postgres")  # brings SQLAlchemy's half for event loops along, which SQLite does without
        return SqlStore(postgres.PostgresDatabase(f"postgresql://{rest}"))
    raise InvalidInput(f"{scheme!r} is no database torpor knows; use a path, sqlite:///path or postgresql://...")
