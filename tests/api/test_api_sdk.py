"""The dialect's published SDK, unmodified, against a real server on the real use cases, with a fake host whose guests are the real agent."""

from __future__ import annotations

import pytest
from plane_world import Plane
from sdk_world import drive

VERSIONS = ["0.1.2", "0.3.0"]


EVERYTHING = ("lifecycle", "commands", "files", "pty", "git", "snapshots", "asynchronous")


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_sdk_works(plane: Plane, version: str) -> None:
    """Every public method of it, of both its halves. Events and figures are a later version's."""
    more = ("events",) if version != "0.1.2" else ()
    await drive(version, plane.url, plane.key, "base", *EVERYTHING, *more, "completeness", seconds=250)


async def test_the_sdk_works_below_api(plane: Plane) -> None:
    await drive("0.1.2", f"{plane.url}/api", plane.key, "base", "commands")
