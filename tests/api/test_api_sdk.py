"""The dialect's published SDK, unmodified, against a real server on the real use cases, with a fake host whose guests are the real agent."""

from __future__ import annotations

import pytest
from plane_world import Plane
from sdk_world import drive

VERSIONS = ["0.1.2", "0.3.0"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("section", ["lifecycle", "commands", "files", "pty", "git", "snapshots", "asynchronous"])
async def test_the_sdk_works(plane: Plane, version: str, section: str) -> None:
    await drive(version, plane.url, plane.key, "base", section)


async def test_the_sdk_works_below_api(plane: Plane) -> None:
    await drive("0.1.2", f"{plane.url}/api", plane.key, "base", "commands")


async def test_the_sdk_hears_of_events_and_figures(plane: Plane) -> None:
    """Its earlier version has no words for either."""
    await drive("0.3.0", plane.url, plane.key, "base", "events")
