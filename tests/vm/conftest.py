"""Fixtures by lifecycle: images built once per checkout, an engine on them, a sandbox, a paused one. After the last test every template and every warm
image is what it was.

The home of these tests is $TORPOR_TEST_HOME, by default .work/test-home in the checkout; its images and warm images are kept from run to run.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import secrets
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from blake3 import blake3
from vm_world import NewHome, build_images, new_home, open_engine, remove_home, settings

from torpor.apps.engine import Engine
from torpor.host.agent import CreateSpec
from torpor.host.sandbox import Sandbox
from torpor.model.shapes import Shape

CHECKOUT = Path(__file__).parents[2]
sys.path.append(str(CHECKOUT / "tests" / "root" / "net"))  # net_world, for microVMs in a make-believe network
sys.path.append(str(CHECKOUT / "tests" / "api"))  # e2b_sdk_world, for published packages


@pytest.fixture(scope="session")
def images_home() -> Iterator[Path]:
    """A home whose images are built."""
    home = Path(os.environ.get("TORPOR_TEST_HOME", CHECKOUT / ".work" / "test-home")).resolve()
    home.mkdir(parents=True, exist_ok=True)
    asyncio.run(build_images(home))
    before = {path: block_digest(path) for path in warm_memories(home)}
    yield home
    expected = {path: digest for path, digest in (template_disks(home) | before | warm_memories(home)).items() if path.exists()}
    with ThreadPoolExecutor() as threads:
        found = dict(zip(expected, threads.map(lambda path: whole_digest(path) if path.name == "disk.ext4" else block_digest(path), expected), strict=True))
    assert found == expected


@pytest.fixture(scope="session")
def interpreter_home(images_home: Path) -> Path:
    """The same home, with the code interpreter's template built."""
    engine = Engine(settings(images_home))
    try:
        asyncio.run(engine.images.ensure(["code-interpreter-v1"], lambda *_: None))
    finally:
        engine.processes.close()
    return images_home


def template_disks(home: Path) -> dict[Path, str]:
    """Each lies in a directory named by its SHA-256."""
    return {path: path.parent.name for path in (home / "images" / "template").glob("*/disk.ext4")}


def whole_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def warm_memories(home: Path) -> dict[Path, str]:
    """Memory files of all warm images, with the digest that was taken when each was made."""
    found = {}
    for manifest in (home / "store" / "artefacts").glob("*/manifest.json"):
        tree = json.loads(manifest.read_text())
        if tree["kind"] == "warm":
            found[home / "store" / "memory" / f"{tree['memory']['id']}.mem"] = tree["memory"]["digest"]
    return found


def block_digest(path: Path, block: int = 4 << 20) -> str:
    """The digest of docs/artefact-format.md, taken by other code than the store's."""
    outer = blake3()
    with path.open("rb") as file:
        while piece := file.read(block):
            outer.update(blake3(piece).digest())
    return outer.hexdigest()


@pytest.fixture
def new_homes(images_home: Path) -> Iterator[NewHome]:
    """Makes homes of their own, on the same file system as the images that they share."""
    with contextlib.ExitStack() as stack:

        def make() -> Path:
            home = new_home(images_home, images_home.parent / "homes" / secrets.token_hex(4))
            stack.callback(remove_home, home)
            return home

        yield make


@pytest.fixture
def fresh_home(new_homes: NewHome) -> Path:
    return new_homes()


@pytest.fixture
async def engine(images_home: Path) -> AsyncIterator[Engine]:
    """The owner of the shared home: warm images are there, sandboxes are not."""
    async with open_engine(images_home) as opened:
        yield opened


@pytest.fixture
def template() -> str:
    return "base"


@pytest.fixture
def shape() -> Shape:
    return Shape(1, 512, 4096)


@pytest.fixture
async def sandbox(engine: Engine, template: str, shape: Shape) -> Sandbox:
    return await engine.agent.create(CreateSpec(template, shape))


@pytest.fixture
async def paused_sandbox(engine: Engine, sandbox: Sandbox) -> Sandbox:
    await engine.agent.pause(sandbox.id)
    return sandbox
