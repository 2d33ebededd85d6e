"""S4 and S5 of a guest that has written: rates of pause and put-back against the bare loops, what is stored of what was given back, re-based resumes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from floor import Floor
from setting import LARGE, SHELL_TRUE, Bench, hold, run

LAYER_MIB, PAUSE_MIB, LARGE_MIB = 48, 256, 1024
WRITE_AND_FREE = """
import os
held = bytearray(os.urandom(1 << 20)) * 300
del held
with open("/root/written", "wb") as file:
    for _ in range(300):
        file.write(os.urandom(1 << 20))
    file.flush()
    os.fsync(file.fileno())
os.unlink("/root/written")
"""


@dataclass(frozen=True)
class _Idle:
    """The idle pause and resume in the same sandbox that the figures are taken over."""

    stored: int
    resume: float


async def measure(bench: Bench) -> None:
    for number in range(bench.counts.dirty):
        bench.say(f"written memory: round {number + 1} of {bench.counts.dirty}")
        await bench.bare(lambda: _bare_layer(bench))
        async with bench.attempt("resume_layer"):
            await _layer(bench)
        for one in _in_turns(number, _bare_pause(bench, bench.small, "pause_rate", PAUSE_MIB), _attempt(bench, "pause_rate", _rate)):
            await one
        async with bench.attempt("freed_size"):
            await _freed(bench)
    for number in range(bench.counts.large):
        bench.say(f"1 GiB of written memory: round {number + 1} of {bench.counts.large}")
        for one in _in_turns(number, _bare_pause(bench, bench.large, "pause_big", LARGE_MIB), _attempt(bench, "resume_big", _large)):
            await one


def _in_turns(number: int, bare: Coroutine[Any, Any, None], engine: Coroutine[Any, Any, None]) -> tuple[Coroutine[Any, Any, None], ...]:
    """Who writes to the disk first changes from round to round: a virtual disk is often fast for so many bytes and slow from then on."""
    return (engine, bare) if number % 2 else (bare, engine)


async def _bare_pause(bench: Bench, floor: Floor, key: str, mib: int) -> None:
    await bench.bare(lambda: bench.samples.add(key, floor=_bare_rate(floor, mib)))


async def _attempt(bench: Bench, key: str, scene: Callable[[Bench], Awaitable[None]]) -> None:
    async with bench.attempt(key):
        await scene(bench)


def _bare_layer(bench: Bench) -> None:
    floor = bench.small
    vm, _ = floor.start()
    vm.ask(dirty=LAYER_MIB)
    parts, layer, _ = floor.pause(vm)
    vm, took = floor.start(parts, layer)
    bench.samples.add("resume_layer", floor=took)
    floor.kill(vm)
    bench.samples.add("put_back_rate", floor=floor.put_back_rate(layer) / 1e6)


async def _idle(bench: Bench) -> _Idle:
    async with bench.sandbox() as (sandbox, _):
        await run(await sandbox.guest(), *SHELL_TRUE)
        stored, _ = await bench.pause(sandbox)
        return _Idle(stored, await bench.resume(sandbox))


async def _layer(bench: Bench) -> None:
    idle = await _idle(bench)
    async with bench.sandbox() as (sandbox, _):
        await hold(await sandbox.guest(), LAYER_MIB)
        stored, _ = await bench.pause(sandbox)
        took = await bench.resume(sandbox)
    bench.samples.add("resume_layer", took)
    if took > idle.resume:
        bench.samples.add("put_back_rate", (stored - idle.stored) / (took - idle.resume) / 1e3)


def _bare_rate(floor: Floor, mib: int) -> float:
    vm, _ = floor.start()
    vm.ask(dirty=mib)
    _, rate = floor.write_rate(vm)
    floor.kill(vm)
    return rate / 1e6


async def _rate(bench: Bench) -> None:
    async with bench.sandbox() as (sandbox, _):
        await hold(await sandbox.guest(), PAUSE_MIB)
        stored, took = await bench.pause(sandbox)
        bench.samples.add("pause_rate", stored / took / 1e3)


async def _freed(bench: Bench) -> None:
    """All bytes the pause stored, memory and disk, against those of an idle sandbox."""
    stored: list[int] = []
    for code in ("", WRITE_AND_FREE):
        async with bench.sandbox() as (sandbox, _):
            await run(await sandbox.guest(), "/usr/bin/python3", "-I", "-S", "-c", code)
            await bench.pause(sandbox)
            stored.append(bench.engine.agent.context.snapshots.get(sandbox.record.artefact_id).stored_bytes)
    bench.samples.add("freed_size", (stored[1] - stored[0]) / 1e6)


async def _large(bench: Bench) -> None:
    async with bench.sandbox(LARGE) as (sandbox, create):
        bench.samples.add("resume_big", floor=create)
        await hold(await sandbox.guest(), LARGE_MIB)
        stored, took = await bench.pause(sandbox)
        bench.samples.add("pause_big", stored / took / 1e3)
        bench.samples.add("resume_big", await bench.resume(sandbox))
