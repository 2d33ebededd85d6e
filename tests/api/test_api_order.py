"""In which order a request is judged: who asks, what it is about, whether it can be done now, and only then what the body says. And the dialect's own words
where ours could be others."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
import websockets
from people_world import login, person
from plane_world import Plane

from torpor.api import auth

NOBODYS = "cl-" + "0" * 25
JSON = {"Content-Type": "application/json"}


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


BODIES = [b"{", b"[]", b'"x"', b"", b"\xff\xfe", b"[" * 100_000, b'{"cmd": 7, "path": NaN}']


async def test_who_asks_and_of_what_comes_before_what_is_said(plane: Plane) -> None:
    capsule = await plane.capsule()
    for path in ("exec", "files/list", "files/read", "files/mkdir", "files/write"):
        for body in BODIES:
            await judge(plane, capsule, path, body)
    for body in BODIES[:-2]:
        await judge(plane, capsule, "fork", body)


async def judge(plane: Plane, capsule: str, path: str, body: bytes) -> None:
    how: dict[str, Any] = {"content": body, "headers": JSON}
    assert (await plane.anyone.post(f"/v1/capsules/{capsule}/{path}", **how)).status_code == 401
    narrow = await plane.add_key(scopes=("team:read",))
    assert code(await plane.anyone.post(f"/v1/capsules/{capsule}/{path}", content=body, headers={**JSON, "X-API-Key": narrow})) == (403, "forbidden")
    assert code(await plane.client.post(f"/v1/capsules/sb-12345678/{path}", **how)) == (400, "invalid_request")
    for unknown in (NOBODYS, capsule):
        assert code(await (plane.other if unknown is capsule else plane.client).post(f"/v1/capsules/{unknown}/{path}", **how)) == (404, "not_found")
    if path != "fork":
        assert (await plane.client.post(f"/v1/capsules/{capsule}/pause")).status_code == 200
        paused = await plane.client.post(f"/v1/capsules/{capsule}/{path}", **how)
        assert code(paused) == (409, "invalid_state")
        assert "paused" in paused.json()["error"]["message"]
        assert (await plane.client.post(f"/v1/capsules/{capsule}/resume")).status_code == 200
    assert code(await plane.client.post(f"/v1/capsules/{capsule}/{path}", **how)) == (400, "invalid_request")


async def test_a_body_of_nobody_is_not_taken_in(plane: Plane) -> None:
    """The answer is there while the body has hardly begun."""
    capsule = await plane.capsule()
    _, writer = streams = await asyncio.open_connection("127.0.0.1", int(plane.url.rsplit(":", 1)[1]))
    head = f"POST /v1/capsules/{capsule}/exec HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 3000000\r\n\r\n" + "{"
    writer.write(head.encode())
    async with asyncio.timeout(60):
        assert (await streams[0].readline()).split()[1] == b"401"
    writer.close()


async def test_what_is_so_already_is_a_wrong_state_and_says_so(plane: Plane) -> None:
    capsule = await plane.capsule()
    again = await plane.client.post(f"/v1/capsules/{capsule}/resume")
    assert (*code(again), again.json()["error"]["reason"]) == (409, "invalid_state", "already")
    assert (await plane.client.post(f"/v1/capsules/{capsule}/pause")).status_code == 200
    again = await plane.client.post(f"/v1/capsules/{capsule}/pause")
    assert (*code(again), again.json()["error"]["reason"]) == (409, "invalid_state", "already")
    assert code(await plane.client.post(f"/v1/capsules/{capsule}/ping")) == (409, "invalid_state")
    both = await asyncio.gather(*(plane.client.post(f"/v1/capsules/{capsule}/resume") for _ in range(2)))
    assert sorted(answer.status_code for answer in both) in ([200, 200], [200, 409])  # who comes while it is under way waits with the first
    for _ in range(2):
        assert (await plane.client.delete(f"/v1/capsules/{capsule}")).status_code == 204
    assert (await plane.client.get(f"/v1/capsules/{capsule}")).json()["status"] == "stopped"
    assert code(await plane.client.get(f"/v1/capsules/{capsule}/metrics")) == (404, "not_found")


async def test_words_of_a_server_are_no_labels(plane: Plane) -> None:
    for name in ("envd_version", "kernel_version", "vmm_version", "agent_version", "firecracker_version"):
        assert code(await plane.client.post("/v1/capsules", json={"template": "base", "metadata": {name: "1"}})) == (400, "invalid_request")
    made = (await plane.client.post("/v1/capsules", json={"template": "base", "metadata": {"job": "7"}})).json()
    assert made["metadata"] == {"job": "7"}
    assert [each["id"] for each in (await plane.client.get("/v1/capsules?label=job=7")).json()] == [made["id"]]


async def test_a_key_says_who_made_it(plane: Plane) -> None:
    owner = await login(plane)
    made = (await owner.client.post("/v1/api-keys", json={})).json()
    of_key = (await plane.client.post("/v1/api-keys", json={"name": "by a key"})).json()
    listed = {each["id"]: each for each in (await owner.client.get("/v1/api-keys")).json()}
    assert (listed[made["id"]]["name"], listed[made["id"]]["created_by"]) == ("Unnamed API Key", owner.user_id)
    me = (await owner.client.get("/v1/me")).json()
    assert listed[made["id"]]["creator_email"] == made["creator_email"] == me["email"]
    assert "creator_email" not in listed[of_key["id"]]
    assert listed[of_key["id"]]["created_by"].startswith("key-")


async def pages_of(client: httpx.AsyncClient, path: str, limit: int = 2) -> list[Any]:
    found, cursor = [], ""
    while True:
        answer = await client.get(httpx.URL(path).copy_merge_params({"limit": limit} | ({"cursor": cursor} if cursor else {})))
        assert answer.status_code == 200, answer.text
        assert len(answer.json()) <= limit
        found += answer.json()
        cursor = answer.headers.get("x-next-cursor", "")
        if not cursor:
            return found


async def test_short_lists_come_in_pages_too(plane: Plane) -> None:
    owner = await login(plane)
    for number in range(4):
        assert (await plane.client.post("/v1/api-keys", json={"name": f"k{number}"})).status_code == 201
        await owner.invite(await person(plane, f"p{number}"), "member")
        assert (await owner.client.post("/v1/teams", json={"name": f"Team {number}"})).status_code == 201
        await login(plane)
    found: dict[str, list[Any]] = {}
    lists = [("/v1/api-keys", 2 + 4), (f"/v1/teams/{owner.team_id}/members", 1 + 4), ("/v1/teams", 1 + 4), ("/v1/me/sessions", 1 + 4)]
    for path, count in [*lists, ("/v1/users/search?email=p0%40", 1)]:  # the first start made two keys, a user and a team
        found[path] = (await owner.client.get(path)).json()
        assert len(found[path]) == count, path
        assert await pages_of(owner.client, path) == found[path]
        for bad in ("nonsense", "WyJ4Il0=", "4", "é", "x" * 5001):
            assert code(await owner.client.get(httpx.URL(path).copy_merge_params({"cursor": bad}))) == (400, "invalid_request")
    assert found["/v1/teams"][0]["id"] == owner.team_id  # the default one leads, on the first page only
    assert [each["name"] for each in found["/v1/teams"][1:]] == [f"Team {number}" for number in range(4)]


async def test_found_users_come_in_pages(plane: Plane) -> None:
    owner = await login(plane)
    for number in (3, 1, 2):
        await owner.invite(await person(plane, "x", f"x@host{number}.example.org"), "member")
    path = "/v1/users/search?email=X%40H"
    assert [each["email"] for each in await pages_of(owner.client, path)] == [f"x@host{number}.example.org" for number in (1, 2, 3)]


async def test_the_audit_log_before_a_time(plane: Plane) -> None:
    await plane.capsule()
    assert (await plane.client.get("/v1/audit-logs", params={"before": "2000-01-01T00:00:00Z"})).json()["items"] == []
    everything = (await plane.client.get("/v1/audit-logs", params={"before": "2999-01-01T00:00:00+02:00"})).json()["items"]
    assert everything == (await plane.client.get("/v1/audit-logs")).json()["items"] != []
    assert all(len(each["id"]) == 29 and each["id"].startswith("log-") for each in everything)
    for bad in ("yesterday", "2000-01-01T00:00:00"):
        assert code(await plane.client.get("/v1/audit-logs", params={"before": bad})) == (400, "invalid_request")


async def test_an_event_carries_its_sandbox(plane: Plane) -> None:
    async with plane.client.stream("GET", "/v1/events/stream") as stream:
        lines = stream.aiter_lines()
        seen: list[dict[str, Any]] = []
        capsule = await plane.capsule()
        async with asyncio.timeout(60):
            while not seen or seen[-1]["event"] != "capsule.create":
                line = await anext(lines)
                if line.startswith("data:"):
                    seen.append(json.loads(line[5:]))
    assert seen[-1]["sandbox"]["id"] == capsule
    assert seen[-1]["outcome"] == "success"
    assert all("outcome" not in each for each in seen if each["event"] in ("connected", "capsule.state.changed"))


async def test_the_openapi_file_as_yaml(plane: Plane) -> None:
    for path in ("/openapi.yaml", "/api/openapi.yaml"):
        answer = await plane.anyone.get(path)
        assert answer.headers["content-type"].startswith("application/yaml")
        assert answer.json() == plane.app.openapi()


# WebSockets: the same for who may not ask. Their answer is a frame and a close code.

SOCKETS = ("exec/stream", "pty", "processes/x/stream")


async def refusal(plane: Plane, path: str, headers: dict[str, str], first: str = "") -> tuple[int, str]:
    """`first`: the token in the frame that who is not known by the headers is asked for; '' says nothing."""
    async with websockets.connect(plane.url.replace("http", "ws") + path, additional_headers=headers) as socket:
        if first:
            await socket.send(json.dumps({"type": "auth", "token": first}))
        frame = json.loads(await socket.recv())
        with pytest.raises(websockets.ConnectionClosed):
            await socket.recv()
        assert frame["type"] == "error"
        assert frame["fatal"] and frame["request_id"]
        assert socket.close_code is not None
        return socket.close_code, frame["code"]


async def test_no_socket_opens_for_who_may_not(plane: Plane) -> None:
    capsule, owner, stranger = await plane.capsule(), await login(plane), await person(plane, "stranger")
    bad = [
        {},
        {"X-API-Key": "trp_" + "0" * 40},
        {"X-API-Key": await plane.add_key(revoked_at=1.0)},
        {"X-API-Key": await plane.add_key(expires_at=1.0)},
        {"Authorization": f"Bearer {owner.token[:-3]}xyz"},
    ]
    narrow = {"X-API-Key": await plane.add_key(scopes=("sandboxes:read",))}
    for what in SOCKETS:
        path = f"/v1/capsules/{capsule}/{what}"
        as_admin = path.replace("/v1/", "/v1/admin/")
        for headers in bad:
            for first in ("trp_" + "0" * 40, f"{stranger.token[:-3]}xyz"):
                assert await refusal(plane, path, headers, first) == (4401, "unauthorized"), headers
        assert await refusal(plane, path, narrow) == (4403, "forbidden")
        for headers in ({"X-API-Key": plane.other.headers["X-API-Key"]}, {"Authorization": f"Bearer {stranger.token}"}):
            assert await refusal(plane, path, headers) == (4404, "not_found")
            assert await refusal(plane, as_admin, headers) == (4403, "forbidden")
        assert await refusal(plane, as_admin, {"Authorization": f"Bearer {owner.token}"}) == (4404, "not_found")
    assert (await plane.client.get(f"/v1/capsules/{capsule}")).json()["state"] == "running"


@pytest.mark.parametrize("headers", [{}, {"X-API-Key": "trp_" + "0" * 40}], ids=["no key", "a wrong key"])
async def test_who_says_nothing_is_not_waited_for(plane: Plane, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    capsule = await plane.capsule()
    monkeypatch.setattr(auth, "AUTH_SECONDS", 0.05)
    for what in SOCKETS:
        assert await refusal(plane, f"/v1/capsules/{capsule}/{what}", headers) == (4401, "unauthorized")


async def test_a_cookie_changes_nothing_without_its_csrf_token(plane: Plane) -> None:
    """Every changing operation of the document."""
    owner = await login(plane)
    capsule = await plane.capsule()
    me = (await owner.client.get("/v1/me")).json()
    browser = plane.stack_client()
    assert plane.wired.first is not None
    logged_in = await browser.post("/v1/auth/login", json={"email": me["email"], "password": plane.wired.first.password, "cookie": True})
    assert logged_in.status_code == 200, logged_in.text
    for path, methods in plane.app.openapi()["paths"].items():
        for method, operation in methods.items():
            if "x-scope" not in operation or method == "get":
                continue
            url = path.replace("{capsule_id}", capsule).replace("{team_id}", owner.team_id).replace("{user_id}", owner.user_id)
            for headers in ({}, {"X-CSRF-Token": "0" * 40}, {"X-CSRF-Token": logged_in.json()["csrf_token"], "Origin": "https://evil.example"}):
                answer = await browser.request(method.upper(), url, json={}, headers=headers)
                assert code(answer) == (403, "forbidden"), (method, path, headers)
    assert (await browser.get("/v1/me")).status_code == 200
    assert (await plane.client.get(f"/v1/capsules/{capsule}")).json()["state"] == "running"
