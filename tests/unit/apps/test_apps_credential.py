"""The file that lets the machine's own user work at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from torpor.apps import credential
from torpor.apps.control import control_plane
from torpor.hostlink.local import LocalHosts
from torpor.testing.fake_hosts import FakeHost


@pytest.mark.parametrize(
    ("url", "reached"),
    [
        ("http://0.0.0.0:8080", "http://127.0.0.1:8080"),
        ("https://[::]:8080", "https://[::1]:8080"),
        ("http://192.0.2.1:80", "http://192.0.2.1:80"),
        ("http://localhost:1", "http://localhost:1"),
    ],
)
def test_the_address_is_one_that_this_machine_reaches(url: str, reached: str) -> None:
    assert credential.reachable(url) == reached


async def test_a_key_of_its_own_that_works_over_restarts_until_it_is_removed(tmp_path: Path) -> None:
    async def start(url: str) -> Any:
        async with control_plane(LocalHosts(FakeHost()), tmp_path / "records.db") as wired:
            await credential.keep(tmp_path, url, wired.context, wired.first)
            kept = credential.kept(tmp_path)
            if not kept:
                return None
            assert wired.first is None or kept != wired.first.key
            return await wired.services.access.by_key(kept)

    caller = await start("http://127.0.0.1:1")
    assert (tmp_path / credential.FILE).stat().st_mode & 0o777 == 0o600
    again = await start("http://127.0.0.1:2")
    assert (again.team_id, again.actor.name) == (caller.team_id, credential.NAME)
    assert "127.0.0.1:2" in (tmp_path / credential.FILE).read_text()
    (tmp_path / credential.FILE).unlink()
    assert await start("http://127.0.0.1:3") is None
    (tmp_path / credential.FILE).write_text("{")
    assert credential.kept(tmp_path) == ""
