"""`make down`: ends the home's host agent, pauses every sandbox that runs, and leaves nothing running. Paused sandboxes can be resumed by the next owner."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import sys

from torpor.apps.engine import Engine
from torpor.apps.settings import Settings, resolve
from torpor.log import configure
from torpor.model.errors import HomeBusy, TorporError
from torpor.model.sandbox import MachineState

PATIENCE = 60
"""Seconds an owner is given to let go of its home."""


async def down(settings: Settings) -> int:
    """Returns how many sandboxes were paused. Raises HomeBusy when the owner does not let go in PATIENCE seconds."""
    if not settings.home.exists():
        return 0
    engine = Engine(settings)
    try:
        engine.lock()
    except HomeBusy:
        await asyncio.to_thread(_end_owner, settings)
        engine.lock()
    async with engine:
        running = [record.id for record in engine.agent.records() if record.state is MachineState.READY]
        await asyncio.gather(*(engine.agent.pause(sandbox_id) for sandbox_id in running))
        await engine.agent.idle()
    return len(running)


def _end_owner(settings: Settings) -> None:
    """SIGTERM to the process that holds the lock, and its end awaited by pidfd."""
    try:
        pid = json.loads((settings.home / "host.lock").read_text())["pid"]
        pidfd = os.pidfd_open(pid)
    except (ValueError, KeyError, ProcessLookupError):
        return
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        if not select.select([pidfd], [], [], PATIENCE)[0]:
            raise HomeBusy(f"Process {pid} did not let go of {settings.home} within {PATIENCE} s.")
    finally:
        os.close(pidfd)


def main() -> None:
    try:
        settings = resolve()
        configure(settings.log_level)
        paused = asyncio.run(down(settings))
    except TorporError as error:
        print(f"torpor: {error}", file=sys.stderr)
        sys.exit(1)
    print(f"torpor: nothing runs any more; {paused} sandboxes were paused.")


if __name__ == "__main__":
    main()
