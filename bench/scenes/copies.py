"""S2 and S6: forks of 10, also of a guest with 1 GiB dirty, and 30 starts at once."""

from __future__ import annotations

import asyncio

from floor import Clock, Floor
from setting import LARGE, SHELL_TRUE, SMALL, TEMPLATE, Bench, hold, run
from torpor.host.agent import CreateSpec
from torpor.host.sandbox import Sandbox
from torpor.model.sandbox import NetworkMode
from torpor.model.shapes import Shape
from torpor.ports.guest import Guest

CHILDREN = 10
BURST = 30
LARGE_MIB = 1024


async def measure(bench: Bench) -> None:
    for number in range(bench.counts.fork):
        bench.say(f"fork of {CHILDREN}: round {number + 1} of {bench.counts.fork}")
        await bench.bare(lambda: _bare_fork(bench, bench.small, "fork", 0))
        async with bench.attempt("fork"):
            await _fork(bench, "fork", SMALL, 0)
    for number in range(bench.counts.fork_large):
        bench.say(f"fork of {CHILDREN} with 1 GiB: round {number + 1} of {bench.counts.fork_large}")
        await bench.bare(lambda: _bare_fork(bench, bench.large, "fork_big", LARGE_MIB))
        async with bench.attempt("fork_big"):
            await _fork(bench, "fork_big", LARGE, LARGE_MIB)
    for number in range(bench.counts.burst):
        bench.say(f"{BURST} starts at once: round {number + 1} of {bench.counts.burst}")
        await bench.bare(lambda: _bare_burst(bench))
        await _burst(bench)


def _bare_fork(bench: Bench, floor: Floor, key: str, mib: int) -> None:
    vms, took = floor.start_many(CHILDREN)
    bench.samples.add(key, floor=took)
    floor.kill(*vms)
    source, _ = floor.start()
    if mib:
        source.ask(dirty=mib)
        vms, took = floor.flat_start_many(source, CHILDREN)
    else:
        vms, took = floor.layer_start_many(source, CHILDREN)
    bench.samples.add(f"{key}_bare", floor=took)
    floor.kill(source, *vms)


async def _fork(bench: Bench, key: str, shape: Shape, mib: int) -> None:
    agent = bench.engine.agent
    async with bench.sandbox(shape) as (source, _):
        guest = await source.guest()
        await run(guest, *SHELL_TRUE)
        if mib:
            await hold(guest, mib)
        clock = Clock()
        children = await agent.fork(source.id, CHILDREN)
        took = clock()
        await asyncio.gather(*(agent.kill(child.id) for child in children))
        await agent.idle()
        pulse = _Pulse(guest)  # a load of its own; and ten children's starts would be in what it sees
        children = await agent.fork(source.id)
        stall = await pulse.longest()
        await agent.kill(children[0].id)
    for name in (key, f"{key}_bare"):
        bench.samples.add(name, took)
    bench.samples.add(f"{key}_stall", stall)


class _Pulse:
    """Pings a guest without pause from another task; `longest` ends that and tells the longest answer in milliseconds."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._longest = 0.0
        self._stopping = False
        self._task = asyncio.create_task(self._beat())

    async def _beat(self) -> None:
        while not self._stopping:
            clock = Clock()
            await self._guest.ping()
            self._longest = max(self._longest, clock())

    async def longest(self) -> float:
        self._stopping = True
        await self._task
        return self._longest


def _bare_burst(bench: Bench) -> None:
    vms, took = bench.small.start_many(BURST)
    bench.samples.add("burst", floor=took)
    bench.small.kill(*vms)


async def _burst(bench: Bench) -> None:
    agent = bench.engine.agent
    made: list[Sandbox] = []

    async def one() -> None:
        async with bench.attempt("burst_each"):
            clock = Clock()
            made.append(await agent.create(CreateSpec(TEMPLATE, SMALL, NetworkMode.OFF, pooled=False)))
            bench.samples.add("burst_each", clock())

    clock = Clock()
    try:
        await asyncio.gather(*(one() for _ in range(BURST)))
        bench.samples.add("burst", clock())
    finally:
        await asyncio.gather(*(agent.kill(sandbox.id) for sandbox in made))
