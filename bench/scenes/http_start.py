"""S10: `torpor serve` until it serves, with templates present and with sandboxes that run on through its restart; `torpor --help`."""

from __future__ import annotations

import asyncio
import subprocess

from floor import Clock
from serving import TORPOR
from stage import SHELL_TRUE, Stage, create, kill, run

AT_ONCE = 4


async def measure(stage: Stage) -> None:
    for number in range(stage.counts.idle):
        stage.say(f"start of the server: round {number + 1} of {stage.counts.idle}")
        clock = Clock()
        await asyncio.to_thread(lambda: subprocess.run([TORPOR, "--help"], check=True, stdout=subprocess.DEVNULL))
        stage.samples.add("h_help", clock())
        async with stage.server() as server:
            stage.samples.add("h_ready", server.took)
    async with stage.attempt("h_adopt"):
        await _adopt(stage)


async def _adopt(stage: Stage) -> None:
    capsules: list[str] = []
    turns = asyncio.Semaphore(AT_ONCE)
    async with stage.server(TORPOR_POOL_SIZE="0") as server:

        async def one() -> None:
            async with turns, server.api() as api:
                capsules.append(await create(api))
                stage.say(f"running sandboxes: {len(capsules)} of {stage.counts.density}")

        await asyncio.gather(*(one() for _ in range(stage.counts.density)))
    for number in range(stage.counts.channel):
        stage.say(f"restart with {len(capsules)} sandboxes: {number + 1} of {stage.counts.channel}")
        async with stage.server(TORPOR_POOL_SIZE="0") as server:
            stage.samples.add("h_adopt", server.took)
            async with server.api() as api:
                for capsule in capsules:
                    async with stage.attempt("h_adopted"):
                        await run(api, capsule, SHELL_TRUE)
    async with stage.server(TORPOR_POOL_SIZE="0") as server, server.api() as api:
        await kill(api, *capsules)
    stage.samples.add("h_adopted", len(capsules))
