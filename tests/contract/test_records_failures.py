"""Databases that die, fill up, are older or newer, or are opened by several at once."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from servers import PostgresServer
from sqlalchemy import Connection, create_engine, inspect, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool
from sqlalchemy.schema import CreateIndex

from torpor.model.errors import Corrupt, HostUnavailable, Incompatible, NoPermission, NoSpace
from torpor.model.sandbox import base36
from torpor.ports.records import Records
from torpor.storage import make_store, schema, tables
from torpor.storage.tables import SCHEMA
from torpor.testing.conformance.records.samples import a_sandbox, a_user

LATER = Path(__file__).parent / "later_migrations"


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "records.db") if request.param == "sqlite" else request.getfixturevalue("postgres").database()


# --- PostgreSQL goes away


@pytest.fixture
async def own_postgres() -> AsyncIterator[PostgresServer]:
    server = PostgresServer()
    yield server
    server.close()


async def test_a_killed_database_is_a_typed_error_and_comes_back_with_all_that_was_acknowledged(own_postgres: PostgresServer) -> None:
    store = make_store(own_postgres.database())
    await store.open()
    async with store.write() as records:
        await records.users.add(a_user(1))
    async with store.look() as records:
        assert await records.users.count() == 1

    async def write_while_it_dies() -> None:
        async with store.write() as records:
            await records.users.add(a_user(2))
            await asyncio.to_thread(own_postgres.crash)
            await records.users.add(a_user(3))

    with pytest.raises(HostUnavailable):
        await write_while_it_dies()
    for reach in (store.read, store.look, store.write):
        with pytest.raises(HostUnavailable):
            async with reach() as records:
                await records.users.count()
    await asyncio.to_thread(own_postgres.start)
    async with store.write() as records:
        await records.users.add(a_user(4))
    for reach in (store.read, store.look):
        async with reach() as records:
            assert [user.id for user in (await records.users.list()).items] == [a_user(4).id, a_user(1).id]
    await store.close()


async def test_a_restart_between_uses_costs_nobody_an_error(own_postgres: PostgresServer) -> None:
    store = make_store(own_postgres.database())
    await store.open()

    async def count(reach: Callable[[], AbstractAsyncContextManager[Records]]) -> int:
        async with reach() as records:
            return await records.users.count()

    doors = [store.read, store.look, store.write] * 3
    await asyncio.gather(*(count(reach) for reach in doors))  # several connections of each kind
    await asyncio.to_thread(own_postgres.crash)
    await asyncio.to_thread(own_postgres.start)
    assert await asyncio.gather(*(count(reach) for reach in doors)) == [0] * len(doors)
    await store.close()


async def test_no_database_at_all(tmp_path: Path) -> None:
    with pytest.raises(HostUnavailable):
        await make_store(f"postgresql://nobody@/nothing?host={tmp_path}").open()
    with pytest.raises(HostUnavailable):
        await make_store("postgresql://nobody@127.0.0.1:1/nothing").open()


# --- disks


@pytest.mark.root
async def test_a_full_disk_is_no_space_and_loses_nothing(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(small)], check=True)
    try:
        store = make_store(small / "records.db")
        await store.open()
        written = 0

        async def fill() -> None:
            nonlocal written
            while True:
                async with store.write() as records:
                    await records.sandboxes.add(a_sandbox(written, env={"filler": "x" * 50_000}))
                written += 1

        with pytest.raises(NoSpace):
            await fill()
        assert written > 3
        with pytest.raises(NoSpace):
            await fill()
        async with store.read() as records:  # it still reads
            assert sum((await records.sandboxes.counts()).values()) == written
        subprocess.run(["mount", "-o", "remount,size=8m", str(small)], check=True)
        async with store.write() as records:  # and writes again when there is room
            await records.sandboxes.add(a_sandbox(written))
        async with store.read() as records:
            assert sum((await records.sandboxes.counts()).values()) == written + 1
        await store.close()
        for file in small.iterdir():
            file.unlink()
        (small / "ballast").write_bytes(b"")
        subprocess.run(["mount", "-o", "remount,size=64k", str(small)], check=True)
        with pytest.raises(NoSpace):
            await make_store(small / "records.db").open()
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "records.db").write_bytes(b"Dear diary, " * 1000)
    with pytest.raises(Corrupt):
        await make_store(tmp_path / "records.db").open()
    (tmp_path / "directory").mkdir()
    with pytest.raises(NoPermission):
        await make_store(tmp_path / "directory").open()


async def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    store = make_store(tmp_path / "deep" / "er" / "records.db")
    await store.open()
    async with store.write() as records:
        await records.users.add(a_user())
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "deep" / "er").iterdir()} == {0o600}
    await store.close()
    assert [file.name for file in (tmp_path / "deep" / "er").iterdir()] == ["records.db"]


# --- migrations


async def on(database: str, work: Callable[[Connection], object]) -> None:
    """Runs `work` on a connection to the database, in a transaction where the database is PostgreSQL."""
    if database.startswith("postgresql"):
        engine = create_async_engine(database.replace("postgresql:", "postgresql+asyncpg:"), poolclass=NullPool)
        async with engine.begin() as connection:
            await connection.run_sync(work)
    else:
        with create_engine(f"sqlite:///{database}", isolation_level="AUTOCOMMIT").connect() as connection:
            work(connection)


async def test_migrations_go_forward_on_data_and_a_newer_schema_is_refused(database: str) -> None:
    store = make_store(database)
    await store.open()
    async with store.write() as records:
        for number in range(3):
            await records.users.add(a_user(number))
    await store.close()
    migrate = schema.migrate_postgres if database.startswith("postgresql") else schema.migrate_sqlite
    await on(database, lambda connection: migrate(connection, "9001", [LATER]))
    with pytest.raises(Incompatible) as refused:
        await make_store(database).open()
    assert refused.value.differences == {"schema": ("9001", SCHEMA)}

    def check(connection: Connection) -> None:
        rows = connection.execute(text("SELECT email, shouted FROM users ORDER BY id")).all()
        assert [tuple(row) for row in rows] == [(f"user{number}@example.org", f"USER{number}@EXAMPLE.ORG") for number in range(3)]
        assert schema.version(connection) == "9001"

    await on(database, check)


async def test_logins_of_the_first_schema_can_be_listed_afterwards(database: str) -> None:
    def first(connection: Connection) -> None:
        schema._upgrade(connection, [], "0001")
        columns = "digest, user_id, team_id, csrf, created_at, expires_at, user_version"
        for number in (1, 2):
            connection.execute(text(f"INSERT INTO sessions ({columns}) VALUES ('{str(number) * 64}', '{base36(1)}', '{base36(2)}', 'c', {number}, 9, 1)"))

    await on(database, first)
    store = make_store(database)
    await store.open()
    async with store.read() as records:
        found = await records.keys.sessions_of(base36(1))
    await store.close()
    assert [(each.id, each.address, each.agent) for each in found] == [("0" + "2" * 24, "", ""), ("0" + "1" * 24, "", "")]


async def test_a_migration_that_fails_leaves_the_old_schema(database: str, tmp_path: Path) -> None:
    store = make_store(database)
    await store.open()
    await store.close()
    broken = tmp_path / "broken"
    broken.mkdir()
    source = (LATER / "9001_later.py").read_text()
    (broken / "9001_broken.py").write_text(source.replace("UPDATE users SET shouted", "UPDATE nowhere SET shouted"))
    migrate = schema.migrate_postgres if database.startswith("postgresql") else schema.migrate_sqlite
    with pytest.raises(SQLAlchemyError):
        await on(database, lambda connection: migrate(connection, "9001", [broken]))

    def check(connection: Connection) -> None:
        assert schema.version(connection) == SCHEMA
        assert "shouted" not in {column["name"] for column in inspect(connection).get_columns("users")}

    await on(database, check)
    again = make_store(database)
    await again.open()
    await again.close()


async def test_the_migrations_make_the_tables_that_the_code_uses(database: str) -> None:
    store = make_store(database)
    await store.open()
    await store.close()

    def check(connection: Connection) -> None:
        def ours(thing: object, name: str | None, kind: str, reflected: bool, compared: object) -> bool:
            return name != schema.VERSION_TABLE

        context = MigrationContext.configure(connection, opts={"compare_type": True, "include_object": ours})
        differing = compare_metadata(context, tables.metadata)
        if connection.dialect.name == "sqlite":  # which has no such index
            differing = [one for one in differing if not (one[0] == "add_index" and one[1].name == "sandboxes_labels")]
        assert differing == []
        made = {row[0]: row[1] for row in connection.execute(text(_INDEXES[connection.dialect.name]))}
        wanted = {
            str(index.name): str(CreateIndex(index).compile(dialect=connection.dialect))
            for table in tables.metadata.sorted_tables
            for index in table.indexes
            if index.name != "sandboxes_labels" or connection.dialect.name == "postgresql"
        }
        assert made.keys() == wanted.keys()
        for name, statement in wanted.items():
            assert ("WHERE" in statement) == ("WHERE" in made[name]), name
            assert ("UNIQUE" in statement) == ("UNIQUE" in made[name]), name

    await on(database, check)


_INDEXES = {
    "sqlite": "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL",
    "postgresql": "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' AND indexname NOT LIKE '%\\_key' AND indexname NOT LIKE '%\\_pkc'",
}

_OPEN_AND_WRITE = """
import asyncio, sys
from torpor.storage import make_store
from torpor.testing.conformance.records.samples import a_user

async def main():
    store = make_store(sys.argv[1])
    sys.stdin.readline()
    await store.open()
    async with store.write() as records:
        await records.users.add(a_user(int(sys.argv[2])))
    await store.close()

asyncio.run(main())
"""


async def test_several_processes_open_an_empty_database_at_once(database: str) -> None:
    processes = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", _OPEN_AND_WRITE, database, str(number), stdin=PIPE, stderr=PIPE) for number in range(3)
    ]
    ended = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
    assert [process.returncode for process in processes] == [0, 0, 0], ended
    store = make_store(database)
    await store.open()
    async with store.read() as records:
        assert await records.users.count() == 3
    await store.close()
