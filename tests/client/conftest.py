from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from client_world import Restartable, open_face, restartable


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Restartable]:
    async with restartable(tmp_path) as opened:
        yield opened


@pytest.fixture(params=["async", "sync"])
async def client(request: pytest.FixtureRequest, server: Restartable) -> AsyncIterator[Any]:
    """Either face."""
    async with open_face(request.param, server.url, server.key) as opened:
        yield opened


@pytest.fixture
async def sandbox(client: Any) -> Any:
    """A running one."""
    return await client.sandboxes.create("base", name="first")
