"""`torpor host`: the home's host agent as a process of its own. Sandboxes outlive it; the next owner of the home takes them back."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

from torpor.apps.engine import Engine
from torpor.apps.local import LocalServer
from torpor.apps.priority import come_first
from torpor.apps.settings import Settings
from torpor.apps.stock import STOCKED, stock
from torpor.ports.images import Progress


def main(settings: Settings, progress: Progress, say: Callable[[str], None]) -> None:
    """Serves until SIGTERM or SIGINT. Raises HomeBusy when the home has an owner."""
    asyncio.run(serve(settings, progress, say))


async def serve(settings: Settings, progress: Progress, say: Callable[[str], None]) -> None:
    come_first()
    engine = Engine(settings, pool_size=settings.pool_size)
    engine.lock()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await engine.ensure(STOCKED, progress)
    async with engine, LocalServer(engine, settings.home):
        await stock(engine)
        say(f"The host agent of {settings.home} is ready.")
        await stop.wait()
        say("Stopping; sandboxes run on.")
