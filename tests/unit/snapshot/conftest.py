"""Fixtures over snapshot_world."""

import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from snapshot_world import MEMORY, Guest, Store

from torpor.durable.threads import Threads
from torpor.model.snapshots import PAGE


@pytest.fixture
def threads() -> Iterator[Threads]:
    made = Threads(cores=2)
    yield made
    made.close()


@pytest.fixture
def guests() -> Iterator[Callable[[Path], Guest]]:
    started: list[Guest] = []

    def start(path: Path) -> Guest:
        started.append(Guest(path))
        return started[-1]

    yield start
    for guest in started:
        guest.end()


@pytest.fixture
async def store(tmp_path: Path, threads: Threads, guests: Callable[[Path], Guest]) -> Store:
    made = Store(tmp_path, threads, guests)
    await made.snapshots.open()
    return made


@pytest.fixture
def memory_file(tmp_path: Path) -> Path:
    path = tmp_path / "base.mem"
    path.write_bytes(os.urandom(4 << 20))
    os.truncate(path, MEMORY)
    assert mmap.PAGESIZE == PAGE
    return path
