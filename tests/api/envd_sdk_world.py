"""E2B's published SDK packages against the data plane of one sandbox."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from e2b_sdk_world import PROGRAMS, addresses, node_package, python_package

import published

_KEY = "e2b_" + "0" * 40
_SECONDS = 250


async def drive_python(version: str, url: str, sandbox: str, home: Path, *sections: str) -> None:
    """Raises AssertionError with what the program said, unless it ends well."""
    folder = await asyncio.to_thread(python_package, version)
    argv = [sys.executable, "-W", "ignore", str(PROGRAMS / "drive_envd.py"), sandbox, str(home), *sections]
    await published.drive(argv, sections, _SECONDS, addresses(url, _KEY) | {"PYTHONPATH": str(folder)})


async def drive_node(url: str, sandbox: str, home: Path, *sections: str) -> None:
    entry = await asyncio.to_thread(node_package) / "node_modules" / "e2b" / "dist" / "index.mjs"
    argv = ["node", str(PROGRAMS / "drive_envd.mjs"), str(entry), sandbox, str(home), *sections]
    await published.drive(argv, sections, _SECONDS, addresses(url, _KEY))
