"""Sandboxes over HTTP: what requests become, what answers look like, how long they wait."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest
from api_world import World

from torpor.api.native import state
from torpor.model.errors import Denied, DenyReason, Overloaded, QuotaExceeded
from torpor.model.records import Sandbox, SandboxState, TimeoutAction
from torpor.model.sandbox import NetworkMode

HIDDEN = {"team_id", "template_id", "host_id", "machine_id", "env", "dialect", "created_by", "exposure", "egress", "terms"}
RENAMED = {
    "generation": "version",
    "shape": "vcpus",
    "updated_at": "last_updated",
    "deadline": "expires_at",
    "idle_timeout": "timeout_sec",
    "labels": "metadata",
}


def test_every_field_of_a_sandbox_is_shown_or_left_out_on_purpose() -> None:
    shown = set(state.tree.__code__.co_consts) | {"started_at", "ended_at", "expires_at"}
    for field in dataclasses.fields(Sandbox):
        assert (field.name in HIDDEN) != (RENAMED.get(field.name, field.name) in _names(shown)), field.name


def _names(constants: Any) -> set[str]:
    """Strings in a code object's constants, also those in tuples."""
    return {name for each in constants for name in (_names(each) if isinstance(each, tuple) else [each] if isinstance(each, str) else [])}


def test_every_state_has_a_word_that_the_sdk_knows() -> None:
    words = {"pending", "starting", "running", "paused", "hibernated", "stopped", "missing", "error"}
    assert set(state.STATUS) == set(SandboxState)
    assert set(state.STATUS.values()) <= words


async def test_create_passes_on_what_was_asked_for(world: World) -> None:
    wish = {
        "template": "base", "vcpus": 3, "memory_mb": 700, "disk_size_mb": 5000, "network": "on", "timeout_sec": 60, "lifetime_sec": 100,
        "on_timeout": "kill", "auto_resume": True, "metadata": {"a": "b"}, "envs": {"X": "y"}, "unknown": [1],
    }  # fmt: skip
    answer = await world.client.post("/v1/capsules", json=wish)
    assert answer.status_code == 201
    tree = answer.json()
    assert (tree["status"], tree["state"], tree["vcpus"], tree["memory_mb"], tree["disk_size_mb"]) == ("running", "running", 4, 1024, 5120)
    assert tree["id"].startswith("cl-")
    assert tree["created_at"].endswith("Z")
    (asked,) = world.sandboxes.requests
    assert (asked.template, asked.network, asked.idle_timeout, asked.on_timeout, asked.auto_resume) == ("base", NetworkMode.ON, 60.0, TimeoutAction.KILL, True)
    assert (asked.labels, asked.env) == ({"a": "b"}, {"X": "y"})
    assert asked.deadline is not None
    assert (await world.client.post("/v1/capsules", json={})).json()["template"] == "minimal"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b'{"template": 1}',
        b'{"template": "../x"}',
        b'{"template": ""}',
        b'{"template": "a\\u0000"}',
        b'{"vcpus": 0}',
        b'{"vcpus": "1"}',
        b'{"vcpus": 1.5}',
        b'{"vcpus": 9}',
        b'{"memory_mb": 99999999}',
        b'{"timeout_sec": 1e400}',
        b'{"timeout_sec": 99999999999999999999999}',
        b'{"network": "maybe"}',
        b'{"metadata": {"": "x"}}',
        b'{"metadata": {"a": "\\ud800"}}',
        b'{"metadata": {"a": 1}}',
        b'{"envs": {"A=": "x"}}',
        b'{"envs": {"A": "x\\u0000"}}',
        b"[" * 200_000,
    ],
)
async def test_what_is_no_request_is_a_400(world: World, body: bytes) -> None:
    answer = await world.client.post("/v1/capsules", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request"), answer.text
    assert answer.json()["error"]["request_id"] == answer.headers["x-request-id"]
    assert world.sandboxes.requests == []


async def test_every_spelling_of_the_paths(world: World, capsule: str) -> None:
    for path in ("/v1/capsules", "/v1/sandboxes", "/api/v1/capsules", "/api/v1/sandboxes"):
        assert [each["id"] for each in (await world.client.get(path)).json()] == [capsule]
        assert (await world.client.get(f"{path}/{capsule}")).json()["id"] == capsule
        assert (await world.client.get(f"{path}/{capsule.removeprefix('cl-')}")).json()["id"] == capsule
    for path in ("/v1/sandboxesx", "/api/api/v1/capsules", "/apiv1/capsules", "/v1/capsules/", "/v2/capsules"):
        assert (await world.client.get(path)).status_code == 404


async def test_the_life_of_one(world: World, capsule: str) -> None:
    path = f"/v1/capsules/{capsule}"
    assert (await world.client.post(f"{path}/ping")).status_code == 204
    paused = await world.client.post(f"{path}/pause")
    assert (paused.status_code, paused.json()["status"]) == (200, "paused")
    assert (await world.client.post(f"{path}/ping")).json()["error"]["code"] == "invalid_state"
    resumed = await world.client.post(f"{path}/resume")
    assert (resumed.status_code, resumed.json()["status"]) == (200, "running")
    children = await world.client.post(f"{path}/fork", json={"count": 3})
    assert (children.status_code, len({each["id"] for each in children.json()})) == (201, 3)
    assert (await world.client.post(f"{path}/rollback", json={"snapshot": "s"})).status_code == 200
    assert (await world.client.post(f"{path}/boot")).status_code == 200
    changed = await world.client.patch(path, json={"timeout_sec": 7, "lifetime_sec": 50})
    assert (changed.json()["timeout_sec"], "expires_at" in changed.json()) == (7, True)
    changed = await world.client.patch(path, json={"lifetime_sec": 0})
    assert (changed.json()["timeout_sec"], "expires_at" in changed.json()) == (7, False)
    for _ in range(2):
        assert (await world.client.delete(path)).status_code == 204
    assert (await world.client.get(path)).json()["status"] == "stopped"
    assert capsule not in [each["id"] for each in (await world.client.get("/v1/capsules")).json()]
    assert capsule in [each["id"] for each in (await world.client.get("/v1/capsules", params={"state": "stopped"})).json()]


@pytest.mark.parametrize(
    ("method", "what", "body", "status"),
    [("POST", "/pause", None, "running"), ("POST", "/resume", None, "starting"), ("DELETE", "", None, "stopped"), ("POST", "/fork", {"count": 1}, "starting")],
)
async def test_the_wait_is_bounded_and_work_goes_on(world: World, capsule: str, method: str, what: str, body: Any, status: str) -> None:
    hold = world.sandboxes.hold = asyncio.Event()
    for prefer in ("respond-async", "wait=0", "handling=lenient, wait=0"):
        answer = await world.client.request(method, f"/v1/capsules/{capsule}{what}", json=body, headers={"Prefer": prefer})
        assert answer.status_code == 202
        tree = answer.json()[0] if what == "/fork" else answer.json()
        assert (tree["status"], "operation" in tree) == (status, True)
    waiting = asyncio.create_task(world.client.request(method, f"/v1/capsules/{capsule}{what}", json=body, headers={"Prefer": "wait=30"}))
    await world.sandboxes.waited.wait()
    hold.set()
    assert (await waiting).status_code in (200, 201, 204)


@pytest.mark.parametrize("prefer", ["wait=", "wait=-1", "wait=x", "wait=1e9", "wait"])
async def test_a_wait_that_is_none(world: World, capsule: str, prefer: str) -> None:
    answer = await world.client.post(f"/v1/capsules/{capsule}/pause", headers={"Prefer": prefer})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")


async def test_a_repeated_create_with_the_same_key_is_one_create(world: World) -> None:
    ids = {(await world.client.post("/v1/capsules", json={}, headers={"Idempotency-Key": "once"})).json()["id"] for _ in range(3)}
    assert len(ids) == 1
    answer = await world.client.post("/v1/capsules", json={}, headers={"Idempotency-Key": "x" * 300})
    assert answer.status_code == 400


async def test_lists_come_in_pages_and_by_label(world: World) -> None:
    made = [await world.capsule(metadata={"n": str(n % 2)}) for n in range(5)]
    first = await world.client.get("/v1/capsules", params={"limit": 2})
    assert [each["id"] for each in first.json()] == made[:2:-1]
    second = await world.client.get(first.headers["link"].split(">")[0][1:])
    assert [each["id"] for each in second.json()] == made[2:0:-1]
    third = await world.client.get("/v1/capsules", params={"limit": 2, "cursor": second.headers["x-next-cursor"]})
    assert [each["id"] for each in third.json()] == made[:1]
    assert "x-next-cursor" not in third.headers
    assert [each["id"] for each in (await world.client.get("/v1/capsules", params={"label": "n=1"})).json()] == [made[3], made[1]]
    for params in ({"limit": 0}, {"limit": "x"}, {"state": "odd"}, {"label": "n"}):
        assert (await world.client.get("/v1/capsules", params=params)).status_code == 400


async def test_refusals_of_the_use_cases_keep_their_words(world: World) -> None:
    expected = [
        (Overloaded("Full.", 7), 503, "no_hosts_available", "overloaded", "7"),
        (QuotaExceeded("Enough."), 429, "quota_exceeded", "quota_exceeded", "30"),
        (Denied(DenyReason.BUSY, "Busy."), 409, "invalid_state", "busy", None),
        (Denied(DenyReason.IN_USE, "Used."), 409, "conflict", "in_use", None),
    ]
    for failure, status, code, reason, after in expected:
        world.sandboxes.failure = failure
        answer = await world.client.post("/v1/capsules", json={})
        assert (answer.status_code, answer.json()["error"]["code"], answer.json()["error"]["reason"]) == (status, code, reason)
        assert answer.headers.get("retry-after") == after


async def test_an_unknown_one_and_another_teams_are_the_same(world: World, capsule: str) -> None:
    def shape(answer: Any) -> Any:
        error = answer.json()["error"]
        return answer.status_code, error["code"], error["message"]

    theirs = await world.other.get(f"/v1/capsules/{capsule}")
    unknown = await world.other.get(f"/v1/capsules/cl-{'0' * 25}")
    assert shape(theirs) == shape(unknown)
    assert theirs.status_code == 404
    for bad in ("cl-", "cl-" + "A" * 25, "x" * 25 + "y", "cl-" + "0" * 24 + "%00", "..%2f..%2fetc"):
        assert (await world.client.get(f"/v1/capsules/{bad}")).status_code in (400, 404)
