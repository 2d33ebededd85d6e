"""Teams, their members, and what administrators do, over HTTP."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
import websockets
from people_world import Person, login, person
from plane_world import Plane

from torpor.model.records import PLATFORM_TEAM
from torpor.testing.fake_hosts import Fault, Trouble


@pytest.fixture
async def ann(plane: Plane) -> Person:
    return await person(plane, "ann")


@pytest.fixture
async def bob(plane: Plane) -> Person:
    return await person(plane, "bob")


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


# Teams


async def test_teams_are_made_renamed_and_listed(plane: Plane, ann: Person) -> None:
    how: dict[str, Any] = {"json": {"name": "Second"}, "headers": {"Idempotency-Key": "second"}}
    made = await asyncio.gather(*(ann.client.post("/v1/teams", **how) for _ in range(3)))
    assert {answer.status_code for answer in made} == {201}
    assert len({answer.json()["id"] for answer in made}) == 1
    assert code(await ann.client.post("/v1/teams", json={"name": "Other"}, headers=how["headers"])) == (409, "conflict")
    team = made[0].json()
    assert (team["name"], team["role"], team["is_byoc"]) == ("Second", "owner", False)
    listed = (await ann.client.get("/v1/teams")).json()
    assert [one["name"] for one in listed] == ["ann's Team", "Second"]
    assert code(await ann.client.get(f"/v1/teams/{team['id']}")) == (403, "forbidden")  # not without acting for it
    await ann.switch(team["id"])
    assert (await ann.client.patch(f"/v1/teams/{team['id']}", json={"name": "Renamed"})).status_code == 204
    found = (await ann.client.get(f"/v1/teams/{team['id']}")).json()
    assert (found["team"]["name"], [one["email"] for one in found["members"]]) == ("Renamed", ["ann@example.org"])
    entries = (await ann.client.get("/v1/audit-logs?resource_type=team")).json()["items"]
    assert [(one["action"], one["actor_id"], one["resource_id"]) for one in entries] == [
        ("rename", ann.user_id, team["id"]),
        ("create", ann.user_id, team["id"]),
    ]
    assert entries[0]["metadata"] == {"old_name": "Second", "new_name": "Renamed"}
    for bad in ("", " ", "a\n", "x" * 129, "é", "<b>"):
        assert (await ann.client.post("/v1/teams", json={"name": bad})).status_code == 400, bad


async def test_members_come_change_and_go(plane: Plane, ann: Person, bob: Person) -> None:
    members = f"/v1/teams/{ann.team_id}/members"
    own = bob.team_id
    assert code(await ann.client.post(members, json={"email": "nobody@example.org"})) == (404, "not_found")
    assert code(await ann.client.post(members, json={"email": "ann@example.org"})) == (400, "invalid_request")
    added = (await ann.client.post(members, json={"email": "BOB@example.org"})).json()
    assert (added["user_id"], added["role"]) == (bob.user_id, "member")
    await bob.switch(ann.team_id)
    assert [one["role"] for one in (await bob.client.get(members)).json()] == ["owner", "member"]
    assert code(await bob.client.patch(f"{members}/{ann.user_id}", json={"role": "member"})) == (403, "forbidden")
    assert (await ann.client.patch(f"{members}/{bob.user_id}", json={"role": "admin"})).status_code == 204
    assert code(await bob.client.delete(f"{members}/{ann.user_id}")) == (403, "forbidden")
    assert code(await bob.client.patch(f"{members}/{bob.user_id}", json={"role": "owner"})) == (403, "forbidden")
    key = (await bob.client.post("/v1/api-keys", json={"name": "of bob"})).json()["key"]
    assert (await ann.client.delete(f"{members}/{bob.user_id}")).status_code == 204
    assert code(await bob.client.get("/v1/capsules")) == (401, "unauthorized")
    assert (await plane.anyone.get("/v1/capsules", headers={"X-API-Key": key})).status_code == 401
    assert code(await ann.client.delete(f"{members}/{bob.user_id}")) == (404, "not_found")
    again = await plane.anyone.post("/v1/auth/login", json={"email": bob.email, "password": "correct horse battery"})
    assert again.json()["team_id"] == own


async def test_a_team_keeps_an_owner(plane: Plane, ann: Person, bob: Person) -> None:
    team = f"/v1/teams/{ann.team_id}"
    assert code(await ann.client.post(f"{team}/leave")) == (403, "last_owner")
    assert code(await ann.client.patch(f"{team}/members/{ann.user_id}", json={"role": "member"})) == (403, "last_owner")
    assert code(await ann.client.delete(f"{team}/members/{ann.user_id}")) == (403, "last_owner")
    await ann.invite(bob, "owner")
    left = await asyncio.gather(ann.client.post(f"{team}/leave"), bob.client.post(f"{team}/leave"))
    assert sorted(answer.status_code for answer in left) == [204, 403]
    stayed = bob if left[0].status_code == 204 else ann
    assert [one["user_id"] for one in (await stayed.client.get(f"{team}/members")).json()] == [stayed.user_id]


async def test_a_team_is_deleted_with_all_it_has(plane: Plane, ann: Person, bob: Person) -> None:
    await ann.invite(bob)
    capsule, paused = await ann.capsule(), await ann.capsule()
    await ann.client.post(f"/v1/capsules/{paused}/pause")
    assert (await ann.client.post("/v1/snapshots", json={"sandbox_id": capsule, "name": "kept"})).status_code == 201
    key = {"X-API-Key": (await ann.client.post("/v1/api-keys", json={})).json()["key"]}
    assert (await plane.anyone.get("/v1/capsules", headers=key)).status_code == 200
    assert (await ann.client.delete(f"/v1/teams/{ann.team_id}")).status_code == 204
    assert plane.host.statuses() == {}
    assert plane.host.snapshots() == {}
    for credential in (key, {"Authorization": f"Bearer {ann.token}"}, {"Authorization": f"Bearer {bob.token}"}):
        assert (await plane.anyone.get("/v1/capsules", headers=credential)).status_code == 401
    async with plane.wired.context.store.read() as records:
        assert await records.chores.list() == []
        assert await records.teams.members(ann.team_id.removeprefix("team-")) == []
    admin = await login(plane)
    entries = (await admin.client.get("/v1/admin/audit-logs?resource_type=team")).json()["items"]
    assert [(one["action"], one["resource_id"]) for one in entries[:2]] == [("clear", ann.team_id), ("delete", ann.team_id)]
    fresh = await plane.anyone.post("/v1/auth/login", json={"email": ann.email, "password": "correct horse battery"})
    assert fresh.json()["team_id"] != ann.team_id  # a new first team


async def test_a_team_whose_host_is_away_is_gone_and_cleared_later(plane: Plane, ann: Person) -> None:
    await ann.capsule()
    plane.host.hold("kill")
    answer = await ann.client.delete(f"/v1/teams/{ann.team_id}", headers={"Prefer": "wait=0"})
    assert (answer.status_code, answer.json()["state"]) == (202, "clearing")
    assert (await ann.client.get("/v1/capsules")).status_code == 401
    plane.host.let_go("kill")
    await plane.wired.plane.chores.round()
    assert plane.host.statuses() == {}


# What is made once


async def test_forks_snapshots_and_keys_are_made_once_for_a_key(plane: Plane, ann: Person) -> None:
    capsule = await ann.capsule()

    async def post(path: str, body: Any, key: str) -> httpx.Response:
        return await ann.client.post(path, json=body, headers={"Idempotency-Key": key})

    forks = [await post(f"/v1/capsules/{capsule}/fork", {"count": 2}, "f") for _ in range(2)]
    assert [answer.status_code for answer in forks] == [201, 201]
    assert [one["id"] for one in forks[0].json()] == [one["id"] for one in forks[1].json()]
    for body in ({"sandbox_id": capsule}, {"sandbox_id": capsule, "name": "named"}):
        made = [await post("/v1/snapshots", body, str(len(body))) for _ in range(2)]
        assert [answer.status_code for answer in made] == [201, 201]
        assert made[0].json() == made[1].json()
    assert len((await ann.client.get("/v1/snapshots?type=snapshot")).json()) == 2
    assert code(await post("/v1/snapshots", {"sandbox_id": capsule, "name": "x"}, "f")) == (409, "conflict")
    keys = [(await post("/v1/api-keys", {"name": "ci"}, "k")).json() for _ in range(2)]
    assert keys[0]["id"] == keys[1]["id"] and keys[0]["key"] != keys[1]["key"]
    works = [(await plane.anyone.get("/v1/capsules", headers={"X-API-Key": key["key"]})).status_code for key in keys]
    assert works == [401, 200]
    await plane.wired.services.access._write_used()
    assert "key" not in (await post("/v1/api-keys", {"name": "ci"}, "k")).json()  # it is in use
    assert len((await ann.client.get("/v1/api-keys")).json()) == 1


# Administrators


async def test_administrators_see_users_and_teams_in_pages(plane: Plane, ann: Person, bob: Person) -> None:
    await ann.invite(bob)
    await ann.capsule()
    admin = await login(plane)
    users = (await admin.client.get("/v1/admin/users")).json()
    assert (users["total"], users["page"], users["per_page"], users["total_pages"]) == (3, 1, 100, 1)
    shown = {one["email"]: (one["teams_joined"], one["teams_owned"], one["is_admin"]) for one in users["users"]}
    assert shown == {"bob@example.org": (2, 1, False), "ann@example.org": (1, 1, False), "admin@localhost": (1, 1, True)}
    assert (await admin.client.get("/v1/admin/users?page=2")).json()["users"] == []
    teams = {one["id"]: one for one in (await admin.client.get("/v1/admin/teams")).json()["teams"]}
    found = teams[ann.team_id]
    assert (found["member_count"], found["owner_email"], found["active_sandbox_count"], found["deleted_at"]) == (2, ann.email, 1, None)
    assert (await admin.client.put(f"/v1/admin/teams/{ann.team_id}/limits", json={"sandboxes": 1})).status_code == 204
    assert code(await ann.client.post("/v1/capsules", json={"template": "base"})) == (429, "quota_exceeded")
    assert (await admin.client.delete(f"/v1/admin/teams/{ann.team_id}")).status_code == 204
    assert plane.host.statuses() == {}
    assert code(await admin.client.delete(f"/v1/admin/teams/{ann.team_id}")) == (404, "not_found")
    assert code(await admin.client.delete(f"/v1/admin/teams/team-{PLATFORM_TEAM}")) == (403, "forbidden")
    for bad in ("page=0", "page=x", "cursor=nonsense"):
        assert (await admin.client.get(f"/v1/admin/users?{bad}")).status_code == 400


async def test_a_deactivated_owners_sandboxes_rest_and_nothing_is_lost(plane: Plane, ann: Person, bob: Person) -> None:
    shared, alone = await ann.capsule(), await bob.capsule()
    await ann.invite(bob, "owner")
    admin = await login(plane)
    assert (await admin.client.put(f"/v1/admin/users/{bob.user_id}/active", json={"active": False})).status_code == 204
    await plane.wired.plane.chores.round()
    statuses = {f"cl-{sandbox}": status.value for sandbox, status in plane.host.statuses().items()}
    assert statuses == {shared: "running", alone: "paused"}
    assert code(await bob.client.get("/v1/me")) == (403, "account_deactivated")
    answer = await plane.anyone.post("/v1/auth/login", json={"email": bob.email, "password": "correct horse battery"})
    assert code(answer) == (403, "account_disabled")
    assert (await admin.client.put(f"/v1/admin/users/{bob.user_id}/active", json={"active": True})).status_code == 204
    assert code(await bob.client.get("/v1/me")) == (401, "unauthorized")  # logins of before stay over
    assert code(await admin.client.put(f"/v1/admin/users/{admin.user_id}/active", json={"active": False})) == (400, "invalid_request")
    assert code(await admin.client.put(f"/v1/admin/users/{admin.user_id}/admin", json={"admin": False})) == (400, "last_admin")
    actions = [one["action"] for one in (await admin.client.get("/v1/admin/audit-logs?resource_type=user")).json()["items"]]
    assert actions[:2] == ["activate", "login"] and "deactivate" in actions


async def test_the_platforms_sandboxes_become_templates_for_everybody(plane: Plane, ann: Person) -> None:
    admin = await login(plane)
    made = await admin.client.post("/v1/admin/capsules", json={"template": "base"})
    assert made.status_code == 201
    capsule = made.json()["id"]
    path = f"/v1/admin/sandboxes/{capsule}"
    assert [one["id"] for one in (await admin.client.get("/v1/admin/capsules")).json()] == [capsule]
    assert (await admin.client.get("/v1/capsules")).json() == []
    assert (await admin.client.get(f"/v1/capsules/{capsule}")).status_code == 404
    ran = await admin.client.post(f"{path}/exec", json={"cmd": "echo", "args": ["hello"]})
    assert ran.json()["stdout"] == "hello\n"
    written = await admin.client.post(f"{path}/files/write", data={"path": "note"}, files={"file": b"text"})
    assert written.status_code == 204
    assert (await admin.client.post(f"{path}/files/read", json={"path": "note"})).text == "text"
    assert (await admin.client.get(f"{path}/metrics")).status_code == 200
    assert "processes" in (await admin.client.get(f"{path}/processes")).json()
    url = f"{plane.url.replace('http', 'ws')}{path}/exec/stream"
    async with websockets.connect(url) as socket:
        await socket.send(json.dumps({"type": "auth", "token": admin.token}))
        await socket.send(json.dumps({"type": "start", "cmd": "true"}))
        assert json.loads(await socket.recv())["type"] == "start"
    async with websockets.connect(url) as socket:
        await socket.send(json.dumps({"type": "auth", "token": ann.token}))
        assert json.loads(await socket.recv())["code"] == "forbidden"
    taken = await admin.client.post(f"{path}/snapshot", json={"name": "ready-made"})
    assert (taken.status_code, taken.json()["platform"]) == (201, True)
    assert (await admin.client.get(path)).json()["status"] == "stopped"
    mine = (await ann.client.post("/v1/capsules", json={"template": "ready-made"})).json()
    assert code(await admin.client.delete("/v1/admin/templates/ready-made")) == (409, "conflict")
    await ann.client.delete(f"/v1/capsules/{mine['id']}")
    assert code(await ann.client.delete("/v1/snapshots/ready-made")) == (403, "forbidden")
    assert code(await admin.client.delete("/v1/admin/templates/minimal")) == (403, "forbidden")
    assert (await admin.client.delete("/v1/admin/templates/ready-made")).status_code == 204


async def test_a_platform_template_is_replaced_when_the_new_one_is_complete(plane: Plane) -> None:
    admin = await login(plane)

    async def capsule() -> str:
        return str((await admin.client.post("/v1/admin/capsules", json={"template": "base"})).json()["id"])

    async def snapshot(capsule: str, name: str = "mine", key: str = "") -> httpx.Response:
        return await admin.client.post(f"/v1/admin/capsules/{capsule}/snapshot", json={"name": name}, headers={"Idempotency-Key": key} if key else {})

    first = (await snapshot(await capsule())).json()
    second = await capsule()
    plane.host.faults.append(Fault("snapshot", Trouble.REFUSED))
    assert (await snapshot(second)).status_code == 502
    assert (await admin.client.get("/v1/snapshots/mine")).json()["id"] == first["id"]
    await plane.wired.plane.chores.round()
    assert (await admin.client.get(f"/v1/admin/capsules/{second}")).json()["status"] != "stopped"  # it did not become a template
    replaced = [await snapshot(second, key="once") for _ in range(2)]
    assert [answer.status_code for answer in replaced] == [201, 201]
    assert replaced[0].json() == replaced[1].json() != first
    assert (await admin.client.get(f"/v1/admin/capsules/{second}")).json()["status"] == "stopped"
    assert code(await snapshot(await capsule(), "minimal")) == (409, "template_name_taken")
    templates = [(one["name"], one["team_id"]) for one in (await admin.client.get("/v1/admin/templates")).json() if one["type"] == "snapshot"]
    assert templates == [("mine", f"team-{PLATFORM_TEAM}")]
