"""From samples to the two things a run leaves: a JSON file with everything, and the table in docs/benchmarks.md between its markers. There are two: the
engine's own, and the server's over HTTP."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figures import OVER_HTTP, PERCENTILES, TABLE, Figure, Samples, percentile
from machine import Machine


@dataclass(frozen=True)
class Block:
    """One table of the page. `name` marks its place there; `who` was measured; `suffix` is its file's."""

    name: str
    who: str
    figures: Sequence[Figure]
    suffix: str = ""

    @property
    def begin(self) -> str:
        return f"<!-- {self.name}:begin -->"

    @property
    def end(self) -> str:
        return f"<!-- {self.name}:end -->"

    def path(self, results: Path, machine: Machine, quick: bool) -> Path:
        return results / f"{machine.date}-{machine.kind}{self.suffix}{'-quick' if quick else ''}.json"


ENGINE = Block("bench", "engine", TABLE)
SERVER = Block("bench-http", "over HTTP", OVER_HTTP, "-http")


def result(machine: Machine, samples: Samples, *, quick: bool, seconds: float, block: Block = ENGINE) -> dict[str, Any]:
    """The JSON form. Samples are in order; the engine's and the floor's were taken in turns."""
    figures = [_figure(figure, samples) for figure in block.figures]
    return {"version": 1, "machine": machine.fields(), "quick": quick, "seconds": round(seconds), "figures": figures}


def _figure(figure: Figure, samples: Samples) -> dict[str, Any]:
    engine, floor = samples.engine.get(figure.key, []), samples.floor.get(figure.key, [])
    failed = samples.failed.get(figure.key, [])
    attempts = len(engine) + len(failed)
    return {
        "key": figure.key,
        "title": figure.title,
        "unit": figure.unit,
        "reference": figure.reference,
        "engine": _summary(engine),
        "floor": _summary(floor),
        "success": round(len(engine) / attempts, 4) if attempts else None,
        "errors": failed,
        "ratio": _ratio(engine, floor, figure.percent),
        "target": figure.target,
        "holds": figure.holds(engine, floor, len(failed)),
    }


def _ratio(engine: Sequence[float], floor: Sequence[float], percent: int) -> float | None:
    return round(percentile(engine, percent) / percentile(floor, percent), 3) if engine and floor and percentile(floor, percent) else None


def _summary(samples: Sequence[float]) -> dict[str, Any] | None:
    if not samples:
        return None
    return {"n": len(samples)} | {f"p{percent}": _short(percentile(samples, percent)) for percent in PERCENTILES} | {"samples": [_short(x) for x in samples]}


def _short(value: float) -> float:
    """Three digits behind the point below 10, one above: more was not measured."""
    return round(value, 3 if abs(value) < 10 else 1)


def write(outcome: dict[str, Any], machine: Machine, results: Path, page: Path, block: Block = ENGINE) -> Path:
    """Writes the JSON (a second run of the day replaces the first) and the table; returns the JSON's path."""
    results.mkdir(parents=True, exist_ok=True)
    path = block.path(results, machine, outcome["quick"])
    path.write_text(json.dumps(outcome, indent=1) + "\n")
    text = page.read_text()
    before, rest = text.split(block.begin)
    _, after = rest.split(block.end)
    page.write_text(f"{before}{block.begin}\n{table(outcome, machine, path.name, block)}{block.end}{after}")
    return path


def added(outcome: dict[str, Any], earlier: Path) -> dict[str, Any]:
    """With the figures of an earlier run of the same day that this one did not take, for machines that are not ours for as long as all scenes need."""
    if not earlier.exists():
        return outcome
    known = json.loads(earlier.read_text())
    before = {figure["key"]: figure for figure in known["figures"]}
    figures = [figure if is_taken(figure) else before.get(figure["key"], figure) for figure in outcome["figures"]]
    return outcome | {"figures": figures, "seconds": outcome["seconds"] + known["seconds"]}


def is_taken(figure: dict[str, Any]) -> bool:
    return bool(figure["engine"] or figure["floor"] or figure["errors"])


def table(outcome: dict[str, Any], machine: Machine, source: str, block: Block = ENGINE) -> str:
    """Markdown."""
    size = "small counts (`--quick`)" if outcome["quick"] else "full counts"
    lines = [
        f"{machine.date}, {size}, {outcome['seconds'] // 60} min {outcome['seconds'] % 60} s: {machine.line()}. All samples: `bench/results/{source}`.",
        "",
        f"| figure | unit | N | ok | {block.who} p50 / p95 / p99 | compared with | its p50 / p95 / p99 | ratio | target | holds |",
        "|---|---|--:|--:|--:|---|--:|--:|---|---|",
    ]
    lines += [_row(figure) for figure in outcome["figures"] if is_taken(figure)]
    return "\n".join(lines) + "\n"


def _row(figure: dict[str, Any]) -> str:
    engine, floor = figure["engine"], figure["floor"]
    cells = (
        figure["title"],
        figure["unit"],
        str(engine["n"]) if engine else "0",
        "" if figure["success"] is None else f"{figure['success']:.0%}",
        _three(engine),
        figure["reference"] if floor else "",
        _three(floor),
        "" if figure["ratio"] is None else f"{figure['ratio']:.2f}",
        figure["target"],
        {True: "yes", False: "**no**", None: ""}[figure["holds"]],
    )
    return "| " + " | ".join(cells) + " |"


def _three(summary: dict[str, Any] | None) -> str:
    return " / ".join(f"{summary[f'p{percent}']:g}" for percent in PERCENTILES) if summary else ""
