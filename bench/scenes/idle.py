"""S1, S3, and S4 and S5 of an idle guest: start, first command, commands after it, pause, resume. The floor's round and the engine's take turns."""

from __future__ import annotations

from floor import SHELL_TRUE as BARE_SHELL_TRUE
from floor import TRUE
from setting import SHELL_TRUE, Bench, run, spawn_inside

COMMANDS = 8


async def measure(bench: Bench) -> None:
    for number in range(bench.counts.idle):
        bench.say(f"start, exec, pause, resume: round {number + 1} of {bench.counts.idle}")
        await bench.bare(lambda: _bare(bench))
        async with bench.attempt("start"):
            await _engine(bench)


def _bare(bench: Bench) -> None:
    samples, floor = bench.samples, bench.small
    vm, start = floor.start()
    first = floor.run(vm, BARE_SHELL_TRUE)
    samples.add("start", floor=start)
    samples.add("first_exec", floor=first)
    samples.add("first_result", floor=start + first)
    for _ in range(COMMANDS):
        samples.add("exec_shell", floor=floor.run(vm, BARE_SHELL_TRUE))
    floor.run(vm, TRUE)
    for took in floor.spawn(vm, COMMANDS + 1)[1:]:
        samples.add("exec_true", floor=took)
        samples.add("spawn_inside", floor=took)
    for _ in range(COMMANDS):
        samples.add("exec_bare", floor=floor.run(vm, TRUE))
    parts, layer, pause = floor.pause(vm)
    samples.add("pause", floor=pause)
    samples.add("pause_size", floor=layer.size / 1e6)
    vm, resume = floor.start(parts, layer)
    samples.add("resume_bare", floor=resume)
    floor.kill(vm)


async def _engine(bench: Bench) -> None:
    samples = bench.samples
    async with bench.sandbox() as (sandbox, start):
        guest = await sandbox.guest()
        first = await run(guest, *SHELL_TRUE)
        samples.add("start", start)
        samples.add("first_exec", first)
        samples.add("first_result", start + first)
        samples.add("resume", floor=start)
        for _ in range(COMMANDS):
            samples.add("exec_shell", await run(guest, *SHELL_TRUE))
        await run(guest, *TRUE)
        for _ in range(COMMANDS):
            took = await run(guest, *TRUE)
            samples.add("exec_true", took)
            samples.add("exec_bare", took)
        stored, pause = await bench.pause(sandbox)
        samples.add("pause", pause)
        samples.add("pause_size", stored / 1e6)
        resume = await bench.resume(sandbox)
        samples.add("resume", resume)
        samples.add("resume_bare", resume)
        for took in await spawn_inside(await sandbox.guest(), COMMANDS):
            samples.add("spawn_inside", took)
