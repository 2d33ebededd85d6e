"""The packages that are published for the code interpreter, driven each in a process of its own."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from sdk_world import installed

import published

PROGRAMS = Path(__file__).parent / "programs"
NODE = ("@e2b/code-interpreter", "2.8.0")
WRENN_VERSIONS = ("0.1.2", "0.3.0")
SECONDS = 500.0


async def drive_node(variables: Mapping[str, str], home: str, *sections: str) -> None:
    """@e2b/code-interpreter, under Node. `home`: of the sandbox's user. Raises AssertionError with what it said, unless it ends well."""
    folder = await asyncio.to_thread(published.from_npm, *NODE)
    program = folder / "drive_interpreter.mjs"  # a module finds its packages beside itself
    shutil.copyfile(PROGRAMS / program.name, program)
    await published.drive(["node", str(program), home, *sections], sections, SECONDS, variables)


async def drive_wrenn(version: str, url: str, key: str, home: str, *sections: str) -> None:
    """The code runner of wrenn, which finds a port by its name below that of the server."""
    folder = await asyncio.to_thread(installed, version)
    argv = [sys.executable, "-W", "ignore", str(PROGRAMS / "drive_code_runner.py"), url.replace("127.0.0.1", "localhost"), key, home, *sections]
    await published.drive(argv, sections, SECONDS, {"PYTHONPATH": str(folder)})
