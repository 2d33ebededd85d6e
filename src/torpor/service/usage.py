"""What a machine's running time amounts to, by day: exact, because it is added when a machine's life ends, not sampled."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from torpor.model.records import Sandbox, UsageDay


def days(first: float, last: float) -> Iterator[tuple[str, float]]:
    """(day in UTC as YYYY-MM-DD, seconds of it) for the span; nothing for an empty one."""
    while first < last:
        day = datetime.fromtimestamp(first, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        end = min(last, (day + timedelta(days=1)).timestamp())
        yield day.strftime("%Y-%m-%d"), end - first
        first = end


def used(sandbox: Sandbox, until: float) -> list[UsageDay]:
    """What the present life of its machine amounts to so far; nothing when it has none."""
    if sandbox.started_at is None:
        return []
    shape = sandbox.shape
    return [UsageDay(sandbox.team_id, day, seconds / 60 * shape.vcpus, seconds / 60 * shape.memory_mib) for day, seconds in days(sandbox.started_at, until)]
