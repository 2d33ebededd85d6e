"""The dialect's published SDK, installed where a test says, driven in a process of its own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
PROGRAM = Path(__file__).parent / "programs" / "drive_sdk.py"
NEEDED = ("httpx-ws==0.9.0", "wsproto==1.3.2", "email-validator==2.3.0", "dnspython==2.8.0")
"""What the SDK asks for and we do not have anyway."""


def installed(version: str) -> Path:
    """A directory with that version, kept from run to run. It is marked for a later Python than ours may be, and runs all the same."""
    folder = CHECKOUT / ".work" / "sdk" / version
    if not (folder / "complete").exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--ignore-requires-python", "--upgrade", "--target", str(folder)]
        subprocess.run([*pip, f"wrenn=={version}", *NEEDED], check=True, timeout=300)
        (folder / "complete").touch()
    return folder


async def drive(version: str, url: str, key: str, template: str, *sections: str, seconds: float = 200) -> None:
    """Raises AssertionError with what the program said, unless it ends well."""
    folder = await asyncio.to_thread(installed, version)
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-W",
        "ignore",
        str(PROGRAM),
        url,
        key,
        template,
        *sections,
        env=kept | {"PYTHONPATH": str(folder)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(seconds):
            said, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        said, _ = await process.communicate()
        raise AssertionError(f"The SDK hangs: {said.decode()}") from None
    assert process.returncode == 0, said.decode()
    assert [line.split()[1] for line in said.decode().splitlines() if line.startswith("done ")] == list(sections)
