"""E2B's published SDK packages, installed where a test says, driven in processes of their own."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
PROGRAMS = Path(__file__).parent / "programs"
PYTHON_VERSIONS = ("2.45.1", "2.63.0")
NODE_VERSION = "2.51.0"


def python_package(version: str) -> Path:
    """A directory with that version and what it needs, kept from run to run."""
    folder = CHECKOUT / ".work" / "sdk" / f"e2b-{version}"
    if not (folder / "complete").exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--target", str(folder), f"e2b=={version}"]
        subprocess.run(pip, check=True, timeout=600)
        (folder / "complete").touch()
    return folder


def node_package() -> Path | None:
    """The same of npm's; None on a machine without Node."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        return None
    folder = CHECKOUT / ".work" / "sdk" / f"e2b-npm-{NODE_VERSION}"
    if not (folder / "complete").exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([npm, "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder), f"e2b@{NODE_VERSION}"], check=True, timeout=600)
        (folder / "complete").touch()
    return folder


async def drive(version: str, url: str, key: str, *sections: str, seconds: float = 300) -> None:
    """The Python package. Raises AssertionError with what the program said, unless it ends well."""
    folder = await asyncio.to_thread(python_package, version)
    await _run([sys.executable, "-W", "ignore", str(PROGRAMS / "drive_e2b.py"), *sections], {"PYTHONPATH": str(folder)}, url, key, sections, seconds)


async def drive_node(folder: Path, url: str, key: str, *sections: str, seconds: float = 300) -> None:
    program = folder / "drive_e2b.mjs"  # a module finds its packages beside itself
    shutil.copyfile(PROGRAMS / "drive_e2b.mjs", program)
    await _run(["node", str(program), *sections], {}, url, key, sections, seconds)


async def _run(argv: list[str], more: dict[str, str], url: str, key: str, sections: tuple[str, ...], seconds: float) -> None:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    told = {"E2B_API_URL": url, "E2B_SANDBOX_URL": url, "E2B_API_KEY": key}
    process = await asyncio.create_subprocess_exec(*argv, env=kept | told | more, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
    try:
        async with asyncio.timeout(seconds):
            said, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        said, _ = await process.communicate()
        raise AssertionError(f"The SDK hangs: {said.decode()}") from None
    assert process.returncode == 0, said.decode()
    assert [line.split()[1] for line in said.decode().splitlines() if line.startswith("done ")] == list(sections)
