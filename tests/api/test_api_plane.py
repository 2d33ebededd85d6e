"""The API on the real use cases: keys, snapshots, figures, events, and who may see what."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import websockets
from plane_world import Plane

from torpor.model.errors import Unauthorized
from torpor.model.sandbox import EndReason
from torpor.testing.fake_hosts import Fault, Trouble


async def test_a_sandbox_lives_through_everything(plane: Plane) -> None:
    capsule = await plane.capsule(envs={"GREETING": "hello"}, metadata={"a": "b", "name": "mine"}, timeout_sec=60)
    path = f"/v1/capsules/{capsule}"
    answer = await plane.client.post(f"{path}/exec", json={"cmd": "sh", "args": ["-c", "echo $GREETING $MORE"], "envs": {"MORE": "world"}})
    assert answer.json()["stdout"] == "hello world\n"
    assert (await plane.client.post(f"{path}/pause")).json()["state"] == "paused"
    assert (await plane.client.post(f"{path}/exec", json={"cmd": "true"})).json()["error"]["code"] == "invalid_state"
    assert (await plane.client.post(f"{path}/resume")).json()["state"] == "running"
    children = (await plane.client.post(f"{path}/fork", json={"count": 2})).json()
    assert [(child["state"], child["metadata"]) for child in children] == [("running", {"a": "b"})] * 2
    assert len({capsule, *(child["id"] for child in children)}) == 3
    assert (await plane.client.patch(path, json={"timeout_sec": 5})).json()["timeout_sec"] == 5
    assert (await plane.client.post(f"{path}/ping")).status_code == 204
    assert (await plane.client.delete(path)).status_code == 204
    ended = (await plane.client.get(path)).json()
    assert (ended["status"], ended["end_reason"]) == ("stopped", "user")


async def test_an_ended_sandbox_keeps_its_reason_and_its_events(plane: Plane) -> None:
    capsule = await plane.capsule()
    plane.host.die(capsule.removeprefix("cl-"), EndReason.OOM)
    while (found := (await plane.client.get(f"/v1/capsules/{capsule}")).json())["status"] != "stopped":
        await asyncio.sleep(0.01)
    assert found["end_reason"] == "oom"
    events = (await plane.client.get(f"/v1/capsules/{capsule}/events")).json()["events"]
    assert [event["event"] for event in events][-2:] == ["capsule.create", "capsule.destroy"]
    assert events[-1]["metadata"]["reason"] == "oom"


async def test_a_create_that_fails_says_so_and_the_next_works(plane: Plane) -> None:
    plane.host.faults.append(Fault("create", Trouble.REFUSED))
    answer = await plane.client.post("/v1/capsules", json={"template": "base"})
    assert (answer.status_code, answer.json()["error"]["code"], answer.json()["error"]["reason"]) == (502, "agent_error", "vmm_error")
    assert (await plane.client.post("/v1/capsules", json={"template": "no-such"})).status_code == 404
    assert await plane.capsule()


async def test_a_slow_host_is_waited_for_as_long_as_asked(plane: Plane) -> None:
    capsule = await plane.capsule()
    plane.host.hold("pause")
    answer = await plane.client.post(f"/v1/capsules/{capsule}/pause", headers={"Prefer": "wait=0"})
    assert (answer.status_code, answer.json()["status"], answer.json()["state"]) == (202, "running", "pausing")
    again = asyncio.create_task(plane.client.post(f"/v1/capsules/{capsule}/pause"))
    busy = await plane.client.post(f"/v1/capsules/{capsule}/fork", json={"count": 1})
    assert (busy.status_code, busy.json()["error"]["reason"]) == (409, "busy")
    plane.host.let_go("pause")
    assert ((await again).status_code, (await again).json()["state"]) == (200, "paused")


async def test_the_same_idempotency_key_is_the_same_sandbox(plane: Plane) -> None:
    how: dict[str, Any] = {"headers": {"Idempotency-Key": "k"}, "json": {"template": "base"}}
    answers = await asyncio.gather(*(plane.client.post("/v1/capsules", **how) for _ in range(5)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1
    other = await plane.client.post("/v1/capsules", headers=how["headers"], json={"template": "minimal"})
    assert (other.status_code, other.json()["error"]["code"]) == (409, "conflict")


# Snapshots


async def snapshot(plane: Plane, capsule: str, query: str = "", **fields: Any) -> httpx.Response:
    return await plane.client.post(f"/v1/snapshots{query}", json={"sandbox_id": capsule, **fields})


async def test_snapshots_are_made_replaced_started_and_deleted(plane: Plane) -> None:
    capsule = await plane.capsule()
    made = await snapshot(plane, capsule, name="mine")
    assert made.status_code == 201
    assert (made.json()["name"], made.json()["type"], made.json()["vcpus"], made.json()["platform"]) == ("mine", "snapshot", 1, False)
    assert (await plane.client.get(f"/v1/capsules/{capsule}")).json()["state"] == "running"
    taken = await snapshot(plane, capsule, name="mine")
    assert (taken.status_code, taken.json()["error"]["code"]) == (409, "template_name_taken")
    replaced = await snapshot(plane, capsule, "?overwrite=true", name="mine", keep_running=False)
    assert (replaced.status_code, replaced.json()["id"] != made.json()["id"]) == (201, True)
    assert (await plane.client.get(f"/v1/capsules/{capsule}")).json()["state"] == "paused"
    assert (await snapshot(plane, capsule, name="base")).json()["error"]["code"] == "name_reserved"
    generated = (await snapshot(plane, capsule)).json()["name"]
    assert re.match(r"template-[0-9a-f]{8}\Z", generated)
    copy = await plane.capsule(template="mine")
    in_use = await plane.client.delete("/v1/snapshots/mine")
    assert (in_use.status_code, in_use.json()["error"]["reason"]) == (409, "in_use")
    assert (await plane.client.delete(f"/v1/capsules/{copy}")).status_code == 204
    assert (await plane.client.delete("/v1/snapshots/mine")).status_code == 204
    assert (await plane.client.delete("/v1/snapshots/mine")).status_code == 404
    assert (await plane.client.get("/v1/snapshots/mine")).status_code == 404


async def test_templates_are_listed_by_kind_and_by_team(plane: Plane) -> None:
    assert (await snapshot(plane, await plane.capsule(), name="ours")).status_code == 201

    async def names(client: httpx.AsyncClient, query: str = "") -> set[str]:
        return {each["name"] for each in (await client.get(f"/v1/snapshots{query}")).json()}

    assert await names(plane.client) == {"base", "minimal", "ours"}
    assert await names(plane.client, "?type=base") == {"base", "minimal"}
    assert await names(plane.client, "?type=snapshot") == {"ours"}
    assert await names(plane.other) == {"base", "minimal"}
    assert (await plane.client.get("/v1/snapshots?type=odd")).status_code == 400
    assert (await plane.other.get("/v1/snapshots/ours")).status_code == 404
    assert (await plane.other.delete("/v1/snapshots/ours")).status_code == 404
    assert (await plane.other.post("/v1/capsules", json={"template": "ours"})).status_code == 404
    assert (await plane.client.delete("/v1/snapshots/base")).status_code == 403
    for bad in ("a%00b", "%ff", "..%2f..", "x" * 65):
        assert (await plane.client.get(f"/v1/snapshots/{bad}")).status_code in (400, 404)


# Figures


async def test_figures_have_the_shape_of_the_dialect(plane: Plane) -> None:
    capsule = await plane.capsule()
    await plane.wired.plane.figures.sample()
    await plane.wired.plane.figures.sample_teams()
    stats = (await plane.client.get("/v1/capsules/stats", params={"range": "5m"})).json()
    assert stats["current"] == {"running_count": 1, "vcpus_reserved": 1, "memory_mb_reserved": 512}
    assert stats["peaks"] == {"running_count": 1, "vcpus": 1, "memory_mb": 512}
    assert {len(column) for column in stats["series"].values()} == {1}
    metrics = (await plane.client.get(f"/v1/capsules/{capsule}/metrics")).json()
    assert (metrics["sandbox_id"], metrics["range"]) == (capsule, "10m")
    usage = (await plane.client.get("/v1/capsules/usage")).json()
    assert usage["points"][-1]["date"] == usage["to"]
    assert usage["points"][-1]["cpu_minutes"] >= 0
    for query in ("from=2026-02-30", "from=x", "from=2026-02-02&to=2026-02-01", "from=2025-01-01&to=2026-01-01", "to=0001-01-01", "from=9999-99-99"):
        status = (await plane.client.get(f"/v1/capsules/usage?{query}")).status_code
        assert status == (200 if query.startswith("to=") else 400), query
    assert (await plane.client.get("/v1/capsules/stats?range=1y")).status_code == 400
    assert (await plane.client.get(f"/v1/capsules/{capsule}/metrics?range=1y")).status_code == 400
    assert (await plane.other.get(f"/v1/capsules/{capsule}/metrics")).status_code == 404


async def test_metrics_count_the_sandboxes(plane: Plane) -> None:
    await plane.client.post(f"/v1/capsules/{await plane.capsule()}/pause")
    await plane.capsule()
    counted = (await plane.anyone.get("/metrics")).text
    assert 'torpor_sandboxes{state="running"} 1.0' in counted
    assert 'torpor_sandboxes{state="paused"} 1.0' in counted


# Events


async def told(stream: httpx.Response) -> AsyncIterator[tuple[str, str, Any]]:
    """(id, event, data) as they come."""
    fields: dict[str, str] = {}
    async for line in stream.aiter_lines():
        name, _, value = line.partition(": ")
        if name:
            fields[name] = value
        elif "data" in fields:
            yield fields.get("id", ""), fields["event"], json.loads(fields["data"])
            fields = {}


async def test_events_come_in_order_and_none_is_lost_between_two_connections(plane: Plane) -> None:
    async with plane.client.stream("GET", "/v1/events/stream") as stream:
        events = told(stream)
        begin, kind, _ = await anext(events)
        assert kind == "connected"
        capsule = await plane.capsule()
        seen = [await anext(events)]
        while seen[-1][1] != "capsule.create":
            seen.append(await anext(events))
        assert (seen[-1][2]["resource"], seen[-1][2]["outcome"]) == ({"id": capsule, "type": "sandbox"}, "success")
    await plane.client.post(f"/v1/capsules/{capsule}/pause")
    await plane.client.delete(f"/v1/capsules/{capsule}")
    async with plane.client.stream("GET", "/v1/events/stream", headers={"Last-Event-ID": seen[-1][0]}) as stream:
        rest = []
        async for each in told(stream):
            rest.append(each)
            if each[1] == "capsule.destroy":
                break
    numbers = [int(each[0]) for each in [*seen, *rest[1:]]]
    assert numbers == sorted(set(numbers))
    assert numbers[0] > int(begin)
    words = [each[1] for each in rest]
    assert words.index("capsule.pause") < words.index("capsule.destroy")
    assert {each[1] for each in rest} <= {"connected", "capsule.pause", "capsule.destroy", "capsule.state.changed"}
    for bad in ("x", "-1", "1" * 30):
        assert (await plane.client.get("/v1/events/stream", headers={"Last-Event-ID": bad})).status_code == 400


async def test_streams_without_end_end_when_the_server_stops(plane: Plane) -> None:
    async with plane.client.stream("GET", "/v1/events/stream") as stream:
        events = told(stream)
        assert (await anext(events))[1] == "connected"
        plane.app.state.stopping.set()
        assert await anext(events, None) is None


async def test_events_of_another_team_are_not_told(plane: Plane) -> None:
    async with plane.other.stream("GET", "/v1/events/stream", params={"after": "0"}) as stream:
        events = told(stream)
        assert (await anext(events))[1] == "connected"
        ours = await plane.capsule()
        answer = await plane.other.post("/v1/capsules", json={"template": "base"})
        theirs = answer.json()["id"]
        while (found := await anext(events))[1] != "capsule.create":
            assert found[2]["resource"]["id"] != ours
        assert found[2]["resource"]["id"] == theirs


# Keys


async def test_keys_end_when_they_are_revoked_or_over_and_reach_as_far_as_their_scopes(plane: Plane) -> None:
    async def status(key: str, method: str = "GET", path: str = "/v1/capsules") -> int:
        return (await plane.anyone.request(method, path, headers={"X-API-Key": key}, json={"template": "base"} if method == "POST" else None)).status_code

    assert await status(await plane.add_key(expires_at=time.time() - 1)) == 401
    narrow = await plane.add_key(scopes=("sandboxes:read",))
    assert (await status(narrow), await status(narrow, "POST"), await status(narrow, path="/v1/snapshots")) == (200, 403, 403)
    key = await plane.add_key()
    assert await status(key) == 200
    context = plane.wired.context
    async with context.store.write() as records:
        found = await records.keys.list(plane.wired.first.team_id)  # type: ignore[union-attr]
        (wanted,) = [each for each in found if key.startswith(each.prefix)]
        await records.keys.revoke(wanted.team_id, wanted.id, context.now())
    while await status(key) == 200:  # within CACHE_SECONDS, though nobody was told
        await asyncio.sleep(0.05)
    assert await status(key) == 401


async def test_keys_are_made_used_listed_and_revoked_at_once(plane: Plane) -> None:
    wish = {"name": "ci", "scopes": ["sandboxes:read", "team:read"], "expires_at": "2099-01-01T00:00:00Z"}
    made = await plane.client.post("/v1/api-keys", json=wish)
    assert made.status_code == 201
    key = made.json()
    assert re.match(r"trp_[0-9a-f]{40}\Z", key["key"])
    assert (key["key_prefix"], key["scopes"], key["expires_at"]) == (key["key"][:10], wish["scopes"], wish["expires_at"])
    headers = {"X-API-Key": key["key"]}
    assert (await plane.anyone.get("/v1/capsules", headers=headers)).status_code == 200
    listed = (await plane.client.get("/v1/api-keys")).json()
    assert (listed[0]["name"], sorted(each["name"] for each in listed[1:])) == ("ci", ["first key", "first key for E2B's clients"])
    assert all("key" not in each for each in listed)
    assert (await plane.other.get("/v1/api-keys")).json()[0]["id"] != key["id"]
    assert (await plane.other.delete(f"/v1/api-keys/{key['id']}")).status_code == 204  # whatever there is: theirs it is not
    assert (await plane.anyone.get("/v1/capsules", headers=headers)).status_code == 200
    assert (await plane.client.delete(f"/v1/api-keys/{key['id']}")).status_code == 204
    assert (await plane.anyone.get("/v1/capsules", headers=headers)).status_code == 401
    assert (await plane.client.delete(f"/v1/api-keys/{key['id']}")).status_code == 204
    for bad in ({"scopes": ["x"]}, {"expires_at": "soon"}, {"expires_at": "2099-01-01T00:00:00"}, {"expires_at": "2001-01-01T00:00:00Z"}, {"name": "a\0"}):
        assert (await plane.client.post("/v1/api-keys", json=bad)).status_code == 400, bad


async def test_sockets_ask_for_the_scope_too(plane: Plane) -> None:
    capsule = await plane.capsule()
    narrow = await plane.add_key(scopes=("sandboxes:read",))
    for path in ("exec/stream", "pty", "processes/x/stream"):
        url = f"{plane.url.replace('http', 'ws')}/v1/capsules/{capsule}/{path}"
        async with websockets.connect(url, additional_headers={"X-API-Key": narrow}) as socket:
            assert json.loads(await socket.recv())["code"] == "forbidden"
            with pytest.raises(websockets.ConnectionClosed):
                await socket.recv()
            assert socket.close_code == 4403
    refused = (await plane.client.get("/v1/audit-logs?action=refuse")).json()["items"]
    assert len(refused) == 3
    assert refused[0]["resource_id"] == "WEBSOCKET /v1/capsules/{capsule_id}/processes/{selector}/stream"


async def test_a_limited_key_makes_no_wider_one(plane: Plane) -> None:
    headers = {"X-API-Key": await plane.add_key(scopes=("team:write", "sandboxes:read"))}
    for scopes, status in ((["sandboxes:read"], 201), (["sandboxes:read", "files:read"], 403), ([], 403), (None, 403)):
        answer = await plane.anyone.post("/v1/api-keys", json={"scopes": scopes}, headers=headers)
        assert answer.status_code == status, scopes


async def test_the_audit_log_has_what_was_done_and_what_was_refused(plane: Plane) -> None:
    capsule = await plane.capsule()
    await plane.client.post(f"/v1/capsules/{capsule}/pause", headers={"X-Request-Id": "traced"})
    narrow = await plane.add_key(scopes=("sandboxes:read",))
    for _ in range(3):
        await plane.anyone.post("/v1/capsules", json={}, headers={"X-API-Key": narrow})
    first = (await plane.client.get("/v1/audit-logs", params={"limit": 2})).json()
    second = (await plane.client.get("/v1/audit-logs", params={"limit": 10, "before_id": first["next_before_id"]})).json()
    shown = [(each["resource_type"], each["action"], each["status"]) for each in [*first["items"], *second["items"]]]
    assert shown == [
        ("request", "refuse", "denied"),
        ("sandbox", "pause", "success"),
        ("sandbox", "create", "success"),
        ("api_key", "create", "success"),
        ("api_key", "create", "success"),
    ]
    assert first["items"][0]["resource_id"] == "POST /v1/capsules"
    assert (first["items"][1]["resource_id"], first["items"][1]["request_id"]) == (capsule, "traced")
    only = (await plane.client.get("/v1/audit-logs?resource_type=sandbox,api_key&action=create")).json()["items"]
    assert [each["resource_type"] for each in only] == ["sandbox", "api_key", "api_key"]
    assert (await plane.other.get("/v1/audit-logs")).json()["items"] == []
    for bad in ("before_id=nonsense", "limit=0", "limit=201", "action=A%00"):
        assert (await plane.client.get(f"/v1/audit-logs?{bad}")).status_code == 400, bad


async def test_a_ticket_opens_one_stream_with_its_makers_rights(plane: Plane) -> None:
    ticket = (await plane.client.post("/v1/auth/ticket")).json()["ticket"]
    async with plane.anyone.stream("GET", "/v1/events/stream", params={"ticket": ticket}) as stream:
        assert (await anext(told(stream)))[1] == "connected"
    assert (await plane.anyone.get("/v1/events/stream", params={"ticket": ticket})).status_code == 401


async def test_a_ticket_stands_for_its_caller_once_and_as_the_caller_is_now(plane: Plane) -> None:
    access = plane.wired.services.access
    caller = await access.by_key(await plane.add_key(scopes=("sandboxes:read",)))
    ticket = await access.ticket(caller)
    assert await access.by_ticket(ticket) == caller
    answer = await plane.anyone.get("/v1/events/stream", params={"ticket": ticket})
    assert answer.status_code == 401
    ticket = await access.ticket(caller)
    await plane.wired.services.keys.revoke(await access.by_key(plane.key), caller.actor.id)
    with pytest.raises(Unauthorized):
        await access.by_ticket(ticket)
