"""The native dialect's published SDK, driven in a process of its own."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import published

PROGRAM = Path(__file__).parent / "programs" / "drive_sdk.py"
NEEDED = ("httpx-ws==0.9.0", "wsproto==1.3.2", "email-validator==2.3.0", "dnspython==2.8.0")
"""What the SDK asks for and we do not have anyway."""


def installed(version: str) -> Path:
    """It is marked for a later Python than ours may be, and runs all the same."""
    return published.from_pypi(version, f"wrenn=={version}", *NEEDED, loosely=True)


async def drive(version: str, url: str, key: str, template: str, *sections: str, seconds: float = 200) -> None:
    """Raises AssertionError with what the program said, unless it ends well."""
    folder = await asyncio.to_thread(installed, version)
    argv = [sys.executable, "-W", "ignore", str(PROGRAM), url, key, template, *sections]
    await published.drive(argv, sections, seconds, {"PYTHONPATH": str(folder)})
