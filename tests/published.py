"""Published packages, installed where the tests say and kept from run to run, and the programs of ours that drive them, each in a process of its own.

What lies in the folder of a package that was not finished is put there again.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
_KEPT = ("PATH", "HOME", "LANG")


def environment(**more: str) -> dict[str, str]:
    """A user's, with nothing of the tests' own but what is told."""
    return {name: os.environ[name] for name in _KEPT if name in os.environ} | more


def from_pypi(name: str, *requirements: str, loosely: bool = False) -> Path:
    """A directory with these, for PYTHONPATH. `loosely`: without what they depend on, and also where they are marked for another Python."""
    how = ["--no-deps", "--ignore-requires-python"] if loosely else []
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--root-user-action=ignore", "--upgrade", *how]
    return _once(name, lambda folder: [*pip, "--target", str(folder), *requirements])


def from_npm(package: str, version: str) -> Path:
    """A directory with that version under node_modules. Needs Node.js with npm."""
    npm = shutil.which("npm")
    assert npm is not None, "this test needs Node.js with npm"
    install = [npm, "install", "--silent", "--no-audit", "--no-fund"]
    # Node.js has certificates of its own; what the machine's owner trusts as well stands in the system's.
    trusted = {"NODE_EXTRA_CA_CERTS": authorities} if (authorities := ssl.get_default_verify_paths().cafile) else {}
    return _once(f"{package}-npm-{version}", lambda folder: [*install, "--prefix", str(folder), f"{package}@{version}"], trusted)


def _once(name: str, command: Callable[[Path], Sequence[str]], variables: Mapping[str, str] | None = None) -> Path:
    folder = CHECKOUT / ".work" / "sdk" / name
    with alone(folder):
        if not (folder / "complete").exists():
            subprocess.run(command(folder), check=True, timeout=600, env=dict(variables or {}) | os.environ)
            (folder / "complete").touch()
    return folder


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Makes the directory; other processes that run tests side by side with this one wait."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / f"{folder.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


async def drive(argv: Sequence[str], sections: Sequence[str], seconds: float, variables: Mapping[str, str]) -> None:
    """Runs a program that prints `done SECTION` after each of its sections. Raises AssertionError with what it said, unless it ends well."""
    process = await asyncio.create_subprocess_exec(
        *argv, env=environment(**variables), stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(seconds):
            said, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        said, _ = await process.communicate()
        raise AssertionError(f"The program hangs: {said.decode()}") from None
    assert process.returncode == 0, said.decode()
    assert [line.split()[1] for line in said.decode().splitlines() if line.startswith("done ")] == list(sections)
