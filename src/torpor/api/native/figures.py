"""What sandboxes use: one's metrics, the team's numbers over time, usage by day."""

from __future__ import annotations

import time
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import Query
from starlette.responses import JSONResponse, Response

from torpor.api.native.common import CapsuleId, Given, Reader, router
from torpor.api.native.ids import Prefix, inner, show, stamp
from torpor.api.native.models import Answer, MetricPoints
from torpor.lifecycle.sandbox import FINAL
from torpor.model.errors import InvalidInput, NotFound
from torpor.model.records import TeamSample

figures = router("figures")

SPANS = {"5m": 300.0, "10m": 600.0, "1h": 3600.0, "2h": 7200.0, "6h": 21600.0, "12h": 43200.0, "24h": 86400.0}
STEPS = {"5m": (300.0, 3.0), "1h": (3600.0, 30.0), "6h": (21600.0, 180.0), "24h": (86400.0, 720.0), "30d": (30 * 86400.0, 21600.0)}
MOST_DAYS = 92


class Stats(Answer):
    range: str
    current: dict[str, int]
    peaks: dict[str, int]
    series: dict[str, list[Any]]


class Usage(Answer):
    to: str
    points: list[dict[str, Any]]


@figures.get("/capsules/stats", response_model=Stats)
async def stats(caller: Reader, services: Given, range_: Annotated[Literal["5m", "1h", "6h", "24h", "30d"], Query(alias="range")] = "1h") -> Response:
    """What the team holds now, the most it held in 30 days, and the most of each step of the range."""
    seconds, step = STEPS[range_]
    found = await services.figures.stats(caller, seconds, step)
    series = found.series
    return JSONResponse(
        {
            "range": range_,
            "current": {"running_count": found.current.sandboxes, "vcpus_reserved": found.current.vcpus, "memory_mb_reserved": found.current.memory_mib},
            "peaks": _sample(found.peaks),
            "series": {
                "labels": [stamp(sample.at) for sample in series],
                "running": [sample.running for sample in series],
                "vcpus": [sample.vcpus for sample in series],
                "memory_mb": [sample.memory_mib for sample in series],
            },
        }
    )


def _sample(sample: TeamSample) -> dict[str, int]:
    return {"running_count": sample.running, "vcpus": sample.vcpus, "memory_mb": sample.memory_mib}


Day = Annotated[str | None, Query(max_length=10, description="YYYY-MM-DD in UTC.")]


@figures.get("/capsules/usage", response_model=Usage)
async def usage(caller: Reader, services: Given, from_: Annotated[str | None, Query(alias="from", max_length=10)] = None, to: Day = None) -> Response:
    """What the team used by day; the last 30 days unless given. Days without use are left out."""
    today = datetime.fromtimestamp(time.time(), UTC).date()
    last = _day(to, "to") if to is not None else today
    first = _day(from_, "from") if from_ is not None else last - timedelta(days=min(29, last.toordinal() - 1))
    if first > last or (last - first).days > MOST_DAYS:
        raise InvalidInput(f"from must not come after to, nor more than {MOST_DAYS} days before it.")
    days = await services.figures.usage(caller, first.isoformat(), last.isoformat())
    points = [{"date": day.day, "cpu_minutes": round(day.cpu_minutes, 4), "ram_mb_minutes": round(day.memory_mib_minutes, 4)} for day in days]
    return JSONResponse({"from": first.isoformat(), "to": last.isoformat(), "points": points})


def _day(text: str, name: str) -> date:
    """Raises InvalidInput."""
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).date()
    except ValueError:
        raise InvalidInput(f"{name}: {text!r} is not a day as YYYY-MM-DD.") from None


@figures.get("/capsules/{capsule_id}/metrics", response_model=MetricPoints)
async def metrics(
    capsule_id: CapsuleId,
    caller: Reader,
    services: Given,
    range_: Annotated[Literal["5m", "10m", "1h", "2h", "6h", "12h", "24h"], Query(alias="range")] = "10m",
) -> Response:
    """CPU (percent of all its vCPUs), memory and disk of a sandbox over time; finer the shorter the range: 1 s to 10m, 30 s to 2h, 5 min to 24h. One that has
    ended is a 404."""
    sandbox_id = inner(Prefix.SANDBOX, capsule_id)
    sandbox = await services.sandboxes.get(caller, sandbox_id)
    if sandbox.state in FINAL:
        raise NotFound(f"The sandbox is {sandbox.state.value}.")
    points = await services.figures.points(caller, sandbox_id, SPANS[range_])
    shown = [
        {
            "timestamp_unix": int(point.at),
            "cpu_pct": round(point.cpu_percent / sandbox.shape.vcpus, 2),
            "mem_bytes": point.memory_bytes,
            "disk_bytes": point.disk_bytes,
        }
        for point in points
    ]
    return JSONResponse({"sandbox_id": show(Prefix.SANDBOX, sandbox_id), "range": range_, "points": shown})
