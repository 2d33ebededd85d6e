"""A home with a short path: the sockets of fake VMMs lie deep in it, and a socket's path has 107 bytes at most."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from host_world import children


@pytest.fixture
def home() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="host-"))
    yield path
    for pid in children(path):  # of a test that failed
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(path, ignore_errors=True)  # a keeper about to end removes its socket itself
    assert not path.exists()
