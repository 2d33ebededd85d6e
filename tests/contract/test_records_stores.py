"""SQLite and PostgreSQL against one suite."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from torpor.ports.records import Store
from torpor.storage import make_store
from torpor.testing.conformance.records import suite
from torpor.testing.conformance.records.samples import StoreRig


class Rig:
    def __init__(self, database: str) -> None:
        self.database = database
        self._stores: list[Store] = []

    async def open(self) -> Store:
        store = make_store(self.database)
        await store.open()
        self._stores.append(store)
        return store

    async def close(self) -> None:
        for store in self._stores:
            await store.close()


@pytest.fixture(params=["sqlite", "postgresql"])
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    database = str(tmp_path / "records.db") if request.param == "sqlite" else request.getfixturevalue("postgres").database()
    made = Rig(database)
    yield made
    await made.close()


@pytest.mark.parametrize("check", suite.CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
async def test_store(rig: Rig, check: Callable[[StoreRig], Awaitable[None]]) -> None:
    await check(rig)
