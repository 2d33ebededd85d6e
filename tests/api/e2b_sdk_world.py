"""E2B's published SDK packages against a server of ours."""

from __future__ import annotations

import asyncio
import shutil
import sys
from pathlib import Path

import published

PROGRAMS = Path(__file__).parent / "programs"
PYTHON_VERSIONS = ("2.45.1", "2.63.0")
NODE_VERSION = "2.51.0"


def python_package(version: str) -> Path:
    return published.from_pypi(f"e2b-{version}", f"e2b=={version}")


def node_package() -> Path:
    return published.from_npm("e2b", NODE_VERSION)


async def drive(version: str, url: str, key: str, *sections: str, seconds: float = 300) -> None:
    """The Python package. Raises AssertionError with what the program said, unless it ends well."""
    folder = await asyncio.to_thread(python_package, version)
    argv = [sys.executable, "-W", "ignore", str(PROGRAMS / "drive_e2b.py"), *sections]
    await published.drive(argv, sections, seconds, addresses(url, key) | {"PYTHONPATH": str(folder)})


async def drive_node(url: str, key: str, *sections: str, seconds: float = 300) -> None:
    folder = await asyncio.to_thread(node_package)
    program = folder / "drive_e2b.mjs"  # a module finds its packages beside itself
    shutil.copyfile(PROGRAMS / "drive_e2b.mjs", program)
    await published.drive(["node", str(program), *sections], sections, seconds, addresses(url, key))


def addresses(url: str, key: str) -> dict[str, str]:
    """The variables that lead E2B's SDKs to one plain address."""
    return {"E2B_API_URL": url, "E2B_SANDBOX_URL": url, "E2B_API_KEY": key}
