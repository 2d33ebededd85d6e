"""The server and its microVMs as `tests/vm` has them, for tests that break them on purpose."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
sys.path.append(str(CHECKOUT / "tests" / "vm"))  # vm_world, serve_world, cli_world

from vm_world import build_images  # noqa: E402


@pytest.fixture(scope="session")
def built_images() -> Path:
    """A home whose images are built; nothing else of it is used."""
    home = Path(os.environ.get("TORPOR_TEST_HOME", CHECKOUT / ".work" / "test-home")).resolve()
    home.mkdir(parents=True, exist_ok=True)
    asyncio.run(build_images(home))
    return home


@pytest.fixture
def elastic_home(tmp_path: Path, built_images: Path) -> Iterator[Path]:
    """A home on a file system of its own, whose size a test may change while it is used."""
    home = tmp_path / "home"
    home.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6g,mode=755", "torpor-test", home], check=True)
    (home / "images").symlink_to(built_images / "images")
    yield home
    subprocess.run(["umount", "--lazy", home], check=True)  # the keeper may be about to end
