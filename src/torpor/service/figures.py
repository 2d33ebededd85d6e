"""Figures: what each running sandbox uses (three resolutions), what each team held over time, what it used by day.

every second      a reading of all machines of a host, in one call       10m: kept in memory, written when the machine's life or this process ends
every 30 s, 5 min the average of the readings since                      2h, 24h: written
every 10 s        what each team that runs something holds               written
usage             added up at each end of a machine's life (moves.move); the lives that last are added when somebody asks
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from torpor.lifecycle.sandbox import RESERVING
from torpor.log import Log
from torpor.model.errors import InvalidInput, NotFound, TorporError
from torpor.model.records import MetricPoint, Reserved, Sandbox, SandboxState, TeamSample, Tier, UsageDay
from torpor.ports.hosts import Host, Reading
from torpor.ports.records import SandboxFilter
from torpor.service.caller import Caller
from torpor.service.context import DAY, Context
from torpor.service.usage import used

log = Log()

SPANS = {Tier.TEN_MINUTES: 600.0, Tier.TWO_HOURS: 7200.0, Tier.DAY: DAY}
STEPS = {Tier.TWO_HOURS: 30.0, Tier.DAY: 300.0}
_RING = 600
_RUNS = frozenset({SandboxState.RUNNING, SandboxState.SNAPSHOTTING, SandboxState.PAUSING})


def tier_for(seconds: float) -> Tier:
    """The finest resolution that reaches back so far. Raises InvalidInput beyond a day."""
    for tier, span in SPANS.items():
        if seconds <= span:
            return tier
    raise InvalidInput("Figures are kept for 24 hours.")


@dataclass(slots=True)
class _Series:
    """One machine's readings. `sums`: per coarser tier the bucket's number and the points in it."""

    last: Reading | None = None
    last_at: float = 0.0
    fine: deque[MetricPoint] = field(default_factory=lambda: deque(maxlen=_RING))
    buckets: dict[Tier, tuple[int, list[MetricPoint]]] = field(default_factory=dict)

    def add(self, reading: Reading, at: float) -> list[tuple[Tier, MetricPoint]]:
        """The points of coarser tiers that this reading completes."""
        previous, span = self.last, at - self.last_at
        self.last, self.last_at = reading, at
        if previous is None or span <= 0:
            return []
        began = previous.cpu_seconds if reading.cpu_seconds >= previous.cpu_seconds else 0.0
        point = MetricPoint(at, 100 * (reading.cpu_seconds - began) / span, reading.memory_bytes, reading.disk_bytes)
        self.fine.append(point)
        done = []
        for tier, step in STEPS.items():
            number, points = self.buckets.get(tier, (int(at // step), []))
            if int(at // step) != number and points:
                done.append((tier, average(points)))
                points = []
            self.buckets[tier] = (int(at // step), [*points, point])
        return done

    def rest(self) -> list[tuple[Tier, MetricPoint]]:
        """Everything not written yet."""
        partial = [(tier, average(points)) for tier, (_, points) in self.buckets.items() if points]
        return [(Tier.TEN_MINUTES, point) for point in self.fine] + partial


def average(points: Sequence[MetricPoint]) -> MetricPoint:
    """At the time of the last of them."""
    count = len(points)
    return MetricPoint(
        points[-1].at,
        sum(point.cpu_percent for point in points) / count,
        sum(point.memory_bytes for point in points) // count,
        sum(point.disk_bytes for point in points) // count,
    )


@dataclass(frozen=True, slots=True)
class Stats:
    """What a team holds now, the most it held within 30 days, and the most of each `step` seconds of the range, oldest first."""

    current: Reserved
    peaks: TeamSample
    step: float
    series: Sequence[TeamSample]


class Figures:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._series: dict[str, _Series] = {}
        self._ended: list[tuple[str, _Series]] = []
        self._teams: set[str] = set()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        policy = self._context.policy
        self._tasks = [
            asyncio.create_task(self._every(policy.sample_every, self.sample), name="figures"),
            asyncio.create_task(self._every(policy.team_sample_every, self.sample_teams), name="team-figures"),
        ]

    async def close(self) -> None:
        """What is in memory is written."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._ended += self._series.items()
        self._series = {}
        await self._write([])

    async def _every(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await self._context.sleep_until(self._context.now() + seconds)
            try:
                await work()
            except TorporError as error:
                log.warning("not_sampled", error=str(error))

    def changed(self, sandbox: Sandbox) -> None:
        """A record was written. The series of a machine whose life is over is written with the next sample."""
        if sandbox.state not in _RUNS and (series := self._series.pop(sandbox.id, None)) is not None:
            self._ended.append((sandbox.id, series))

    # -- sampling --------------------------------------------------------------------------------------------------------------------

    async def sample(self) -> None:
        """One reading of every running machine."""
        readings = await asyncio.gather(*(self._read(host) for host in self._context.hosts.online()))
        now = self._context.now()
        done: list[tuple[str, Tier, MetricPoint]] = []
        for reading in (one for some in readings for one in some):
            series = self._series.setdefault(reading.sandbox_id, _Series())
            done += [(reading.sandbox_id, tier, point) for tier, point in series.add(reading, now)]
        await self._write(done)

    async def _read(self, host: Host) -> Sequence[Reading]:
        try:
            return await self._context.ask(host.readings())
        except TorporError as error:
            log.warning("host_not_read", host=host.id, error=str(error))
            return ()

    async def _write(self, done: Sequence[tuple[str, Tier, MetricPoint]]) -> None:
        ended, self._ended = self._ended, []
        wanted: dict[tuple[str, Tier], list[MetricPoint]] = {}
        for sandbox_id, tier, point in [*done, *((name, *rest) for name, series in ended for rest in series.rest())]:
            wanted.setdefault((sandbox_id, tier), []).append(point)
        if not wanted:
            return
        async with self._context.store.write() as records:
            for (sandbox_id, tier), points in wanted.items():
                await records.figures.add_points(sandbox_id, tier, points)

    async def sample_teams(self) -> None:
        """What each team holds now; nothing for one that holds nothing and held nothing before."""
        now = self._context.now()
        held: dict[str, list[Sandbox]] = {team_id: [] for team_id in self._teams}
        cursor, more = "", True
        while more:
            async with self._context.store.look() as records:
                page = await records.sandboxes.list(SandboxFilter(states=RESERVING), cursor=cursor, limit=500)
            for sandbox in page.items:
                held.setdefault(sandbox.team_id, []).append(sandbox)
            cursor, more = page.next, bool(page.next)
        self._teams = {team_id for team_id, sandboxes in held.items() if sandboxes}
        if not held:
            return
        samples = [
            TeamSample(team_id, now, len(some), sum(one.shape.vcpus for one in some), sum(one.shape.memory_mib for one in some))
            for team_id, some in held.items()
        ]
        async with self._context.store.write() as records:
            await records.figures.add_samples(samples)

    # -- asking ----------------------------------------------------------------------------------------------------------------------

    async def points(self, caller: Caller, sandbox_id: str, seconds: float) -> Sequence[MetricPoint]:
        """Of the last `seconds` (at most a day), oldest first, in the finest resolution kept for so long. Raises NotFound, InvalidInput."""
        tier, since = tier_for(seconds), self._context.now() - seconds
        async with self._context.store.look() as records:
            sandbox = await records.sandboxes.get(sandbox_id)
            if sandbox is None or (sandbox.team_id != caller.team_id and not (caller.is_admin and not caller.team_id)):
                raise NotFound(f"There is no sandbox {sandbox_id[:40]}.")
            stored = list(await records.figures.points(sandbox_id, tier, since))
        last = stored[-1].at if stored else since
        series = self._series.get(sandbox_id)
        if series is not None and tier is Tier.TEN_MINUTES:
            stored += [point for point in series.fine if point.at > last]
        return stored

    async def stats(self, caller: Caller, seconds: float, step: float) -> Stats:
        """Of the caller's team over the last `seconds`, in buckets of `step`."""
        now = self._context.now()
        async with self._context.store.look() as records:
            current = await records.sandboxes.reserved(team_id=caller.team_id)
            month = await records.figures.samples(caller.team_id, now - 30 * DAY)
        buckets: dict[int, list[TeamSample]] = {}
        for sample in month:
            if sample.at > now - seconds:
                buckets.setdefault(int(sample.at // step), []).append(sample)
        series = [most(caller.team_id, number * step, samples) for number, samples in sorted(buckets.items())]
        held = TeamSample(caller.team_id, now, current.sandboxes, current.vcpus, current.memory_mib)
        return Stats(current, most(caller.team_id, now, [*month, held]), step, series)

    async def usage(self, caller: Caller, first: str, last: str) -> Sequence[UsageDay]:
        """Days in UTC from `first` to `last` (YYYY-MM-DD) on which the team used something, to this moment. Raises InvalidInput."""
        if not first <= last:
            raise InvalidInput("The first day comes after the last.")
        now = self._context.now()
        totals: dict[str, list[float]] = {}
        async with self._context.store.read() as records:
            days = list(await records.figures.usage(caller.team_id, first, last))
            cursor, more = "", True
            while more:
                page = await records.sandboxes.list(SandboxFilter(team_id=caller.team_id, states=RESERVING), cursor=cursor, limit=500)
                days += [day for sandbox in page.items for day in used(sandbox, now) if first <= day.day <= last]
                cursor, more = page.next, bool(page.next)
        for day in days:
            total = totals.setdefault(day.day, [0.0, 0.0])
            total[0] += day.cpu_minutes
            total[1] += day.memory_mib_minutes
        return [UsageDay(caller.team_id, day, cpu, memory) for day, (cpu, memory) in sorted(totals.items())]


def most(team_id: str, at: float, samples: Sequence[TeamSample]) -> TeamSample:
    """The most of each of them, 0 of none."""
    return TeamSample(
        team_id,
        at,
        max((sample.running for sample in samples), default=0),
        max((sample.vcpus for sample in samples), default=0),
        max((sample.memory_mib for sample in samples), default=0),
    )
