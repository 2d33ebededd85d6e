"""`make bench`: the engine beside the floor, in turns, in one process, on one home.

python bench/run.py [--quick] [--home DIR] [--only SCENE ...]      --home: TORPOR_BENCH_HOME, else .work/bench-home

Leaves bench/results/<date>-<kind of machine>.json and the table in docs/benchmarks.md; with --only it prints the table instead. The exit code tells whether
everything that was tried succeeded, never how fast it was.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import report
from bare.image import prepare
from figures import Samples
from floor import Floor
from machine import Machine, look
from scenes import channel, copies, density, dirty, idle, interpreter, pool, proxy
from setting import FULL, LARGE, QUICK, SMALL, TEMPLATE, Bench, Counts
from torpor.apps.engine import Engine
from torpor.apps.settings import Settings, resolve
from torpor.model.shapes import Shape

SCENES = {
    "density": density,
    "idle": idle,
    "channel": channel,
    "dirty": dirty,
    "copies": copies,
    "proxy": proxy,
    "pool": pool,
    "interpreter": interpreter,
}
"""In this order: what sandboxes cost this process shows only while its heap has not held many before."""
POOLED = ("pool", "interpreter")
"""Scenes whose engine has a pool."""
ROOT = Path(__file__).parent.parent


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@asynccontextmanager
async def opened(settings: Settings, pool_size: int) -> AsyncIterator[Engine]:
    """An engine on the home, with whatever an earlier run left there killed."""
    engine = Engine(settings, pool_size=pool_size)
    engine.lock()
    async with engine:
        for record in engine.agent.records():
            await engine.agent.kill(record.id)
        yield engine


def heed_signals() -> None:
    """SIGTERM ends the run with nothing left behind; SIGUSR1 shows where every task stands."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    loop.add_signal_handler(signal.SIGUSR1, _show_tasks)


def _show_tasks() -> None:
    for task in asyncio.all_tasks():
        task.print_stack()


async def measure(settings: Settings, counts: Counts, scenes: list[str], work: Path) -> tuple[Machine, Samples]:
    heed_signals()
    samples = Samples()
    await images(settings, TEMPLATE)
    with ExitStack() as floors:
        async with opened(settings, 0) as engine:
            say("making warm images")
            for shape in (SMALL, LARGE):
                await engine.agent.warm(TEMPLATE, shape)
            small, large = [floors.enter_context(await asyncio.to_thread(bare_floor, engine, work, shape, TEMPLATE)) for shape in (SMALL, LARGE)]
            probe = await engine.vmm.probe()
            machine = look(probe.accelerator.value, f"{probe.kind} {probe.version}", datetime.date.today().isoformat())
            for name in scenes:
                if name not in POOLED:
                    await SCENES[name].measure(Bench(engine, small, large, counts, samples, say))
            await engine.agent.idle()
        for name in (name for name in scenes if name in POOLED):
            async with opened(settings, settings.pool_size) as engine:
                await SCENES[name].measure(Bench(engine, small, large, counts, samples, say))
    return machine, samples


async def images(settings: Settings, template: str) -> None:
    """Builds the template when the home has none."""
    engine = Engine(settings)
    engine.lock()
    try:
        await engine.ensure(template, lambda what, done: say(f"{done:4.0%} {what}"))
    finally:
        engine.unlock()
        engine.processes.close()


def bare_floor(engine: Engine, work: Path, shape: Shape, template: str) -> Floor:
    boot = engine.images.boot()
    return Floor(prepare(work, boot.kernel, boot.initrd, engine.images.template(template).disk, shape.memory_mib), work)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small counts")
    parser.add_argument("--home", type=Path, default=Path(os.environ.get("TORPOR_BENCH_HOME", ROOT / ".work" / "bench-home")))
    parser.add_argument("--only", nargs="+", choices=SCENES, help="these scenes, and print the table instead of writing it")
    options = parser.parse_args()
    started = time.monotonic()
    settings = resolve({"home": str(options.home)})
    counts = QUICK if options.quick else FULL
    machine, samples = asyncio.run(
        measure(settings, counts, [name for name in SCENES if not options.only or name in options.only], options.home.absolute().parent / "bench-floor")
    )
    outcome = report.result(machine, samples, quick=options.quick, seconds=time.monotonic() - started)
    if options.only:
        print(report.table(outcome, machine, "-"))
    else:
        say(f"wrote {report.write(outcome, machine, ROOT / 'bench' / 'results', ROOT / 'docs' / 'benchmarks.md')}")
    for key, errors in samples.failed.items():
        say(f"{len(errors)} failed at {key}: {errors[0]}")
    return 1 if samples.failed else 0


if __name__ == "__main__":
    sys.exit(main())
