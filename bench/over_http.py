"""The server beside the floor: what `run.py` measures of the engine, through HTTP to a real `torpor serve`, and what only a server has.

python bench/over_http.py [--quick] [--home DIR] [--only SCENE ...]      --home: whose images to use; TORPOR_BENCH_HOME, else .work/bench-home

Leaves bench/results/<date>-<kind of machine>-http.json and the second table in docs/benchmarks.md. With --only the figures of other scenes are those that a
run of the same day left. The exit code tells whether everything that was tried succeeded, never how fast it was.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import report
from figures import Samples
from machine import Machine, look
from run import ROOT, bare_floor, heed_signals, images, opened, say
from scenes import http_api, http_copies, http_files, http_life, http_pool, http_sdk, http_start
from serving import fresh
from setting import FULL, LARGE, QUICK, SMALL, Counts
from stage import INTERPRETER, TEMPLATE, Stage
from torpor.apps.settings import Settings, resolve

SCENES = {
    "start": http_start,
    "life": http_life,
    "pool": http_pool,
    "copies": http_copies,
    "files": http_files,
    "api": http_api,
    "sdk": http_sdk,
}


async def measure(settings: Settings, home: Path, counts: Counts, scenes: list[str], work: Path) -> tuple[Machine, Samples]:
    heed_signals()
    samples = Samples()
    for name in (TEMPLATE, INTERPRETER) if "sdk" in scenes else (TEMPLATE,):
        await images(settings, name)
    own = resolve({"home": str(home)})
    fresh(home, settings.home.absolute() / "images")
    with ExitStack() as floors:
        async with opened(own, 0) as engine:
            say("making warm images")
            for shape in (SMALL, LARGE):
                await engine.agent.warm(TEMPLATE, shape)
            if "sdk" in scenes:
                await engine.agent.warm(INTERPRETER, SMALL)
            small, large = [floors.enter_context(await asyncio.to_thread(bare_floor, engine, work, shape, TEMPLATE)) for shape in (SMALL, LARGE)]
            probe = await engine.vmm.probe()
            machine = look(probe.accelerator.value, f"{probe.kind} {probe.version}", datetime.date.today().isoformat())
        for name in scenes:
            await _scene(name, own, Stage(home, small, large, counts, samples, say))
    return machine, samples


async def _scene(name: str, own: Settings, stage: Stage) -> None:
    """Each begins with empty records; whatever it leaves is killed."""
    fresh(stage.home, stage.home / "images")
    try:
        await SCENES[name].measure(stage)
    finally:
        async with opened(own, 0):
            pass


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small counts")
    parser.add_argument("--home", type=Path, default=Path(os.environ.get("TORPOR_BENCH_HOME", ROOT / ".work" / "bench-home")))
    parser.add_argument("--only", nargs="+", choices=SCENES, help="these scenes")
    options = parser.parse_args()
    started = time.monotonic()
    beside = options.home.absolute().parent
    scenes = [name for name in SCENES if not options.only or name in options.only]
    work = measure(resolve({"home": str(options.home)}), beside / "bench-http", QUICK if options.quick else FULL, scenes, beside / "bench-http-floor")
    machine, samples = asyncio.run(work)
    outcome = report.result(machine, samples, quick=options.quick, seconds=time.monotonic() - started, block=report.SERVER)
    results = ROOT / "bench" / "results"
    if options.only:
        outcome = report.added(outcome, report.SERVER.path(results, machine, options.quick))
    say(f"wrote {report.write(outcome, machine, results, ROOT / 'docs' / 'benchmarks.md', report.SERVER)}")
    for key, errors in samples.failed.items():
        say(f"{len(errors)} failed at {key}: {errors[0]}")
    return 1 if samples.failed else 0


if __name__ == "__main__":
    sys.exit(main())
