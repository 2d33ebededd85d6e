from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from api_world import World, open_world
from envd_world import EnvdWorld, open_envd
from plane_world import Plane, open_plane

from torpor.api.app import make_app
from torpor.api.services import Services


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path) as opened:
        yield opened


@pytest.fixture
async def capsule(world: World) -> str:
    """The id of a running sandbox."""
    return await world.capsule()


@pytest.fixture
def world_app() -> Any:
    """The application alone, for what it says of itself."""
    return make_app(Services(**dict.fromkeys(field.name for field in dataclasses.fields(Services))))  # type: ignore[arg-type]


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Plane]:
    async with open_plane(tmp_path) as opened:
        yield opened


@pytest.fixture
async def envd(tmp_path: Path) -> AsyncIterator[EnvdWorld]:
    async with open_envd(tmp_path) as opened:
        yield opened
