"""SQLite in WAL mode: one writer at a time, several readers, each commit on the disk before it is acknowledged.

    write()   waits its turn, BEGIN IMMEDIATE ... COMMIT on the one writing connection; begin and commit, which may wait for a lock or a disk, in a thread
    read()    a reading connection of its own in a transaction: one view
    look()    the connection of the event loop, without a transaction

A statement that touches a row or a few runs in place: it costs some 40 us, a hop to a thread and back 100. `heavy` ones go to a thread.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy
from sqlalchemy import Executable
from sqlalchemy.pool import NullPool

from torpor.durable.files import disk_errors
from torpor.model.errors import NoPermission
from torpor.storage import schema
from torpor.storage.connection import Cells, Connection, Dialect, Parameters, demand_writing, to_its_end
from torpor.storage.errors import translated
from torpor.storage.ready import Shelf

T = TypeVar("T")

READERS = 4
PATIENCE = 10.0
"""Seconds a transaction waits for another process's."""
_SHORT = 0.5
"""Seconds a read in place may wait; only a process that is just recovering a log makes readers wait at all."""


class SqliteDatabase:
    """One database file, made with mode 0600."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._engine = sqlalchemy.create_engine("sqlite://", creator=self._connect, poolclass=NullPool)
        self._open: list[sqlalchemy.Connection] = []
        self._shelf = Shelf(self._engine.dialect)

    async def open(self) -> None:
        self._threads = ThreadPoolExecutor(READERS + 1, thread_name_prefix="torpor-sqlite")
        self._turn = asyncio.Lock()
        self._readers: asyncio.LifoQueue[sqlalchemy.Connection] = asyncio.LifoQueue()
        try:
            self._writer = await self._hop(self._prepare)
            self._here = self._session(reading=True, patience=_SHORT)
            for _ in range(READERS):
                self._readers.put_nowait(self._session(reading=True))
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Closes every connection. Transactions must have ended."""

        def close_all() -> None:
            while self._open:
                self._open.pop().close()

        await to_its_end(self._hop(close_all))  # the last one to close writes the log back into the database
        self._threads.shutdown()

    @asynccontextmanager
    async def write(self) -> AsyncIterator[Connection]:
        async with self._turn:
            writer = self._writer
            try:
                await self._hop(lambda: writer.exec_driver_sql("BEGIN IMMEDIATE"))
                yield _Session(writer, self._hop, self._shelf, writing=True)
                await self._hop(lambda: writer.exec_driver_sql("COMMIT"))
            finally:
                self._roll_back(writer)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Connection]:
        reader = await self._readers.get()
        try:
            with translated():
                reader.exec_driver_sql("BEGIN")
            yield _Session(reader, self._hop, self._shelf, writing=False)
        finally:
            self._roll_back(reader)
            self._readers.put_nowait(reader)

    @asynccontextmanager
    async def look(self) -> AsyncIterator[Connection]:
        yield _Looking(self._here, self)

    def _prepare(self) -> sqlalchemy.Connection:
        try:
            with disk_errors(f"opening the database {self._path}"):
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise NoPermission(f"The database {self._path} cannot be opened ({error.strerror}).") from error
        with translated():
            writer = self._session(reading=False)
            writer.exec_driver_sql("PRAGMA journal_mode=WAL")
            writer.exec_driver_sql("PRAGMA synchronous=FULL")
            schema.migrate_sqlite(writer)
        return writer

    def _session(self, *, reading: bool, patience: float = PATIENCE) -> sqlalchemy.Connection:
        with translated():
            connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            self._open.append(connection)
            connection.exec_driver_sql(f"PRAGMA busy_timeout={int(patience * 1000)}")
            connection.exec_driver_sql("PRAGMA cache_size=-16384")
            connection.exec_driver_sql(f"PRAGMA query_only={int(reading)}")
        return connection

    def _connect(self) -> sqlite3.Connection:
        # Used by one task at a time, but from whichever thread serves it.
        return sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=PATIENCE)

    def _roll_back(self, connection: sqlalchemy.Connection) -> None:
        """Ends what is open. A full disk, or a commit, has ended it already."""
        driver: Any = connection.connection.dbapi_connection
        if driver.in_transaction:
            connection.exec_driver_sql("ROLLBACK")

    async def _hop(self, work: Callable[[], T]) -> T:
        """Runs `work` in a thread, to its end even when cancelled: the connection is in use until then."""
        job = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            with translated():
                return await asyncio.shield(job)
        except asyncio.CancelledError:
            while not job.done():
                try:
                    await asyncio.wait([job])
                except asyncio.CancelledError:
                    continue
            if not job.cancelled():
                job.exception()  # retrieved: nobody waits for it any more
            raise


class _Session:
    """A Connection on one of SQLite's."""

    dialect: Dialect = "sqlite"

    def __init__(self, connection: sqlalchemy.Connection, hop: Callable[[Callable[[], Any]], Any], shelf: Shelf, *, writing: bool) -> None:
        self._connection = connection
        self._writing = writing
        self._hop = hop
        self._shelf = shelf

    async def fetch(self, statement: Executable, parameters: Parameters | None = None, *, heavy: bool = False) -> Sequence[Cells]:
        if (known := self._shelf.of(statement)) is not None:
            assert isinstance(parameters, Mapping)
            with translated():
                driver: Any = self._connection.connection.dbapi_connection
                return known.rows(driver.execute(known.text, known.arguments(parameters)))

        def run() -> Sequence[Cells]:
            return self._connection.execute(statement, parameters).all()

        if heavy:
            rows: Sequence[Cells] = await self._hop(run)
            return rows
        with translated():
            return run()

    async def change(self, statement: Executable, parameters: Parameters | None = None, *, heavy: bool = False) -> int:
        demand_writing(self._writing)

        def run() -> int:
            return self._connection.execute(statement, parameters).rowcount

        if heavy:
            count: int = await self._hop(run)
            return count
        with translated():
            return run()


class _Looking(_Session):
    """Reads without a transaction; heavy ones on a connection of their own."""

    def __init__(self, connection: sqlalchemy.Connection, database: SqliteDatabase) -> None:
        super().__init__(connection, database._hop, database._shelf, writing=False)
        self._database = database

    async def fetch(self, statement: Executable, parameters: Parameters | None = None, *, heavy: bool = False) -> Sequence[Cells]:
        if not heavy:
            return await super().fetch(statement, parameters)
        async with self._database.read() as connection:
            return await connection.fetch(statement, parameters, heavy=True)
