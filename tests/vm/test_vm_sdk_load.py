"""The dialect's earlier SDK gives up after 5 s. On a machine that has twice as much to do as it has cores, it never does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from cli_world import end, left
from serve_world import server

sys.path.append(str(Path(__file__).parents[1] / "api"))
from sdk_world import drive

pytestmark = pytest.mark.vm


@contextmanager
def busy(times: int) -> Iterator[None]:
    """So many programs for each core this test may use that do nothing but keep it."""
    with ExitStack() as stack:
        for _ in range(times * len(os.sched_getaffinity(0))):
            process = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(process.kill)
        yield


@pytest.mark.timeout(600)
async def test_the_sdks_own_time_outs_never_fire_on_a_machine_loaded_to_twice_its_cores(fresh_home: Path) -> None:
    """From the first create of a home on, for which a warm image has to be booted first."""
    with server(fresh_home) as (process, url):
        key = (fresh_home / "first-key").read_text().strip()
        with busy(2):
            await drive("0.1.2", url, key, "base", "lifecycle", "commands", "files", "pty", "snapshots", seconds=400)
        assert end(process) == 0
    assert left(fresh_home) == {}
