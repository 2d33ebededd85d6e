"""Each test has a database of its own: a copy of one that was made once."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from service_world import World, opened

from torpor.storage.store import make_store


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("service") / "empty.db"

    async def make() -> None:
        store = make_store(path)
        await store.open()
        await store.close()

    asyncio.run(make())
    return path


@pytest.fixture
def fresh(empty_database: Path, tmp_path: Path) -> Callable[[], Path]:
    """Makes one more empty database at each call."""
    numbers = iter(range(1_000_000))

    def make() -> Path:
        return Path(shutil.copy(empty_database, tmp_path / f"{next(numbers)}.db"))

    return make


@pytest.fixture
async def world(fresh: Callable[[], Path]) -> AsyncIterator[World]:
    async with opened(fresh()) as world:
        yield world
