"""The mapping that notices a new field, the plans of the queries that must stay flat, and where databases' errors lead."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from dataclasses import dataclass, make_dataclass
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Select, Update, text
from sqlalchemy.dialects import sqlite

from torpor.lifecycle.sandbox import FINAL, LIVE
from torpor.model.errors import HostUnavailable, InternalError, InvalidInput, NoSpace
from torpor.model.records import SandboxState
from torpor.ports.records import SandboxFilter
from torpor.storage import cursors, make_store, sandboxes, schema, tables
from torpor.storage.codec import PLAIN, Codec, nested
from torpor.storage.errors import translated
from torpor.storage.keys import _BY_DIGEST, _SESSION
from torpor.storage.store import SqlStore
from torpor.testing.conformance.records.samples import TEAM, a_sandbox


@dataclass(frozen=True)
class Small:
    id: str
    name: str


def test_a_field_that_the_storage_does_not_know_is_noticed() -> None:
    Codec(Small, tables.users, id=PLAIN, name=PLAIN)
    grown = make_dataclass("Grown", [("id", str), ("name", str), ("fresh", str)], frozen=True)
    with pytest.raises(TypeError, match="fresh"):
        Codec(grown, tables.users, id=PLAIN, name=PLAIN)
    with pytest.raises(TypeError, match="fresh"):
        nested(grown, id=PLAIN, name=PLAIN)
    with pytest.raises(TypeError):
        Codec(Small, tables.users, name=PLAIN, id=PLAIN)  # the order is that of the record's own constructor
    with pytest.raises(KeyError):
        Codec(grown, tables.users, id=PLAIN, name=PLAIN, fresh=PLAIN)  # the table has no such column


def test_every_column_of_a_sandbox_is_written() -> None:
    generated = {column.name for column in tables.sandboxes.c if column.computed is not None}
    assert set(sandboxes.SANDBOX.row(a_sandbox())) | generated == set(tables.sandboxes.c.keys())


def test_the_index_condition_means_not_final() -> None:
    connection = sqlite3.connect(":memory:")
    for state in SandboxState:
        (found,) = connection.execute(f"SELECT {tables.LIVE} FROM (SELECT ? AS state)", (state.value,)).fetchone()
        assert bool(found) == (state in LIVE) == (state not in FINAL)


def test_the_newest_migration_is_the_one_the_code_names() -> None:
    config = Config()
    config.set_main_option("script_location", str(schema.MIGRATIONS))
    scripts = ScriptDirectory.from_config(config)
    assert scripts.get_current_head() == tables.SCHEMA
    assert [script.revision for script in scripts.walk_revisions()] == sorted((script.revision for script in scripts.walk_revisions()), reverse=True)


# --- plans


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlStore]:
    made = make_store(tmp_path / "records.db")
    await made.open()
    yield made
    await made.close()


def conditions(**wanted: object) -> Select[tuple[object, ...]]:
    order = (tables.sandboxes.c.created_at.desc(), tables.sandboxes.c.id.desc())
    return sandboxes._OURS.where(*sandboxes._conditions(SandboxFilter(**wanted), "sqlite")).order_by(*order).limit(10)  # type: ignore[arg-type]


PLANS: dict[str, tuple[Select[tuple[object, ...]] | Update, str]] = {
    "get": (sandboxes._GET, "SEARCH sandboxes USING INDEX sqlite_autoindex_sandboxes_1 (id=?)"),
    "swap": (sandboxes._SWAP, "SEARCH sandboxes USING INDEX sqlite_autoindex_sandboxes_1 (id=?)"),
    "key": (_BY_DIGEST, "SEARCH api_keys USING INDEX api_keys_digest (digest=?)"),
    "session": (_SESSION, "SEARCH sessions USING INDEX sqlite_autoindex_sessions_1 (digest=?)"),
    "list of a team": (conditions(team_id=TEAM), "SEARCH sandboxes USING INDEX sandboxes_of_team (team_id=?)"),
    "live of a team": (conditions(team_id=TEAM, states=[SandboxState.RUNNING]), "SEARCH sandboxes USING INDEX sandboxes_live_of_team (team_id=? AND live=?)"),
    "list of all": (conditions(), "SCAN sandboxes USING INDEX sandboxes_by_age"),
    "on host": (sandboxes._ON_HOST, "SEARCH sandboxes USING INDEX sandboxes_live_on_host (host_id=? AND live=?)"),
    "reserved": (sandboxes._RESERVED.where(tables.sandboxes.c.team_id == TEAM), "SEARCH sandboxes USING INDEX sandboxes_live_of_team (team_id=? AND live=?)"),
    "using a template": (sandboxes._USING, "SEARCH sandboxes USING INDEX sandboxes_live_of_template (template_id=? AND live=?)"),
    "expiring": (sandboxes._EXPIRING, "SEARCH sandboxes USING INDEX sandboxes_due (due_at>? AND due_at<?)"),
    "overdue": (sandboxes._OVERDUE, "SEARCH sandboxes USING INDEX sandboxes_due (due_at>? AND due_at<?)"),
    "next expiry": (sandboxes._NEXT, "SEARCH sandboxes USING INDEX sandboxes_due (due_at>?)"),
}


@pytest.mark.parametrize("name", PLANS)
async def test_queries_of_the_hot_paths_use_their_index(store: SqlStore, name: str) -> None:
    statement, expected = PLANS[name]
    compiled = statement.compile(dialect=sqlite.dialect(), compile_kwargs={"render_postcompile": True})
    values = {key: "x" if value is None else value for key, value in compiled.params.items()}
    async with store.write() as records:
        for number in range(200):
            state = SandboxState.STOPPED if number % 20 else SandboxState.RUNNING
            await records.sandboxes.add(a_sandbox(number, state=state, ended_at=1.0 if state is SandboxState.STOPPED else None))
        explain = text("EXPLAIN QUERY PLAN " + _named(str(compiled), compiled.positiontup or []))
        plan = await records._connection.fetch(explain, values)
    assert [row[3] for row in plan] == [expected]


def _named(statement: str, names: list[str]) -> str:
    for name in names:
        statement = statement.replace("?", f":{name}", 1)
    return statement


# --- cursors and errors


@given(st.lists(st.text() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(0, 2**63 - 1), min_size=1, max_size=3))
def test_a_cursor_comes_back_as_it_was(key: list[str | float]) -> None:
    kinds = [type(value) for value in key]
    cursor = cursors.encode("list", key)
    assert list(cursors.decode("list", cursor, kinds)) == key
    for of, wanted in (("other", kinds), ("list", [*kinds, str])):
        with pytest.raises(InvalidInput):
            cursors.decode(of, cursor, wanted)


@given(st.text())
def test_no_text_breaks_a_cursor(text_given: str) -> None:
    try:
        cursors.decode("list", text_given, [str, float])
    except InvalidInput:
        return
    raise AssertionError("it passed as ours")


def test_errors_are_known_by_their_code() -> None:
    for code, kind in (
        ("SQLITE_FULL", NoSpace),
        ("SQLITE_BUSY_SNAPSHOT", HostUnavailable),
        ("SQLITE_IOERR_FSYNC", HostUnavailable),
        ("SQLITE_MISUSE", InternalError),
    ):
        error = sqlite3.OperationalError("some words: unique full disk not found")
        error.sqlite_errorname = code  # type: ignore[misc]
        with pytest.raises(kind), translated():
            raise error
