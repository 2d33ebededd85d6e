"""What sandboxes use, and what happened to them.

Figures are the host's, in the guest's terms: memory and disk that the machine holds, of what it was promised; CPU in percent of all its vCPUs. A log is what
torpor knows of a sandbox's life; what its programs write stays in it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Annotated

from fastapi import Query
from starlette.responses import JSONResponse, Response

from torpor.api.e2b.common import Given, Json, Reader, found, router, sandbox_id, stamp
from torpor.api.services import Services
from torpor.model.errors import InvalidInput, NotFound
from torpor.model.records import Event, MetricPoint, Sandbox
from torpor.service.caller import Caller

figures = router()
STEP = 5
"""Seconds between the samples that are told."""
DAY = 86400.0
_MOST_BULK = 100
_MOST_LINES = 1000
_LEVELS = ("debug", "info", "warn", "error")
Milliseconds = Annotated[int | None, Query(ge=0, le=1 << 50)]
Second = Annotated[int | None, Query(ge=0, le=1 << 40)]


@figures.get("/sandboxes/metrics")
async def bulk(caller: Reader, services: Given, sandbox_ids: Annotated[list[str], Query()]) -> Response:
    """The latest of each; one that is unknown or uses nothing is left out."""
    ids = [one for each in sandbox_ids for one in each.split(",") if one]
    if not 1 <= len(ids) <= _MOST_BULK:
        raise InvalidInput(f"sandbox_ids: 1 to {_MOST_BULK} of them.")
    told = {}
    for one in ids:
        try:
            sandbox = await found(services, caller, one)
            points = await services.figures.points(caller, sandbox.id, 2 * STEP)
        except NotFound:
            continue
        if points:
            told[one] = metric(sandbox, points[-1])
    return JSONResponse({"sandboxes": told})


@figures.get("/sandboxes/{segment}/metrics")
async def metrics(segment: str, caller: Reader, services: Given, start: Second = None, end: Second = None) -> Response:
    """In seconds since the epoch, both included; the last hour unless given."""
    sandbox = await found(services, caller, segment)
    now = time.time()
    last = now if end is None else float(end)
    first = max(min(now, last) - 3600, sandbox.created_at) if start is None else float(start)
    if first > last and start is not None and end is not None:
        raise InvalidInput("start comes after end.")
    span = min(max(1.0, now - first), DAY)
    points = await services.figures.points(caller, sandbox.id, span)
    return JSONResponse([metric(sandbox, point) for point in _thinned([point for point in points if first <= point.at <= last + 1])])


def _thinned(points: Sequence[MetricPoint]) -> list[MetricPoint]:
    """The last of each STEP seconds."""
    return list({point.at // STEP: point for point in points}.values())


def metric(sandbox: Sandbox, point: MetricPoint) -> Json:
    shape = sandbox.shape
    return {
        "timestamp": stamp(point.at),
        "timestampUnix": math.floor(point.at),
        "cpuCount": shape.vcpus,
        "cpuUsedPct": round(min(100.0, point.cpu_percent / shape.vcpus), 2),
        "memUsed": min(point.memory_bytes, shape.memory_bytes),
        "memTotal": shape.memory_bytes,
        "memCache": 0,
        "diskUsed": min(point.disk_bytes, shape.disk_bytes),
        "diskTotal": shape.disk_bytes,
    }


# Logs


@figures.get("/sandboxes/{segment}/logs")
async def logs_v1(
    segment: str, caller: Reader, services: Given, start: Milliseconds = None, limit: Annotated[int, Query(ge=0, le=_MOST_LINES)] = _MOST_LINES
) -> Response:
    entries = [entry(event) for event in await _events(services, caller, segment) if start is None or event.at * 1000 >= start][:limit]
    lines = [{"timestamp": one["timestamp"], "line": one["message"]} for one in entries]
    return JSONResponse({"logs": lines, "logEntries": entries})


@figures.get("/v2/sandboxes/{segment}/logs")
async def logs_v2(
    segment: str,
    caller: Reader,
    services: Given,
    cursor: Milliseconds = None,
    limit: Annotated[int, Query(ge=0, le=_MOST_LINES)] = _MOST_LINES,
    direction: str = "forward",
    level: str = "debug",
    search: Annotated[str, Query(max_length=256)] = "",
) -> Response:
    """`cursor`: milliseconds since the epoch, from which it goes on in the direction."""
    if direction not in ("forward", "backward") or level not in _LEVELS:
        raise InvalidInput(f"direction: forward or backward; level: {', '.join(_LEVELS)}.")
    events = list(await _events(services, caller, segment))
    if direction == "backward":
        events = [event for event in reversed(events) if cursor is None or event.at * 1000 <= cursor]
    else:
        events = [event for event in events if cursor is None or event.at * 1000 >= cursor]
    entries = [entry(event) for event in events]
    told = [one for one in entries if _LEVELS.index(one["level"]) >= _LEVELS.index(level) and search in one["message"]]
    return JSONResponse({"logs": told[:limit]})


async def _events(services: Services, caller: Caller, segment: str) -> Sequence[Event]:
    """Of one that has ended too. Raises NotFound."""
    sandbox = await services.sandboxes.get(caller, sandbox_id(segment))
    return await services.events.of(caller, sandbox.id, _MOST_LINES)


def entry(event: Event) -> Json:
    what = event.name.removeprefix("capsule.").replace("_", " ")
    why = event.data.get("message") or event.data.get("note") or ""
    level = "error" if "error" in event.data else "info"
    message = f"sandbox {what}" + (f": {why}" if why else "")
    return {"timestamp": stamp(event.at), "message": message, "level": level, "fields": {"event": event.name, **event.data}}
