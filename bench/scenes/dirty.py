"""S4 and S5 of a guest that has written: rates of pause and put-back against the bare loops, what is stored of what was given back, re-based resumes."""

from __future__ import annotations

from dataclasses import dataclass

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
        await bench.bare(lambda: bench.samples.add("pause_rate", floor=_bare_rate(bench.small, PAUSE_MIB)))
        async with bench.attempt("pause_rate"):
            await _rate(bench)
        async with bench.attempt("freed_size"):
            await _freed(bench)
    for number in range(bench.counts.large):
        bench.say(f"1 GiB of written memory: round {number + 1} of {bench.counts.large}")
        await bench.bare(lambda: bench.samples.add("pause_big", floor=_bare_rate(bench.large, LARGE_MIB)))
        async with bench.attempt("resume_big"):
            await _large(bench)


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
