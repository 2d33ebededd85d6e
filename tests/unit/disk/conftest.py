"""Fixtures over disk_world."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from disk_world import DiskHome

from torpor.durable.threads import Threads


@pytest.fixture
def threads() -> Iterator[Threads]:
    made = Threads(cores=2)
    yield made
    made.close()


@pytest.fixture
def place(tmp_path: Path, threads: Threads) -> DiskHome:
    return DiskHome(tmp_path, threads)
