"""From samples to the two things a run leaves: a JSON file with everything, and the table in docs/benchmarks.md between its markers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from figures import PERCENTILES, TABLE, Figure, Samples, percentile
from machine import Machine

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


def result(machine: Machine, samples: Samples, *, quick: bool, seconds: float) -> dict[str, Any]:
    """The JSON form. Samples are in order; the engine's and the floor's were taken in turns."""
    figures = [_figure(figure, samples) for figure in TABLE]
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
        "ratio": round(percentile(engine, 50) / percentile(floor, 50), 3) if engine and floor and percentile(floor, 50) else None,
        "target": figure.target,
        "holds": figure.holds(engine, floor, len(failed)),
    }


def _summary(samples: Sequence[float]) -> dict[str, Any] | None:
    if not samples:
        return None
    return {"n": len(samples)} | {f"p{percent}": _short(percentile(samples, percent)) for percent in PERCENTILES} | {"samples": [_short(x) for x in samples]}


def _short(value: float) -> float:
    """Three digits behind the point below 10, one above: more was not measured."""
    return round(value, 3 if abs(value) < 10 else 1)


def write(outcome: dict[str, Any], machine: Machine, results: Path, page: Path) -> Path:
    """Writes the JSON (a second run of the day replaces the first) and the table; returns the JSON's path."""
    results.mkdir(parents=True, exist_ok=True)
    path = results / f"{machine.date}-{machine.kind}{'-quick' if outcome['quick'] else ''}.json"
    path.write_text(json.dumps(outcome, indent=1) + "\n")
    text = page.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    page.write_text(f"{before}{BEGIN}\n{table(outcome, machine, path.name)}{END}{after}")
    return path


def table(outcome: dict[str, Any], machine: Machine, source: str) -> str:
    """Markdown."""
    size = "small counts (`--quick`)" if outcome["quick"] else "full counts"
    lines = [
        f"{machine.date}, {size}, {outcome['seconds'] // 60} min {outcome['seconds'] % 60} s: {machine.line()}. All samples: `bench/results/{source}`.",
        "",
        "| figure | unit | N | ok | engine p50 / p95 / p99 | compared with | its p50 / p95 / p99 | ratio | target | holds |",
        "|---|---|--:|--:|--:|---|--:|--:|---|---|",
    ]
    lines += [_row(figure) for figure in outcome["figures"] if figure["engine"] or figure["floor"] or figure["errors"]]
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
