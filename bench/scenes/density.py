"""S7: many idle sandboxes at once, and what each costs beyond its VMM: the growth of this process, which is the daemon here, and of the keeper."""

from __future__ import annotations

import asyncio
import gc
import os

from machine import cpu_seconds, parent, private_bytes
from setting import SMALL, TEMPLATE, Bench
from torpor.host.agent import CreateSpec
from torpor.host.sandbox import Sandbox
from torpor.model.errors import TorporError
from torpor.model.sandbox import NetworkMode

AT_ONCE = 4


async def measure(bench: Bench) -> None:
    agent = bench.engine.agent
    async with bench.sandbox() as (first, _):
        keeper = _keeper(first)
        before = _memory(keeper)
        sandboxes = await _create(bench)
        try:
            await _watch(bench, sandboxes, keeper, before)
        finally:
            await asyncio.gather(*(agent.kill(sandbox.id) for sandbox in sandboxes))


async def _create(bench: Bench) -> list[Sandbox]:
    made: list[Sandbox] = []
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        async with turns:
            bench.say(f"idle sandboxes: {number + 1} of {bench.counts.density}")
            try:
                made.append(await bench.engine.agent.create(CreateSpec(TEMPLATE, SMALL, NetworkMode.OFF, pooled=False)))
            except TorporError as error:
                bench.samples.fail("density", error)

    await asyncio.gather(*(one(number) for number in range(bench.counts.density)))
    return made


async def _watch(bench: Bench, sandboxes: list[Sandbox], keeper: int | None, before: int) -> None:
    await bench.engine.agent.idle()
    count = len(sandboxes)
    vmms = [sandbox.machine.region.pid for sandbox in sandboxes if sandbox.machine is not None]
    memory = _memory(keeper) - before
    own, others = _cpu(keeper), [cpu_seconds(pid) for pid in vmms]
    await asyncio.sleep(bench.counts.window)
    own = _cpu(keeper) - own
    for pid, earlier in zip(vmms, others, strict=True):
        bench.samples.add("vmm_cpu", (cpu_seconds(pid) - earlier) / bench.counts.window * 100)
        bench.samples.add("vmm_memory", private_bytes(pid) / 1e6)
    bench.samples.add("idle_cpu", own / bench.counts.window / count * 100)
    bench.samples.add("idle_memory", memory / count / 1e6)
    for sandbox in sandboxes:
        async with bench.attempt("density"):
            await (await sandbox.guest()).ping()
    bench.samples.add("density", count)


def _keeper(sandbox: Sandbox) -> int | None:
    """The process between us and the VMM, if there is one."""
    assert sandbox.machine is not None
    pid = parent(sandbox.machine.region.pid)
    return None if pid == os.getpid() else pid


def _memory(keeper: int | None) -> int:
    gc.collect()
    return private_bytes(os.getpid()) + (private_bytes(keeper) if keeper else 0)


def _cpu(keeper: int | None) -> float:
    return cpu_seconds(os.getpid()) + (cpu_seconds(keeper) if keeper else 0.0)
