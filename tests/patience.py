"""How long tests wait before they say that something hangs, and for what a busy machine may take its time over."""

from __future__ import annotations

import asyncio

PATIENCE = 100.0
"""Seconds. A guard against hanging, no promise of speed."""


async def gone(pid: int) -> None:
    """Returns when the process has ended, reaped or not; one that was killed may need a moment."""
    while True:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return
        except (FileNotFoundError, ProcessLookupError):
            return
        await asyncio.sleep(0.01)
