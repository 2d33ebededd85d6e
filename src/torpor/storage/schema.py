"""Brings a database to the tables this program knows, once, however many processes start at the same time.

Each process asks first; one that must change something takes the database's own lock (SQLite: the write lock, PostgreSQL: an advisory lock), asks again,
and runs what is missing in one transaction. A database that a later version of torpor wrote is refused and left as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, column, inspect, select, table, text

from torpor.model.errors import Incompatible
from torpor.storage import tables

MIGRATIONS = Path(__file__).parent / "migrations"
VERSION_TABLE = "schema_version"
_LOCK = 0x746F72706F72  # "torpor"


def version(connection: Connection) -> str:
    """The newest migration the database has seen; '' for an empty one."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return ""
    return str(connection.execute(select(column("version_num")).select_from(table(VERSION_TABLE))).scalar() or "")


def migrate_sqlite(connection: Connection, head: str = tables.SCHEMA, more: Sequence[Path] = ()) -> None:
    """On a connection without a transaction. `more`: directories of further migrations, for tests. Raises Incompatible."""
    if _is_current(connection, head):
        return
    connection.exec_driver_sql("BEGIN IMMEDIATE")
    try:
        if not _is_current(connection, head):
            _upgrade(connection, more)
        connection.exec_driver_sql("COMMIT")
    except BaseException:
        driver: Any = connection.connection.dbapi_connection
        if driver.in_transaction:  # a full disk has ended it already
            connection.exec_driver_sql("ROLLBACK")
        raise


def migrate_postgres(connection: Connection, head: str = tables.SCHEMA, more: Sequence[Path] = ()) -> None:
    """In a transaction, which the caller commits. Raises Incompatible."""
    if _is_current(connection, head):
        return
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    if not _is_current(connection, head):
        _upgrade(connection, more)


def _is_current(connection: Connection, head: str) -> bool:
    found = version(connection)
    if found > head:
        raise Incompatible(
            f"The database was written by a later version of torpor (its schema is {found}, this one knows {head}).",
            {"schema": (found, head)},
            mend="Run that version, or restore a copy of the database made before it.",
        )
    return found == head


def _upgrade(connection: Connection, more: Sequence[Path], to: str = "head") -> None:
    # Alembic takes 0.2 s to import; a start that finds the schema as it should be does without.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", _escaped(MIGRATIONS))
    config.set_main_option("path_separator", "newline")
    config.set_main_option("version_locations", "\n".join(_escaped(place) for place in (MIGRATIONS / "versions", *more)))
    config.attributes["connection"] = connection
    command.upgrade(config, to)


def _escaped(path: Path) -> str:
    return str(path).replace("%", "%%")
