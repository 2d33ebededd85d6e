"""PostgreSQL through asyncpg. Several writers at once: READ COMMITTED, with `hold` for what must not change between looking and writing.

write()   READ COMMITTED; durable when COMMIT has answered
read()    REPEATABLE READ, READ ONLY: one view
look()    each statement by itself: one round trip instead of three
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
from sqlalchemy import Executable, event, exc
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from torpor.storage import schema
from torpor.storage.connection import Cells, Connection, Dialect, Parameters, demand_writing, to_its_end
from torpor.storage.errors import driver_errors, translated
from torpor.storage.ready import Shelf

CONNECTIONS = 10
KEPT = 8
"""Connections for looking. Who finds them all at work waits: a new one would cost more than many looks."""
CONNECT_TIMEOUT = 5.0
COMMAND_TIMEOUT = 30.0
"""Seconds. A database that does not answer is an error, never a wait without end."""

_SERVER = {
    "application_name": "torpor",
    "synchronous_commit": "on",
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "60s",
    "timezone": "UTC",
}
_READ: Mapping[str, Any] = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
_LOOK: Mapping[str, Any] = {"isolation_level": "AUTOCOMMIT"}
_WRITE: Mapping[str, Any] = {"isolation_level": "READ COMMITTED", "postgresql_readonly": False}


@dataclass(frozen=True, slots=True)
class _Kept:
    """A connection for looking, and asyncpg's own below it."""

    connection: AsyncConnection
    driver: Any


class PostgresDatabase:
    """One database of a PostgreSQL server; `url` as in postgresql://user:password@host:port/database."""

    def __init__(self, url: str) -> None:
        self._url = make_url(url).set(drivername="postgresql+asyncpg")
        self._kept: list[_Kept] = []

    async def open(self) -> None:
        self._looks = asyncio.Semaphore(KEPT)
        self._engine: AsyncEngine = create_async_engine(
            self._url,
            pool_size=CONNECTIONS,
            max_overflow=CONNECTIONS,
            pool_timeout=COMMAND_TIMEOUT,
            pool_use_lifo=True,
            connect_args={"timeout": CONNECT_TIMEOUT, "command_timeout": COMMAND_TIMEOUT, "server_settings": _SERVER},
        )
        event.listen(self._engine.sync_engine, "checkout", _demand_open)
        self._shelf = Shelf(self._engine.dialect)
        try:
            async with self.write() as connection:
                assert isinstance(connection, _Session)
                with translated():
                    await connection.connection.run_sync(schema.migrate_postgres)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        while self._kept:
            await to_its_end(_drop(self._kept.pop().connection))
        await to_its_end(self._engine.dispose())

    @asynccontextmanager
    async def write(self) -> AsyncIterator[Connection]:
        async with self._connected(_WRITE) as session:
            session.writing = True
            yield session
            with translated():
                await to_its_end(session.connection.commit())

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Connection]:
        async with self._connected(_READ) as session:
            yield session

    @asynccontextmanager
    async def look(self) -> AsyncIterator[Connection]:
        yield _Looking(self)

    async def look_once(self, statement: Executable, parameters: Parameters | None) -> Sequence[Cells]:
        """One statement outside a transaction. It cannot write."""
        with translated():
            async with asyncio.timeout(COMMAND_TIMEOUT):
                await self._looks.acquire()
            try:
                kept = await self._kept_open() or await self._keep()
                try:
                    rows = await self._looked(kept, statement, parameters)
                except BaseException:
                    await to_its_end(_drop(kept.connection))
                    raise
                self._kept.append(kept)
            finally:
                self._looks.release()
        return rows

    async def _kept_open(self) -> _Kept | None:
        """One that was kept, unless its server has gone since."""
        while self._kept:
            kept = self._kept.pop()
            if not kept.driver.is_closed():
                return kept
            await to_its_end(_drop(kept.connection))
        return None

    async def _looked(self, kept: _Kept, statement: Executable, parameters: Parameters | None) -> Sequence[Cells]:
        known = self._shelf.of(statement)
        if known is None:
            return (await kept.connection.execute(statement, parameters)).all()
        assert isinstance(parameters, Mapping)
        with driver_errors(asyncpg.PostgresError, asyncpg.InterfaceError):
            return known.rows(await kept.driver.fetch(known.text, *known.arguments(parameters)))

    async def _keep(self) -> _Kept:
        connection = await self._engine.connect().start()
        try:
            await connection.execution_options(**_LOOK)
            await connection.exec_driver_sql("SET default_transaction_read_only = on")
            return _Kept(connection, (await connection.get_raw_connection()).driver_connection)
        except BaseException:
            await to_its_end(_drop(connection))
            raise

    @asynccontextmanager
    async def _connected(self, options: Mapping[str, Any]) -> AsyncIterator[_Session]:
        connection = self._engine.connect()
        with translated():
            await connection.start()
        try:
            with translated():
                await connection.execution_options(**options)
            yield _Session(connection)
        finally:
            await to_its_end(connection.close())  # rolls back what was not committed


class _Session:
    dialect: Dialect = "postgresql"

    def __init__(self, connection: AsyncConnection) -> None:
        self.connection = connection
        self.writing = False

    async def fetch(self, statement: Executable, parameters: Parameters | None = None, *, heavy: bool = False) -> Sequence[Cells]:
        with translated():
            return (await self.connection.execute(statement, parameters)).all()

    async def change(self, statement: Executable, parameters: Parameters | None = None, *, heavy: bool = False) -> int:
        demand_writing(self.writing)
        with translated():
            return (await self.connection.execute(statement, parameters)).rowcount


class _Looking:
    dialect: Dialect = "postgresql"

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database

    async def fetch(self, statement: Executable, parameters: Parameters | None = None, *, heavy: bool = False) -> Sequence[Cells]:
        return await self._database.look_once(statement, parameters)

    async def change(self, statement: Executable, parameters: Parameters | None = None, *, heavy: bool = False) -> int:
        demand_writing(False)
        return 0


def _demand_open(_connection: object, record: Any, _proxy: object) -> None:
    """Of a connection that comes out of the pool: asyncpg has heard when its server went. The pool then makes another."""
    if record.driver_connection.is_closed():
        raise exc.DisconnectionError


async def _drop(connection: AsyncConnection) -> None:
    """Not back into the pool: its settings are its own."""
    await connection.invalidate()
    await connection.close()
