"""S9: what a look at a sandbox costs, on SQLite and on PostgreSQL, with few and with many sandboxes on record, and how long it takes while others are at work.
The server has one core to itself, its client the others."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

from load import Load
from machine import cpu_seconds
from scenes.http_copies import held
from serving import Server, fresh
from setting import LARGE
from stage import Stage, change, create, sandbox
from torpor.model.records import Sandbox, SandboxState
from torpor.model.sandbox import EndReason
from torpor.ports.records import SandboxFilter
from torpor.service.context import new_id
from torpor.storage.store import make_store

sys.path.append(str(Path(__file__).parents[2] / "tests" / "contract"))
from servers import PostgresServer

RATE = 750.0
WARM = 500
"""Requests before the first that counts."""
FEW, MANY = 10, 10_000
LARGE_MIB = 1024


async def measure(stage: Stage) -> None:
    stage.say("looks at a sandbox, SQLite")
    database = stage.home / "torpor.db"
    async with stage.attempt("h_gets"), stage.server(TORPOR_POOL_SIZE="0") as server, server.api() as api, sandbox(api) as (capsule, _):
        one, several = request(server, f"/v1/capsules/{capsule}"), request(server, "/v1/capsules?limit=10&state=stopped&state=running")
        await _fill(database, FEW)
        async with _alone(server):
            await _rate(stage, server, one, "h_gets", "h_get_cpu")
            for took in await _paced(server, one, stage.counts.window):
                stage.samples.add("h_get_half", took)
            for key, asked in (("h_get_many", one), ("h_list_many", several)):
                for _ in range(stage.counts.channel):
                    stage.samples.add(key, floor=await _cost(stage, server, asked))
            stage.say(f"the same with {MANY} on record")
            await _fill(database, MANY)
            for key, asked in (("h_get_many", one), ("h_list_many", several)):
                for _ in range(stage.counts.channel):
                    stage.samples.add(key, await _cost(stage, server, asked))
    stage.say("looks at a sandbox while 1 GiB is paused")
    async with stage.attempt("h_get_pausing"):
        await _pausing(stage)
    stage.say("looks at a sandbox, PostgreSQL")
    fresh(stage.home, stage.home / "images")
    async with stage.attempt("p_gets"):
        await _postgres(stage)


def request(server: Server, path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nX-API-Key: {server.key}\r\n\r\n".encode()


@asynccontextmanager
async def _alone(server: Server) -> AsyncIterator[None]:
    """The server on one core, and this process on the others, where there are any. Machines that it starts would be on that core too."""
    cores = sorted(os.sched_getaffinity(0))
    with _on(server.pid, cores[:1]), _on(os.getpid(), cores[1:] or cores):
        yield


@contextmanager
def _on(pid: int, cores: list[int]) -> Iterator[None]:
    threads = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    before = os.sched_getaffinity(pid)
    for thread in threads:
        os.sched_setaffinity(thread, cores)
    try:
        yield
    finally:
        for thread in threads:
            if Path(f"/proc/{pid}/task/{thread}").exists():
                os.sched_setaffinity(thread, before)


async def _rate(stage: Stage, server: Server, asked: bytes, rate: str, cost: str) -> None:
    for _ in range(stage.counts.channel):
        async with Load(server.port, asked) as load:
            await load.many(WARM)
            count, before = int(150 * stage.counts.window), cpu_seconds(server.pid)
            stage.samples.add(rate, await load.many(count))
            stage.samples.add(cost, (cpu_seconds(server.pid) - before) / count * 1e6)


async def _cost(stage: Stage, server: Server, asked: bytes) -> float:
    """Microseconds of the server's CPU time for one."""
    async with Load(server.port, asked) as load:
        await load.many(WARM)
        count, before = int(100 * stage.counts.window), cpu_seconds(server.pid)
        await load.many(count)
        return (cpu_seconds(server.pid) - before) / count * 1e6


async def _paced(server: Server, asked: bytes, seconds: float) -> list[float]:
    stop = asyncio.Event()
    async with Load(server.port, asked) as load:
        await load.many(WARM)
        asyncio.get_running_loop().call_later(seconds, stop.set)
        return await load.paced(RATE, stop)


async def _pausing(stage: Stage) -> None:
    async with stage.server(TORPOR_POOL_SIZE="0") as server, server.api() as api:
        capsule = await create(api)
        asked = request(server, f"/v1/capsules/{capsule}")
        for _ in range(stage.counts.large):
            async with sandbox(api, LARGE) as (large, _), Load(server.port, asked) as load:
                await held(api, large, LARGE_MIB)
                await load.many(WARM)
                stop = asyncio.Event()
                loading = asyncio.create_task(load.paced(RATE, stop))
                try:
                    await change(api, large, "pause")
                finally:
                    stop.set()
                for took in await loading:
                    stage.samples.add("h_get_pausing", took)


async def _postgres(stage: Stage) -> None:
    postgres = await asyncio.to_thread(PostgresServer)
    try:
        async with stage.server(TORPOR_POOL_SIZE="0", TORPOR_DATABASE=postgres.database()) as server, server.api() as api, sandbox(api) as (capsule, _):
            async with _alone(server):
                await _rate(stage, server, request(server, f"/v1/capsules/{capsule}"), "p_gets", "p_get_cpu")
    finally:
        await asyncio.to_thread(postgres.close)


async def _fill(database: Path, wanted: int) -> None:
    """More sandboxes on record, which have ended, until there are so many."""
    store = make_store(database)
    await store.open()
    try:
        async with store.write() as records:
            (known, *_) = (await records.sandboxes.list(SandboxFilter(), limit=1)).items
            present = sum((await records.sandboxes.counts()).values())
            for _ in range(wanted - present):
                await records.sandboxes.add(_ended(known))
    finally:
        await store.close()


def _ended(like: Sandbox) -> Sandbox:
    ended = replace(like, id=new_id(), state=SandboxState.STOPPED, operation=None, machine_id="", started_at=None)
    return replace(ended, ended_at=like.created_at, end_reason=EndReason.USER)
