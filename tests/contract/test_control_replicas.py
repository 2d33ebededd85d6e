"""Two control planes on one PostgreSQL and one Redis, each with a host of its own, spoken to over HTTP: either answers for both."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from servers import PostgresServer, RedisServer

sys.path.append(str(Path(__file__).parents[1] / "api"))
from api_world import served

from torpor.api.app import make_app
from torpor.apps.control import Clock, Wired, control_plane
from torpor.hostlink.local import LocalHosts
from torpor.model.sandbox import EndReason
from torpor.ports.hosts import HostTemplate
from torpor.service.context import DAY, Policy
from torpor.testing.fake_clock import FakeClock
from torpor.testing.fake_hosts import FakeHost

SECONDS = 120.0
"""What anything may take before it counts as hung."""
QUICK = Policy(sole=False, host_silence=2.0, beat_every=0.2, look_every=0.5, reconcile_every=0.5)


class BaseHost(FakeHost):
    """With the template `tiny` only, which is registered by every control plane."""

    async def templates(self) -> list[HostTemplate]:
        return [HostTemplate("tiny", "root", "/root", 1 << 20)]


@dataclass
class Replica:
    client: httpx.AsyncClient
    host: FakeHost
    wired: Wired

    async def create(self, **fields: Any) -> str:
        answer = await self.client.post("/v1/capsules", json={"template": "tiny"} | fields)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    async def state(self, capsule: str) -> str:
        return str((await self.client.get(f"/v1/capsules/{capsule}")).json()["state"])

    async def until_state(self, capsule: str, state: str) -> None:
        await until(lambda: self._is(capsule, state))

    async def _is(self, capsule: str, state: str) -> bool:
        return await self.state(capsule) == state


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(SECONDS):
        while not await holds():
            await asyncio.sleep(0.02)


@asynccontextmanager
async def replica(name: str, database: str | Path, redis: str, key: str = "", policy: Policy = QUICK, clock: Clock | None = None) -> AsyncIterator[Replica]:
    host = BaseHost(name)
    async with control_plane(LocalHosts(host), database, redis, policy, clock=clock) as wired:
        key = key or (wired.first.key if wired.first else "")
        async with served(make_app(wired.services)) as url, httpx.AsyncClient(base_url=url, headers={"X-API-Key": key}, timeout=SECONDS) as client:
            yield Replica(client, host, wired)


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.close()


@pytest.fixture
def database(postgres: PostgresServer) -> str:
    return postgres.database().replace("postgresql://", "postgresql+asyncpg://")


@dataclass
class Pair:
    near: Replica
    far: Replica
    far_lives: AsyncExitStack

    async def kill_far(self) -> None:
        await self.far_lives.aclose()


@pytest.fixture
async def pair(database: str, redis: RedisServer) -> AsyncIterator[Pair]:
    async with replica("near", database, redis.url) as near, AsyncExitStack() as far_lives:
        key = str(near.client.headers["X-API-Key"])
        far = await far_lives.enter_async_context(replica("far", database, redis.url, key))
        yield Pair(near, far, far_lives)


async def test_either_sees_and_changes_what_the_other_has(pair: Pair) -> None:
    near, far = pair.near, pair.far
    capsule = await near.create()
    assert [each["id"] for each in (await far.client.get("/v1/capsules")).json()] == [capsule]
    answer = await far.client.post(f"/v1/capsules/{capsule}/pause")
    assert (answer.status_code, answer.json()["state"]) == (200, "paused")
    assert near.host.calls.count(("pause", capsule.removeprefix("cl-"))) == 1
    assert (await near.client.post(f"/v1/capsules/{capsule}/resume")).json()["state"] == "running"
    named = await far.client.post("/v1/snapshots", json={"sandbox_id": capsule, "name": "from-afar"})
    assert named.status_code == 201, named.text
    assert (await far.client.delete(f"/v1/capsules/{capsule}")).status_code == 204
    assert (await near.client.get(f"/v1/capsules/{capsule}")).json()["end_reason"] == "user"
    assert near.host.statuses() == {}
    assert far.host.calls.count(("pause", capsule.removeprefix("cl-"))) == 0


async def test_what_only_the_host_can_do_is_refused_elsewhere_for_now(pair: Pair) -> None:
    capsule = await pair.near.create()
    answer = await pair.far.client.post(f"/v1/capsules/{capsule}/exec", json={"cmd": "true"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "host_unavailable")
    assert "retry-after" in answer.headers


async def test_a_time_out_is_acted_upon_once(pair: Pair) -> None:
    capsules = await asyncio.gather(*(one.create(timeout_sec=1) for one in (pair.near, pair.far) for _ in range(3)))
    for capsule in capsules:
        await pair.near.until_state(capsule, "paused")
        events = (await pair.far.client.get(f"/v1/capsules/{capsule}/events")).json()["events"]
        assert Counter(each["event"] for each in events)["capsule.pause"] == 1
    calls = Counter(subject for one in (pair.near, pair.far) for verb, subject in one.host.calls if verb == "pause")
    assert set(calls.values()) == {1}


async def test_a_revoked_key_ends_everywhere_within_a_second(pair: Pair) -> None:
    made = (await pair.near.client.post("/v1/api-keys", json={"name": "short"})).json()
    headers = {"X-API-Key": made["key"]}
    assert (await pair.far.client.get("/v1/capsules", headers=headers)).status_code == 200
    assert (await pair.near.client.delete(f"/v1/api-keys/{made['id']}")).status_code == 204
    assert (await pair.near.client.get("/v1/capsules", headers=headers)).status_code == 401
    now = pair.far.wired.context.now
    revoked = now()
    while (await pair.far.client.get("/v1/capsules", headers=headers)).status_code == 200:
        asked = now()
        assert asked - revoked < 1.0 or (await pair.far.client.get("/v1/capsules", headers=headers)).status_code == 401


async def test_a_revoked_key_ends_everywhere_without_redis_too(pair: Pair, redis: RedisServer) -> None:
    made = (await pair.near.client.post("/v1/api-keys", json={"name": "short"})).json()
    headers = {"X-API-Key": made["key"]}
    assert (await pair.far.client.get("/v1/capsules", headers=headers)).status_code == 200
    await asyncio.to_thread(redis.crash)
    assert (await pair.near.client.delete(f"/v1/api-keys/{made['id']}")).status_code == 204

    async def refused() -> bool:
        return (await pair.far.client.get("/v1/capsules", headers=headers)).status_code == 401

    await until(refused)


async def test_events_are_seen_on_both_in_order_and_none_twice(pair: Pair) -> None:
    async with pair.far.client.stream("GET", "/v1/events/stream", params={"all": "true"}) as stream:
        lines = stream.aiter_lines()
        async for line in lines:
            if line == "event: connected":
                break
        capsules = await asyncio.gather(*(one.create() for one in (pair.near, pair.far, pair.near)))
        await asyncio.gather(*(one.client.delete(f"/v1/capsules/{capsule}") for one, capsule in zip((pair.far, pair.near, pair.near), capsules, strict=True)))
        numbers: list[int] = []
        ended: set[str] = set()
        async with asyncio.timeout(SECONDS):
            async for line in lines:
                if line.startswith("id: "):
                    numbers.append(int(line[4:]))
                if line.startswith("data: ") and (told := json.loads(line[6:])).get("event") == "capsule.destroy":
                    ended.add(told["resource"]["id"])
                if ended == set(capsules):
                    break
    numbers = numbers[1:]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


async def test_a_host_whose_process_died_is_missing_until_it_is_back(pair: Pair, database: str, redis: RedisServer) -> None:
    near, far = pair.near, pair.far
    ours, theirs = await near.create(), await far.create()
    await asyncio.sleep(0)
    assert await near.state(theirs) == "running"
    await pair.kill_far()
    await near.until_state(theirs, "missing")
    assert await near.state(ours) == "running"
    async with AsyncExitStack() as again:
        host = far.host
        wired = await again.enter_async_context(control_plane(LocalHosts(host), database, redis.url, QUICK))
        assert wired.first is None
        await near.until_state(theirs, "running")


async def test_a_live_host_elsewhere_is_never_missing(pair: Pair) -> None:
    theirs = await pair.far.create()
    for _ in range(3):  # as often as a silence is long
        before = await _beat(pair.near)
        await until(lambda before=before: _beaten(pair.near, before))  # type: ignore[misc]
        await pair.near.wired.plane.reconciler.run()
        await pair.near.wired.plane.timers.look()
        assert await pair.near.state(theirs) == "running"


async def _beat(one: Replica) -> str | None:
    async with one.wired.context.store.look() as records:
        return await records.memory.value("host far lives")


async def _beaten(one: Replica, before: str | None) -> bool:
    return await _beat(one) != before


async def test_lost_redis_delays_and_loses_nothing(pair: Pair, redis: RedisServer) -> None:
    near, far = pair.near, pair.far
    capsule = await near.create()
    await asyncio.to_thread(redis.crash)
    answer = await far.client.post(f"/v1/capsules/{capsule}/pause")
    assert (answer.status_code, answer.json()["state"]) == (200, "paused")  # found by the host's own comparison
    await asyncio.to_thread(redis.start)
    assert (await far.client.post("/v1/capsules", json={"template": "tiny"})).status_code == 201
    assert (await near.client.delete(f"/v1/capsules/{capsule}")).status_code == 204


async def test_a_killed_postgres_is_a_clear_error_and_loses_nothing(redis: RedisServer) -> None:
    server = await asyncio.to_thread(PostgresServer)
    try:
        async with replica("only", server.database(), redis.url) as one:
            capsule = await one.create()
            one.host.hold("pause")
            pausing = asyncio.create_task(one.client.post(f"/v1/capsules/{capsule}/pause"))
            await until(lambda: _called(one.host, "pause"))
            await asyncio.to_thread(server.crash)
            answer = await one.client.get(f"/v1/capsules/{capsule}")
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "host_unavailable")
            assert "retry-after" in answer.headers
            one.host.let_go("pause")  # done at the host while nobody can write it down
            await until(lambda: _effected(one.host, "pause"))
            await asyncio.to_thread(server.start)
            answer = await pausing
            assert (answer.status_code, answer.json()["state"]) == (200, "paused"), answer.text
            answer = await one.client.post(f"/v1/capsules/{capsule}/resume")
            assert (answer.status_code, answer.json().get("state")) == (200, "running"), answer.text
            events = [each["event"] for each in (await one.client.get(f"/v1/capsules/{capsule}/events")).json()["events"]]
            assert events.count("capsule.pause") == 1
    finally:
        await asyncio.to_thread(server.close)


async def _called(host: FakeHost, verb: str) -> bool:
    return any(called == verb for called, _ in host.calls)


async def _effected(host: FakeHost, verb: str) -> bool:
    return any(done == verb for done, _ in host.effects)


# Time


async def test_a_reason_is_shown_for_thirty_days(tmp_path: Path) -> None:
    moved = FakeClock()
    async with replica("only", tmp_path / "records.db", "", policy=Policy(), clock=Clock(moved.now, moved.sleep_until)) as one:
        capsule = await one.create()
        one.host.die(capsule.removeprefix("cl-"), EndReason.OOM, "no memory left")
        await one.until_state(capsule, "stopped")
        moved.move(29 * DAY)
        await one.wired.plane.retention.run()
        found = (await one.client.get(f"/v1/capsules/{capsule}")).json()
        assert (found["end_reason"], found["end_note"]) == ("oom", "no memory left")
        events = (await one.client.get(f"/v1/capsules/{capsule}/events")).json()["events"]
        assert events[-1]["metadata"]["reason"] == "oom"
        moved.move(2 * DAY)
        await one.wired.plane.retention.run()
        assert (await one.client.get(f"/v1/capsules/{capsule}")).status_code == 404
