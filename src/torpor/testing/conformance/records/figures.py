"""Figures, usage, and what is remembered."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from torpor.model.records import (
    MetricPoint,
    Remembered,
    TeamSample,
    Tier,
    UsageDay,
)
from torpor.testing.conformance.records.samples import OTHER, TEAM, StoreRig


async def check_figures(rig: StoreRig) -> None:
    store = await rig.open()
    points = [MetricPoint(float(at), at / 3, 2**40 + at, at) for at in range(5)]
    samples = [TeamSample(TEAM, float(at), at, at + 1, at + 2) for at in range(4)]
    async with store.write() as records:
        figures = records.figures
        await figures.add_points("sb", Tier.DAY, points[:3])
        await figures.add_points("sb", Tier.DAY, points[2:])  # a repetition changes nothing
        await figures.add_points("sb", Tier.DAY, [])
        assert await figures.points("sb", Tier.DAY, 0.0) == points
        assert await figures.points("sb", Tier.DAY, 3.0) == points[3:]
        assert await figures.points("sb", Tier.TWO_HOURS, 0.0) == []
        await figures.add_samples([*samples, *samples])
        assert await figures.samples(TEAM, 1.0) == samples[1:]
        await figures.add_usage([UsageDay(TEAM, "2026-01-02", 1.5, 2.0), UsageDay(TEAM, "2026-01-01", 1.0, 1.0)])
        await figures.add_usage([UsageDay(TEAM, "2026-01-02", 0.5, 1.0)])
        assert await figures.usage(TEAM, "2026-01-01", "2026-01-31") == [UsageDay(TEAM, "2026-01-01", 1.0, 1.0), UsageDay(TEAM, "2026-01-02", 2.0, 3.0)]
        assert await figures.usage(TEAM, "2026-01-03", "2026-01-31") == []
        await figures.forget(2.0, 3.0)
        assert await figures.points("sb", Tier.DAY, 0.0) == points[2:]
        assert await figures.samples(TEAM, 0.0) == samples[3:]


async def check_what_is_remembered(rig: StoreRig) -> None:
    store = await rig.open()
    entry = Remembered(TEAM, "key", "request", "", 5.0)
    async with store.write() as records:
        memory = records.memory
        assert await memory.begin(entry) is None
        assert await memory.begin(replace(entry, request="other")) == entry
        await memory.finish(TEAM, "key", "result")
        assert await memory.begin(entry) == replace(entry, result="result")
        assert await memory.begin(replace(entry, team_id=OTHER)) is None
        await memory.drop(TEAM, "key")
        assert await memory.begin(entry) is None
        assert await memory.forget(5.0) == 0
        assert await memory.forget(5.1) == 2
        assert await memory.value("name") is None
        assert await memory.set_value("name", "one", only_new=True) == "one"
        assert await memory.set_value("name", "two", only_new=True) == "one"
        assert await memory.set_value("name", "three") == "three"
        assert await memory.value("name") == "three"


async def check_one_of_many_begins(rig: StoreRig) -> None:
    stores = [await rig.open(), await rig.open()]

    async def begin(number: int) -> bool:
        async with stores[number % 2].write() as records:
            return await records.memory.begin(Remembered(TEAM, "key", "request", str(number), 5.0)) is None

    assert sum(await asyncio.gather(*(begin(number) for number in range(10)))) == 1
