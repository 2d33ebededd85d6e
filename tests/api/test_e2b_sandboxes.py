"""E2B's control plane: what each request does and says, on the real use cases."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import pytest
from plane_world import Plane

from torpor.model.errors import NoSpace
from torpor.model.records import PLATFORM_TEAM
from torpor.model.sandbox import Egress, NetworkMode
from torpor.testing.fake_hosts import Fault, Trouble

SANDBOX = {"templateID", "sandboxID", "clientID", "envdVersion", "trafficAccessToken", "alias"}
LISTED = {"templateID", "sandboxID", "clientID", "startedAt", "endAt", "cpuCount", "memoryMB", "diskSizeMB", "state", "envdVersion", "metadata", "alias"}


async def create(plane: Plane, *, version: str = "/v2", **fields: Any) -> dict[str, Any]:
    answer = await plane.client.post(f"{version}/sandboxes", json={"templateID": "base"} | fields)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def detail(plane: Plane, sandbox_id: str) -> dict[str, Any]:
    answer = await plane.client.get(f"/sandboxes/{sandbox_id}")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def status(plane: Plane, method: str, path: str, **how: Any) -> int:
    return (await plane.client.request(method, path, **how)).status_code


def seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


def left(found: Mapping[str, Any]) -> float:
    return seconds(found["endAt"]) - time.time()


async def test_a_sandbox_is_made_looked_at_and_killed(plane: Plane) -> None:
    made = await create(plane, metadata={"a": "b"}, envVars={"X": "y"}, timeout=100)
    assert made.keys() == SANDBOX | {"envdAccessToken"}
    assert (made["envdVersion"], made["trafficAccessToken"], made["alias"], len(made["sandboxID"])) == ("0.6.13", None, "base", 25)
    found = await detail(plane, made["sandboxID"])
    assert found.keys() >= LISTED
    assert (found["state"], found["metadata"], found["cpuCount"], found["memoryMB"]) == ("running", {"a": "b"}, 1, 512)
    assert found["lifecycle"] == {"autoResume": False, "onTimeout": "kill"}
    assert found["envdAccessToken"] == made["envdAccessToken"]
    assert 90 < left(found) <= 100
    assert (await detail(plane, made["sandboxID"]))["endAt"] == found["endAt"]
    assert await status(plane, "DELETE", f"/sandboxes/{made['sandboxID']}") == 204
    for method in ("GET", "DELETE"):
        assert await status(plane, method, f"/sandboxes/{made['sandboxID']}") == 404


async def test_version_1_has_its_own_defaults(plane: Plane) -> None:
    made = await create(plane, version="")
    assert "envdAccessToken" not in made
    assert 5 < left(await detail(plane, made["sandboxID"])) <= 15
    assert "envdAccessToken" in await create(plane, version="", secure=True)
    assert 290 < left(await detail(plane, (await create(plane))["sandboxID"])) <= 300


async def test_what_a_guest_is_told_names_it_and_no_other(plane: Plane) -> None:
    made = await create(plane, envVars={"X": "y", "E2B_SANDBOX_ID": "forged"})
    twin = (await plane.client.post(f"/sandboxes/{made['sandboxID']}/fork")).json()[0]["sandbox"]
    for one in (made, twin):
        names = plane.host._boxes[one["sandboxID"]].guest.identity.names
        assert names == {"X": "y", "E2B_SANDBOX": "true", "E2B_SANDBOX_ID": one["sandboxID"], "E2B_TEMPLATE_ID": made["templateID"]}
        said = await plane.client.post(f"/v1/sandboxes/{one['sandboxID']}/exec", json={"cmd": "sh", "args": ["-c", "echo $E2B_SANDBOX_ID"]})
        assert said.json()["stdout"].strip() == one["sandboxID"]


@pytest.mark.parametrize("name", ["base", "e2bdev/base", "base:default", "e2bdev/base:default"])
async def test_templates_go_by_e2bs_names(plane: Plane, name: str) -> None:
    assert (await create(plane, templateID=name))["alias"] == "base"


async def test_templates_go_by_id(plane: Plane) -> None:
    base = (await create(plane))["templateID"]
    assert (await create(plane, templateID=base))["alias"] == "base"
    assert (await create(plane, templateID=f"{base}:default"))["alias"] == "base"
    assert (await create(plane, templateID=PLATFORM_TEAM))["alias"] == "minimal"
    for unknown in ("none", "base:v1", "nobody/base", "0" * 24 + "1"):
        assert await status(plane, "POST", "/v2/sandboxes", json={"templateID": unknown}) == 404, unknown
    for broken in ("", ":x", "base:", "a/b/c", "../x", "a b", "x" * 600):
        assert await status(plane, "POST", "/v2/sandboxes", json={"templateID": broken}) == 400, broken


async def test_ids_may_have_a_client_behind_them(plane: Plane) -> None:
    made = (await create(plane))["sandboxID"]
    for written in (f"{made}-00000000", f"{made}-a-b", f"cl-{made}"):
        assert (await detail(plane, written))["sandboxID"] == made
    assert await status(plane, "GET", "/sandboxes/nonexisting") == 404
    assert await status(plane, "DELETE", "/sandboxes/nonexisting-sandbox") == 404
    for broken in ("UPPER", "%20", "..", "%00", "%FF", "a%2Fb", "x" * 600):
        assert await status(plane, "GET", f"/sandboxes/{broken}") in (400, 404), broken


# Time


async def test_connect_only_ever_extends(plane: Plane) -> None:
    made = (await create(plane, timeout=500))["sandboxID"]
    before = (await detail(plane, made))["endAt"]
    for path, body in (
        (f"/v2/sandboxes/{made}/connect", {"timeout": 10}),
        (f"/sandboxes/{made}/connect", {"timeout": 10}),
        (f"/v2/sandboxes/{made}/connect", {}),
    ):
        answer = await plane.client.post(path, json=body)
        assert (answer.status_code, answer.json()["sandboxID"]) == (200, made)
        assert (await detail(plane, made))["endAt"] == before
    assert await status(plane, "POST", f"/v2/sandboxes/{made}/connect", json={"timeout": 1000}) == 200
    assert 990 < left(await detail(plane, made)) <= 1000
    assert await status(plane, "POST", f"/sandboxes/{made}/connect", json={}) == 400


async def test_a_timeout_may_be_shortened_and_a_refresh_never_does(plane: Plane) -> None:
    made = (await create(plane, timeout=500))["sandboxID"]
    assert await status(plane, "POST", f"/sandboxes/{made}/timeout", json={"timeout": 50}) == 204
    assert 40 < left(await detail(plane, made)) <= 50
    assert await status(plane, "POST", f"/sandboxes/{made}/refreshes", json={"duration": 10}) == 204
    assert 40 < left(await detail(plane, made)) <= 50
    assert await status(plane, "POST", f"/sandboxes/{made}/refreshes", json={"duration": 100}) == 204
    assert 90 < left(await detail(plane, made)) <= 100
    for path, body in (
        ("refreshes", {"duration": 3601}),
        ("timeout", {"timeout": -1}),
        ("timeout", {"timeout": 1 << 40}),
        ("timeout", {"timeout": "9"}),
        ("timeout", {}),
    ):
        assert await status(plane, "POST", f"/sandboxes/{made}/{path}", json=body) == 400, (path, body)
    assert await status(plane, "POST", "/sandboxes/nonexisting/timeout", json={"timeout": 1}) == 404


async def ended(plane: Plane, sandbox_id: str) -> None:
    async with asyncio.timeout(60):
        async with plane.wired.context.bus.subscribe("sandbox") as notices:
            while await status(plane, "GET", f"/sandboxes/{sandbox_id}") != 404:
                await anext(notices)


async def test_the_end_of_its_time_kills_it_or_pauses_it(plane: Plane) -> None:
    killed = (await create(plane))["sandboxID"]
    assert await status(plane, "POST", f"/sandboxes/{killed}/timeout", json={"timeout": 0}) == 204
    await ended(plane, killed)
    kept = (await create(plane, autoPause=True, timeout=900))["sandboxID"]
    async with plane.wired.context.bus.subscribe("sandbox") as notices:
        assert await status(plane, "POST", f"/sandboxes/{kept}/timeout", json={"timeout": 0}) == 204
        async with asyncio.timeout(60):
            while (found := await detail(plane, kept))["state"] != "paused":
                await anext(notices)
    assert (found["lifecycle"]["onTimeout"], found["pauseMode"]) == ("pause", "full")
    assert left(found) <= 0


async def test_a_paused_one_outlives_its_time(plane: Plane) -> None:
    """The time of a sandbox that is to be killed at its end does not run on while it is paused."""
    made = (await create(plane, timeout=60))["sandboxID"]
    assert await status(plane, "POST", f"/sandboxes/{made}/pause") == 204
    async with plane.wired.context.store.read() as records:
        assert await records.sandboxes.next_expiry() is None
    answer = await plane.client.post(f"/sandboxes/{made}/resume", json={})
    assert answer.status_code == 201
    assert 5 < left(await detail(plane, made)) <= 15


# Pausing


async def test_pause_and_back_by_connect(plane: Plane) -> None:
    made = await create(plane, metadata={"k": "v"})
    path = f"/sandboxes/{made['sandboxID']}"
    assert await status(plane, "POST", f"{path}/pause", json={}) == 204
    found = await detail(plane, made["sandboxID"])
    assert (found["state"], found["pauseMode"], found["metadata"]) == ("paused", "full", {"k": "v"})
    assert (await detail(plane, made["sandboxID"]))["endAt"] == found["endAt"]
    assert await status(plane, "POST", f"{path}/pause", json={}) == 409
    assert await status(plane, "POST", f"{path}/timeout", json={"timeout": 9}) == 404
    answer = await plane.client.post(f"/v2{path}/connect", json={"timeout": 77})
    assert (answer.status_code, answer.json()["envdAccessToken"]) == (201, made["envdAccessToken"])
    assert 60 < left(await detail(plane, made["sandboxID"])) <= 78
    assert await status(plane, "POST", f"{path}/resume", json={}) == 409


@pytest.mark.parametrize("body", [None, b""])
async def test_an_empty_body_pauses_too(plane: Plane, body: bytes | None) -> None:
    made = (await create(plane))["sandboxID"]
    assert await status(plane, "POST", f"/sandboxes/{made}/pause", content=body) == 204


async def test_a_pause_without_memory_is_followed_by_a_boot(plane: Plane) -> None:
    made = (await create(plane))["sandboxID"]
    assert await status(plane, "POST", f"/sandboxes/{made}/pause", json={"memory": False}) == 204
    assert (await detail(plane, made))["pauseMode"] == "filesystem"
    assert await status(plane, "POST", f"/v2/sandboxes/{made}/connect", json={}) == 201
    assert [verb for verb, _ in plane.host.effects][-2:] == ["pause", "cold_boot"]
    assert await status(plane, "POST", f"/sandboxes/{made}/pause") == 204
    assert await status(plane, "POST", f"/v2/sandboxes/{made}/connect", json={}) == 201
    assert [verb for verb, _ in plane.host.effects][-2:] == ["pause", "resume"]
    assert await status(plane, "POST", f"/sandboxes/{made}/pause") == 204
    assert await status(plane, "POST", f"/v2/sandboxes/{made}/connect", json={"memory": False}) == 201
    assert plane.host.effects[-1] == ("cold_boot", made)


async def test_two_who_connect_at_once_wake_it_once(plane: Plane) -> None:
    made = (await create(plane))["sandboxID"]
    assert await status(plane, "POST", f"/sandboxes/{made}/pause") == 204
    answers = await asyncio.gather(*(plane.client.post(f"/v2/sandboxes/{made}/connect", json={"timeout": 100 + n}) for n in range(5)))
    assert {answer.status_code for answer in answers} <= {200, 201}
    assert [verb for verb, _ in plane.host.effects].count("resume") == 1
    assert 95 < left(await detail(plane, made)) <= 105


async def test_connect_waits_for_a_pause_that_is_under_way(plane: Plane) -> None:
    made = (await create(plane))["sandboxID"]
    plane.host.hold("pause")
    pausing = asyncio.create_task(plane.client.post(f"/sandboxes/{made}/pause"))
    async with plane.wired.context.bus.subscribe("sandbox") as notices:
        while (await plane.client.get(f"/v1/sandboxes/{made}")).json()["state"] != "pausing":
            await anext(notices)
    connecting = asyncio.create_task(plane.client.post(f"/v2/sandboxes/{made}/connect", json={}))
    plane.host.let_go("pause")
    assert (await pausing).status_code == 204
    assert (await connecting).status_code == 201


async def test_auto_pause_without_memory(plane: Plane) -> None:
    for fields in ({"autoPauseMemory": False}, {"autoPause": True, "autoPauseMemory": False, "autoResume": {"enabled": True}}):
        assert await status(plane, "POST", "/v2/sandboxes", json={"templateID": "base"} | fields) == 400
    made = (await create(plane, autoPause=True, autoPauseMemory=False))["sandboxID"]
    async with plane.wired.context.bus.subscribe("sandbox") as notices:
        assert await status(plane, "POST", f"/sandboxes/{made}/timeout", json={"timeout": 0}) == 204
        async with asyncio.timeout(60):
            while (found := await detail(plane, made))["state"] != "paused":
                await anext(notices)
    assert found["pauseMode"] == "filesystem"


async def test_traffic_wakes_one_that_allows_it_for_as_long_as_it_was_made_for(plane: Plane) -> None:
    made = (await create(plane, autoPause=True, autoResume={"enabled": True}, timeout=1000))["sandboxID"]
    assert (await detail(plane, made))["lifecycle"] == {"autoResume": True, "onTimeout": "pause"}
    assert await status(plane, "POST", f"/sandboxes/{made}/timeout", json={"timeout": 20}) == 204
    assert await status(plane, "POST", f"/sandboxes/{made}/pause") == 204
    assert (await plane.client.post(f"/v1/sandboxes/{made}/exec", json={"cmd": "true"})).status_code == 200
    assert 980 < left(await detail(plane, made)) <= 1000
    cold = (await create(plane, autoPause=True, autoResume={"enabled": True}, timeout=10))["sandboxID"]
    assert await status(plane, "POST", f"/sandboxes/{cold}/pause", json={"memory": False}) == 204
    assert (await plane.client.post(f"/v1/sandboxes/{cold}/exec", json={"cmd": "true"})).status_code == 409


# Copies


async def test_forks_are_sandboxes_of_their_own(plane: Plane) -> None:
    made = await create(plane, metadata={"k": "v"}, timeout=1000)
    path = f"/sandboxes/{made['sandboxID']}/fork"
    answer = await plane.client.post(path, json={"count": 3, "timeout": 50})
    assert answer.status_code == 201
    twins = [each["sandbox"] for each in answer.json()]
    assert len({twin["sandboxID"] for twin in twins} | {made["sandboxID"]}) == 4
    assert len({twin["envdAccessToken"] for twin in twins} | {made["envdAccessToken"]}) == 4
    for twin in twins:
        found = await detail(plane, twin["sandboxID"])
        assert found["metadata"] == {"k": "v"}
        assert 30 < left(found) <= 51
    assert left(await detail(plane, made["sandboxID"])) > 900
    (usual,) = (await plane.client.post(path)).json()
    assert 280 < left(await detail(plane, usual["sandbox"]["sandboxID"])) <= 300
    for count in (0, 101, "1"):
        assert await status(plane, "POST", path, json={"count": count}) == 400
    assert await status(plane, "POST", f"/sandboxes/{made['sandboxID']}/pause") == 204
    assert await status(plane, "POST", path, json={}) == 409
    assert await status(plane, "POST", "/sandboxes/nonexisting/fork", json={}) == 404


async def test_a_fork_that_fails_says_so_of_each(plane: Plane) -> None:
    made = (await create(plane))["sandboxID"]
    plane.host.faults.append(Fault("fork", Trouble.REFUSED, error=NoSpace("The disk is full.")))
    answer = await plane.client.post(f"/sandboxes/{made}/fork", json={"count": 2})
    assert answer.status_code == 201
    assert [each["error"]["code"] for each in answer.json()] == [503, 503]
    assert (await detail(plane, made))["state"] == "running"


# Network


async def test_egress_is_ordered_shown_and_replaced(plane: Plane) -> None:
    made = (await create(plane, network={"allowOut": ["8.8.8.8", "1.1.1.0/24"], "denyOut": ["0.0.0.0/0"]}))["sandboxID"]
    assert plane.host.egress(made) == Egress(("8.8.8.8", "1.1.1.0/24"), ("0.0.0.0/0",))
    found = await detail(plane, made)
    assert found["network"] == {"allowPublicTraffic": True, "allowOut": ["8.8.8.8", "1.1.1.0/24"], "denyOut": ["0.0.0.0/0"]}
    assert found["allowInternetAccess"] is False
    assert await status(plane, "PUT", f"/sandboxes/{made}/network", json={"denyOut": ["9.9.9.9"]}) == 204
    assert plane.host.egress(made) == Egress((), ("9.9.9.9",))
    assert await status(plane, "PUT", f"/sandboxes/{made}/network", json={"allow_internet_access": False}) == 204
    assert plane.host.egress(made) == Egress((), ("0.0.0.0/0",))
    assert await status(plane, "PUT", f"/sandboxes/{made}/network", json={}) == 204
    assert plane.host.egress(made) == Egress()
    assert (await detail(plane, made))["allowInternetAccess"] is True
    assert await status(plane, "PUT", "/sandboxes/nonexisting/network", json={}) == 404


async def test_egress_by_domain_is_ordered_shown_and_replaced(plane: Plane) -> None:
    everything = ["0.0.0.0/0"]
    wanted = ["Example.com", "*.example.org.", "8.8.8.8", "münchen.de", "*.bücher.example"]
    made = (await create(plane, network={"allowOut": wanted, "denyOut": everything}))["sandboxID"]
    shown = ["Example.com", "*.example.org.", "8.8.8.8", "xn--mnchen-3ya.de", "*.xn--bcher-kva.example"]
    assert plane.host.egress(made) == Egress(tuple(shown), ("0.0.0.0/0",))
    assert (await detail(plane, made))["network"]["allowOut"] == shown
    for allowed in (["*"], ["example.net"]):
        assert await status(plane, "PUT", f"/sandboxes/{made}/network", json={"allowOut": allowed, "denyOut": everything}) == 204
        assert plane.host.egress(made) == Egress(tuple(allowed), ("0.0.0.0/0",))
    assert await status(plane, "PUT", f"/sandboxes/{made}/network", json={"allowOut": ["example.net"]}) == 400
    assert await status(plane, "PUT", f"/sandboxes/{made}/network", json={"allowOut": ["example.net"], "allow_internet_access": False}) == 204
    (twin,) = (await plane.client.post(f"/sandboxes/{made}/fork")).json()
    assert plane.host.egress(twin["sandbox"]["sandboxID"]) == Egress(("example.net",), ("0.0.0.0/0",))


async def test_a_copy_may_go_where_its_source_may(plane: Plane) -> None:
    made = (await create(plane, allow_internet_access=False))["sandboxID"]
    assert plane.host.egress(made) == Egress((), ("0.0.0.0/0",))
    (twin,) = (await plane.client.post(f"/sandboxes/{made}/fork")).json()
    assert plane.host.egress(twin["sandbox"]["sandboxID"]) == Egress((), ("0.0.0.0/0",))


@pytest.mark.parametrize(
    "network",
    [
        {"denyOut": ["example.com"]},
        {"denyOut": ["not an address"]},
        {"allowOut": ["example.com"]},
        {"allowOut": ["*"]},
        {"allowOut": ["exa mple"], "denyOut": ["0.0.0.0/0"]},
        {"allowOut": ["1.2.3.4/33"]},
        {"allowOut": "8.8.8.8"},
        {"maskRequestHost": "a host"},
        {"maskRequestHost": "höst"},
        {"httpsPorts": [0]},
        {"httpsPorts": [49983]},
        {"httpsPorts": ["443"]},
        {"rules": {"example.com": [{"transform": {"headers": {"A": "b"}}}]}},
        {"egressProxy": {"address": "proxy:1080"}},
        {"dnsServers": ["9.9.9.9"]},
        {"allowOut": ["example.com"], "denyOut": ["0.0.0.0/1", "128.0.0.0/1"]},
        {"allowOut": ["1.2.3.4.5"], "denyOut": ["0.0.0.0/0"]},
        {"allowOut": ["a.*.com"], "denyOut": ["0.0.0.0/0"]},
        {"allowOut": ["a..com"], "denyOut": ["0.0.0.0/0"]},
        {"allowOut": ["\u2024.com"], "denyOut": ["0.0.0.0/0"]},
    ],
)
async def test_network_options_that_are_refused(plane: Plane, network: dict[str, Any]) -> None:
    answer = await plane.client.post("/v2/sandboxes", json={"templateID": "base", "network": network})
    assert (answer.status_code, answer.json()["code"]) == (400, 400)
    assert not plane.host.statuses()


async def test_private_traffic_gets_a_token(plane: Plane) -> None:
    made = await create(plane, network={"allowPublicTraffic": False, "maskRequestHost": "localhost:${PORT}", "httpsPorts": [8443, 443]})
    assert made["trafficAccessToken"] == plane.wired.services.tokens.traffic(made["sandboxID"])
    found = await detail(plane, made["sandboxID"])
    assert found["network"] == {"allowPublicTraffic": False, "maskRequestHost": "localhost:${PORT}", "httpsPorts": [443, 8443]}
    open_one = {"templateID": "base", "network": {"allowPublicTraffic": False}}
    assert await status(plane, "POST", "/sandboxes", json=open_one) == 400
    assert await status(plane, "POST", "/sandboxes", json=open_one | {"secure": True}) == 201


async def test_the_network_is_on_where_there_is_one(plane: Plane) -> None:
    async def network(sandbox_id: str) -> NetworkMode:
        async with plane.wired.context.store.read() as records:
            found = await records.sandboxes.get(sandbox_id)
        assert found is not None
        return found.network

    made = (await create(plane))["sandboxID"]
    assert await network(made) is NetworkMode.ON
    plane.host.space = type(plane.host.space)(1 << 20, 1 << 30, 1 << 50, 1 << 30, 1 << 49, no_network="Needs root.")
    without = (await create(plane))["sandboxID"]
    assert await network(without) is NetworkMode.OFF
    assert (await detail(plane, without))["allowInternetAccess"] is False


# Trying again


async def test_the_same_key_makes_the_same_sandbox(plane: Plane) -> None:
    body, headers = {"templateID": "base"}, {"Idempotency-Key": "a-1"}
    one, two = [await plane.client.post("/v2/sandboxes", json=body, headers=headers) for _ in range(2)]
    assert one.json() == two.json()
    assert await status(plane, "POST", "/v2/sandboxes", json=body | {"timeout": 9}, headers=headers) == 422
    assert await status(plane, "POST", "/v2/sandboxes", json=body, headers={"Idempotency-Key": "A B"}) == 400
    assert (await plane.other.post("/v2/sandboxes", json=body, headers=headers)).json()["sandboxID"] != one.json()["sandboxID"]
    assert await status(plane, "DELETE", f"/sandboxes/{one.json()['sandboxID']}") == 204
    assert await status(plane, "POST", "/v2/sandboxes", json=body, headers=headers) == 409


async def test_what_may_be_tried_again_says_when_and_the_rest_says_not_to(plane: Plane) -> None:
    room, plane.host.space = plane.host.space, type(plane.host.space)(1, 1, 1 << 40, 1, 1 << 39)
    full = await plane.client.post("/v2/sandboxes", json={"templateID": "base"})
    assert (full.status_code, full.json()["error_code"], full.headers["retry-after"]) == (503, "sandbox_capacity_unavailable", "10")
    plane.host.space = room
    plane.host.faults.append(Fault("create", Trouble.REFUSED))
    broken = await plane.client.post("/v2/sandboxes", json={"templateID": "base"})
    assert (broken.status_code, broken.headers["should-retry"]) == (500, "false")
    assert broken.json().keys() == {"code", "message"}
    assert (await plane.client.get("/v2/sandboxes")).json() == []


async def test_what_is_not_built_is_named(plane: Plane) -> None:
    for fields, word in (
        ({"mcp": {"exa": {}}}, "mcp"),
        ({"iam": {"tokens": {"x": {}}}}, "iam"),
        ({"volumeMounts": [{"name": "v", "path": "/v"}]}, "volumes"),
    ):
        answer = await plane.client.post("/v2/sandboxes", json={"templateID": "base"} | fields)
        assert (answer.status_code, answer.json()["error_code"]) == (400, "unsupported_feature")
        assert word in answer.json()["message"]
    assert (await create(plane, mcp=None, volumeMounts=[]))["alias"] == "base"
    for method, path in (
        ("GET", "/volumes"),
        ("POST", "/secrets"),
        ("GET", "/secrets/x"),
        ("POST", "/v3/templates"),
        ("GET", "/access-tokens"),
        ("GET", "/nodes"),
    ):
        answer = await plane.client.request(method, path, json={} if method == "POST" else None)
        assert (answer.status_code, answer.json()["error_code"]) == (400, "unsupported_feature"), path


async def test_native_sandboxes_are_there_too(plane: Plane) -> None:
    """Private as they are, so that their tokens are told; and without an end of their own."""
    made = (await plane.capsule(metadata={"a": "b"})).removeprefix("cl-")
    found = await detail(plane, made)
    assert (found["state"], found["metadata"], found["network"]) == ("running", {"a": "b"}, {"allowPublicTraffic": False})
    assert found["endAt"] == "9999-01-01T00:00:00Z"
    assert found["envdAccessToken"] == plane.wired.services.tokens.access(made)
    answer = await plane.client.post(f"/v2/sandboxes/{made}/connect", json={"timeout": 10})
    assert (answer.status_code, answer.json()["trafficAccessToken"]) == (200, plane.wired.services.tokens.traffic(made))
    assert (await detail(plane, made))["endAt"] == found["endAt"]
    assert await status(plane, "POST", f"/sandboxes/{made}/pause") == 204
    assert await status(plane, "POST", f"/v2/sandboxes/{made}/connect", json={"timeout": 10}) == 201
    ours = (await create(plane))["sandboxID"]
    assert (await plane.client.get(f"/v1/sandboxes/{ours}")).json()["state"] == "running"
