"""`torpor host`: the home's host agent as a process of its own. Sandboxes outlive it; the next owner of the home takes them back."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

from torpor.apps.engine import Engine
from torpor.apps.local import LocalServer
from torpor.apps.priority import come_first
from torpor.apps.settings import Settings
from torpor.host.pool import Kind
from torpor.model.sandbox import NetworkMode
from torpor.model.shapes import Shape
from torpor.ports.images import Progress

STOCKED = "base"


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
        if settings.pool_size:
            engine.agent.pool.stock(Kind(STOCKED, Shape(), NetworkMode.OFF))
        say(f"The host agent of {settings.home} is ready.")
        await stop.wait()
        say("Stopping; sandboxes run on.")
