"""S1 from the pool: one create after another, each when the pool is full again. The floor is a bare start with its first command."""

from __future__ import annotations

from floor import SHELL_TRUE as BARE_SHELL_TRUE
from floor import Clock
from setting import SHELL_TRUE, SMALL, TEMPLATE, Bench, run
from torpor.host.agent import CreateSpec
from torpor.host.pool import Kind
from torpor.model.sandbox import NetworkMode


async def measure(bench: Bench) -> None:
    """Needs an engine with a pool."""
    agent = bench.engine.agent
    agent.pool.stock(Kind(TEMPLATE, SMALL, NetworkMode.OFF))
    for number in range(bench.counts.pooled):
        bench.say(f"from the pool: {number + 1} of {bench.counts.pooled}")
        await agent.pool.filled()
        await bench.bare(lambda: _bare(bench))
        async with bench.attempt("pooled"):
            clock = Clock()
            sandbox = await agent.create(CreateSpec(TEMPLATE, SMALL, NetworkMode.OFF))
            await run(await sandbox.guest(), *SHELL_TRUE)
            bench.samples.add("pooled", clock())
            await agent.kill(sandbox.id)
    bench.samples.add("pool_misses", agent.pool.misses / max(1, agent.pool.hits + agent.pool.misses))


def _bare(bench: Bench) -> None:
    vm, start = bench.small.start()
    bench.samples.add("pooled", floor=start + bench.small.run(vm, BARE_SHELL_TRUE))
    bench.small.kill(vm)
