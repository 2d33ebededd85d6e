"""E2B's published SDKs, unmodified, against a real server on the real use cases, with a fake host whose guests are the real agent. What goes through envd
has its sections with the data plane."""

from __future__ import annotations

import pytest
from e2b_sdk_world import PYTHON_VERSIONS, drive, drive_node
from plane_world import Plane

SECTIONS = ["lifecycle", "pausing", "forks", "lists", "snapshots", "metrics", "network", "templates", "asynchronous"]


@pytest.fixture
def key(plane: Plane) -> str:
    assert plane.wired.first is not None
    return plane.wired.first.e2b_key


@pytest.mark.parametrize("version", PYTHON_VERSIONS)
async def test_the_python_package_works(plane: Plane, key: str, version: str) -> None:
    await drive(version, plane.url, key, *SECTIONS)


async def test_the_npm_package_works(plane: Plane, key: str) -> None:
    await drive_node(plane.url, key, "lifecycle", "pausing", "forks", "lists", "snapshots", "metrics", "network")
