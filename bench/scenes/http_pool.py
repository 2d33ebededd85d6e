"""S1 from the pool over HTTP, at the server's default size: a create every 2 s, then faster than the pool is filled again."""

from __future__ import annotations

import asyncio
import statistics

from floor import SHELL_TRUE as BARE_SHELL_TRUE
from floor import Clock
from serving import Api, Server
from stage import SHELL_TRUE, Stage, create, kill, run, sandbox

EVERY = 2.0
PRESS = 1.5


async def measure(stage: Stage) -> None:
    """The floor's turn is in the pause between two creates, and over before the next."""
    async with stage.server(TORPOR_POOL_SIZE="0") as server, server.api() as api:
        refill = await _without(stage, api)
    async with stage.server() as server, server.api() as api:
        await _filled(api)
        async with sandbox(api) as (capsule, _):  # what is imported at the first use is no part of any figure
            await run(api, capsule, SHELL_TRUE)
        await asyncio.sleep(EVERY)
        await _paced(stage, api)
        await _pressed(stage, server, refill / PRESS)


async def _without(stage: Stage, api: Api) -> float:
    """Creates without a pool, one after another; the seconds that one and its first command took, which is what a refill costs."""
    took = []
    for number in range(stage.counts.pooled + 1):
        clock = Clock()
        async with stage.attempt("h_pool_pressed"):
            capsule = await create(api)
            await run(api, capsule, SHELL_TRUE)
            if number:
                took.append(clock())
                stage.samples.add("h_pool_pressed", floor=took[-1])
            await kill(api, capsule)
    return statistics.median(took) / 1e3


async def _paced(stage: Stage, api: Api) -> None:
    loop, misses = asyncio.get_running_loop(), 0
    for number in range(stage.counts.pooled):
        stage.say(f"from the pool: {number + 1} of {stage.counts.pooled}")
        began = loop.time()
        async with stage.attempt("h_pooled"):
            clock = Clock()
            capsule = await create(api)
            misses += _missed(clock(), stage)
            await run(api, capsule, SHELL_TRUE)
            stage.samples.add("h_pooled", clock())
            await kill(api, capsule)
        await asyncio.sleep(EVERY / 2)  # the pool is filled again
        await stage.bare(lambda: _bare(stage))
        await asyncio.sleep(max(0.0, began + EVERY - loop.time()))
    stage.samples.add("h_pool_misses", misses / stage.counts.pooled)


async def _pressed(stage: Stage, server: Server, every: float) -> None:
    stage.say(f"from the pool, a create every {every * 1e3:.0f} ms")
    made: list[str] = []
    misses = 0

    async def one() -> None:
        nonlocal misses
        async with stage.attempt("h_pool_pressed"), server.api() as api:
            clock = Clock()
            made.append(await create(api))
            misses += _missed(clock(), stage)
            await run(api, made[-1], SHELL_TRUE)
            stage.samples.add("h_pool_pressed", clock())

    async with asyncio.TaskGroup() as group:
        for _ in range(stage.counts.pooled):
            group.create_task(one())
            await asyncio.sleep(every)
    stage.samples.add("h_pool_pressed_misses", misses / stage.counts.pooled)
    async with server.api() as api:
        await kill(api, *made)


def _missed(took: float, stage: Stage) -> bool:
    """A create that started a machine, by its time: the API does not tell."""
    return took > statistics.median(stage.samples.floor["h_pool_pressed"]) / 2


def _bare(stage: Stage) -> None:
    vm, start = stage.small.start()
    stage.samples.add("h_pooled", floor=start + stage.small.run(vm, BARE_SHELL_TRUE))
    stage.small.kill(vm)


async def _filled(api: Api) -> None:
    """The pool is being filled from the server's start on; creates that are as fast as one from it show that it is."""
    while True:
        clock = Clock()
        capsule = await create(api)
        took = clock()
        await kill(api, capsule)
        if took < 100:
            return
        await asyncio.sleep(EVERY)
