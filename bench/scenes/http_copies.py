"""S2, S6 and T11 over HTTP: 30 creates in a row, staggered and at once; more at once than there is room for; forks of 10."""

from __future__ import annotations

import asyncio

from floor import Clock, Floor
from serving import WAIT, Api, Refused, Server
from setting import HOLD, LARGE, SMALL
from stage import SHELL_TRUE, TEMPLATE, Stage, create, kill, run, sandbox
from torpor.model.records import Limits
from torpor.model.shapes import Shape
from torpor.storage.store import make_store

CREATES = 30
STAGGER = 0.2
ASKED, ROOM = 60, 7
CHILDREN = 10
LARGE_MIB = 1024


async def measure(stage: Stage) -> None:
    async with stage.server(TORPOR_POOL_SIZE="0") as server, server.api() as api:
        async with sandbox(api) as (capsule, _):
            await run(api, capsule, SHELL_TRUE)
        for number in range(stage.counts.burst):
            stage.say(f"{CREATES} creates, and {ASKED} for a room of {ROOM}: round {number + 1} of {stage.counts.burst}")
            await _creates(stage, server, "h_sequential", None)
            await _creates(stage, server, "h_staggered", STAGGER)
            await stage.bare(lambda: _bare_burst(stage))
            stage.samples.add("h_burst", await _creates(stage, server, "h_burst_each", 0.0))
            await _overload(stage, server)
        for number in range(stage.counts.fork):
            stage.say(f"fork of {CHILDREN}: round {number + 1} of {stage.counts.fork}")
            await stage.bare(lambda: _bare_fork(stage, stage.small, "h_fork"))
            async with stage.attempt("h_fork"):
                await _fork(stage, api, "h_fork", SMALL, 0)
        for number in range(stage.counts.fork_large):
            stage.say(f"fork of {CHILDREN} with 1 GiB: round {number + 1} of {stage.counts.fork_large}")
            await stage.bare(lambda: _bare_fork(stage, stage.large, "h_fork_big"))
            async with stage.attempt("h_fork_big"):
                await _fork(stage, api, "h_fork_big", LARGE, LARGE_MIB)


async def _creates(stage: Stage, server: Server, key: str, stagger: float | None) -> float:
    """One after another, or one every `stagger` seconds, whether those before it are there or not. Milliseconds until all are."""
    made: list[str] = []

    async def one() -> None:
        async with stage.attempt(key), server.api() as api:
            clock = Clock()
            made.append(await create(api))
            stage.samples.add(key, clock())

    whole = Clock()
    async with asyncio.TaskGroup() as group:
        for _ in range(CREATES):
            task = group.create_task(one())
            await (task if stagger is None else asyncio.sleep(stagger))
    took = whole()
    async with server.api() as api:
        await kill(api, *made)
    return took


def _bare_burst(stage: Stage) -> None:
    vms, took = stage.small.start_many(CREATES)
    stage.samples.add("h_burst", floor=took)
    stage.small.kill(*vms)


async def _overload(stage: Stage, server: Server) -> None:
    """The team may have ROOM sandboxes, and asks for ASKED at once."""
    await _limit(stage, Limits(sandboxes=ROOM))
    apis = [await server.connect() for _ in range(ASKED)]
    clock = Clock()

    async def one(api: Api) -> tuple[int, float, str]:
        answer = await api.call("POST", "/v1/capsules", {"template": TEMPLATE}, WAIT)
        return answer.status, clock(), str(answer.tree(201, 429).get("id", ""))

    async with stage.attempt("h_refused"):
        answers = await asyncio.gather(*(one(api) for api in apis))
        stage.samples.add("h_refused", max(took for status, took, _ in answers if status == 429))
        made = [(took, capsule) for status, took, capsule in answers if status == 201]
        if len(made) != ROOM:
            raise Refused(f"{len(made)} were admitted to a room of {ROOM}.")
        for took, capsule in made:
            stage.samples.add("h_admitted", took)
            await kill(apis[0], capsule)
    for api in apis:
        api.close()
    await _limit(stage, Limits())


async def _limit(stage: Stage, limits: Limits) -> None:
    store = make_store(stage.home / "torpor.db")
    await store.open()
    try:
        async with store.write() as records:
            for team in (await records.teams.list(limit=10)).items:
                await records.teams.set_limits(team.id, limits)
    finally:
        await store.close()


def _bare_fork(stage: Stage, floor: Floor, key: str) -> None:
    vms, took = floor.start_many(CHILDREN)
    stage.samples.add(key, floor=took)
    floor.kill(*vms)


async def _fork(stage: Stage, api: Api, key: str, shape: Shape, mib: int) -> None:
    async with sandbox(api, shape) as (source, _):
        await run(api, source, SHELL_TRUE)
        if mib:
            await held(api, source, mib)
        clock = Clock()
        children = (await api.call("POST", f"/v1/capsules/{source}/fork", {"count": CHILDREN}, WAIT)).tree(201)
        stage.samples.add(key, clock())
        await kill(api, *(child["id"] for child in children))


async def held(api: Api, capsule: str, mib: int) -> None:
    """A process in the guest that has written `mib` MiB of fresh memory and keeps it; it says so in a file, for nobody listens."""
    words = ["-c", 'exec /usr/bin/python3 -I -S -c "$0" >/tmp/held', HOLD.format(mib=mib)]
    (await api.call("POST", f"/v1/capsules/{capsule}/exec", {"cmd": "/bin/sh", "args": words, "background": True})).tree(202)
    await run(api, capsule, ("/bin/sh", "-c", "until grep -q held /tmp/held; do sleep 0.1; done"), timeout_sec=300)
