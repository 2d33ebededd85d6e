from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "client"))  # client_world

from client_world import Restartable, restartable


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Restartable]:
    async with restartable(tmp_path) as opened:
        yield opened
