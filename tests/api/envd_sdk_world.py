"""The published E2B SDKs, installed where a test says, driven in processes of their own."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
PROGRAMS = Path(__file__).parent / "programs"


def installed(version: str) -> Path:
    """A directory with that version from PyPI and what it needs, kept from run to run."""
    folder = CHECKOUT / ".work" / "sdk" / f"e2b-{version}"
    if not (folder / "complete").exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--target", str(folder)]
        subprocess.run([*pip, f"e2b=={version}"], check=True, timeout=600)
        (folder / "complete").touch()
    return folder


def installed_for_node(version: str) -> Path:
    """The entry of that version from npm."""
    folder = CHECKOUT / ".work" / "sdk" / f"e2b-node-{version}"
    if not (folder / "complete").exists():
        folder.mkdir(parents=True, exist_ok=True)
        npm = shutil.which("npm")
        assert npm is not None, "this test needs Node.js with npm"
        subprocess.run([npm, "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder), f"e2b@{version}"], check=True, timeout=600)
        (folder / "complete").touch()
    return folder / "node_modules" / "e2b" / "dist" / "index.mjs"


async def drive_python(version: str, url: str, sandbox: str, home: Path, *sections: str) -> None:
    """Raises AssertionError with what the program said, unless it ends well."""
    folder = await asyncio.to_thread(installed, version)
    await _drive([sys.executable, "-W", "ignore", str(PROGRAMS / "drive_envd.py"), sandbox, str(home), *sections], url, sections, PYTHONPATH=str(folder))


async def drive_node(version: str, url: str, sandbox: str, home: Path, *sections: str) -> None:
    entry = await asyncio.to_thread(installed_for_node, version)
    await _drive(["node", str(PROGRAMS / "drive_envd.mjs"), str(entry), sandbox, str(home), *sections], url, sections)


async def _drive(argv: list[str], url: str, sections: tuple[str, ...], **variables: str) -> None:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    told = {"E2B_API_URL": url, "E2B_SANDBOX_URL": url, "E2B_API_KEY": "e2b_" + "0" * 40}
    process = await asyncio.create_subprocess_exec(
        *argv, env=kept | told | variables, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(250):
            said, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        said, _ = await process.communicate()
        raise AssertionError(f"The SDK hangs: {said.decode()}") from None
    assert process.returncode == 0, said.decode()
    assert [line.split()[1] for line in said.decode().splitlines() if line.startswith("done ")] == list(sections)
