"""Every route of the OpenAPI file, and everybody who may not call it."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from people_world import Person, login, person
from plane_world import Plane

HEADS_ONLY = {
    ("patch", "/v1/teams/{team_id}"),
    ("delete", "/v1/teams/{team_id}"),
    ("post", "/v1/teams/{team_id}/members"),
    ("patch", "/v1/teams/{team_id}/members/{user_id}"),
    ("delete", "/v1/teams/{team_id}/members/{user_id}"),
    ("post", "/v1/api-keys"),
    ("delete", "/v1/api-keys/{key_id}"),
}
OWNERS_ONLY = {("delete", "/v1/teams/{team_id}")}
BODY = {
    "cmd": "true", "path": "/x", "source": "/x", "target": "/y", "snapshot": "s", "count": 1, "name": "n", "email": "a@b.example", "role": "member",
    "team_id": "team-" + "0" * 25, "confirmation": "nobody@b.example", "current_password": "none", "new_password": "long enough", "active": True,
    "admin": True, "sandbox_id": "cl-" + "0" * 25,
}  # fmt: skip


@dataclass
class Everybody:
    """Credentials that are no good for anything, and people of the team of a running sandbox."""

    capsule: str
    bad: dict[str, dict[str, str]]
    member: Person
    admin: Person
    owner: Person
    stranger: Person


@pytest.fixture
async def everybody(plane: Plane) -> Everybody:
    owner = await login(plane)
    member, admin, stranger, gone = [await person(plane, name) for name in ("member", "admin", "stranger", "gone")]
    for one, role in ((member, "member"), (admin, "admin")):
        await owner.invite(one, role)
    assert (await owner.client.put(f"/v1/admin/users/{gone.user_id}/active", json={"active": False})).status_code == 204
    keys = {
        "unknown": "trp_" + "0" * 40,
        "revoked": await plane.add_key(revoked_at=time.time()),
        "expired": await plane.add_key(expires_at=time.time() - 1),
    }
    headers = {name: {"X-API-Key": key} for name, key in keys.items()} | {"none": {}, "forged": {"Authorization": f"Bearer {member.token[:-3]}xyz"}}
    return Everybody(await plane.capsule(), headers | {"deactivated": {"Authorization": f"Bearer {gone.token}"}}, member, admin, owner, stranger)


def operations(plane: Plane) -> list[tuple[str, str, dict[str, Any]]]:
    paths = plane.app.openapi()["paths"]
    return [(method, path, operation) for path, methods in paths.items() for method, operation in methods.items() if "x-scope" in operation]


def address(path: str, everybody: Everybody) -> str:
    known = {"{capsule_id}": everybody.capsule, "{team_id}": everybody.owner.team_id, "{user_id}": everybody.member.user_id, "{port}": "80"}
    for name, value in known.items():
        path = path.replace(name, value)
    return re.sub(r"{\w+}", "0" * 25, path)


async def ask(client: httpx.AsyncClient, method: str, url: str, operation: dict[str, Any], **more: Any) -> int:
    how: dict[str, Any] = {"params": {"path": "/x"}} if method == "get" else {"json": BODY}
    if "multipart/form-data" in operation.get("requestBody", {}).get("content", {}):
        how = {"data": {"path": "/x"}, "files": {"file": b"x"}}
    return (await client.request(method.upper(), url, **how, **more)).status_code


async def test_no_credential_that_is_no_good_opens_anything(plane: Plane, everybody: Everybody) -> None:
    """None, an unknown, a revoked, an expired key, a forged token: 401. A deactivated account: 403. A key without the scope, and any key where people only
    are asked for: 403."""
    narrow, full = await plane.add_key(scopes=("nothing:at-all",)), await plane.add_key()
    for method, path, operation in operations(plane):
        url = address(path, everybody)
        found = {name: await ask(plane.anyone, method, url, operation, headers=headers) for name, headers in everybody.bad.items()}
        assert found == dict.fromkeys(everybody.bad, 401) | {"deactivated": 403}, (method, path)
        assert await ask(plane.anyone, method, url, operation, headers={"X-API-Key": narrow}) == 403, (method, path)
        if "x-user" in operation:
            assert await ask(plane.anyone, method, url, operation, headers={"X-API-Key": full}) == 403, (method, path)
    assert (await plane.client.get(f"/v1/capsules/{everybody.capsule}")).json()["state"] == "running"


async def test_another_teams_are_not_there(plane: Plane, everybody: Everybody) -> None:
    for method, path, operation in operations(plane):
        url = address(path, everybody)
        if "{capsule_id}" in path and "x-admin" not in operation:
            assert await ask(plane.other, method, url, operation) == 404, (method, path)
            assert await ask(everybody.stranger.client, method, url, operation) == 404, (method, path)
        if "{team_id}" in path and "x-admin" not in operation:
            assert await ask(everybody.stranger.client, method, url, operation) == 404, (method, path)
    assert (await plane.client.get(f"/v1/capsules/{everybody.capsule}")).json()["state"] == "running"
    assert len((await everybody.owner.client.get(f"/v1/teams/{everybody.owner.team_id}/members")).json()) == 3


async def test_what_is_for_administrators_and_for_heads_of_the_team(plane: Plane, everybody: Everybody) -> None:
    """Also that everything under /v1/admin is: the platform's own sandboxes are nobody else's."""
    for method, path, operation in operations(plane):
        url = address(path, everybody)
        assert ("x-admin" in operation) == path.startswith("/v1/admin/"), path
        if "x-admin" in operation:
            for one in (everybody.admin, everybody.member, everybody.stranger):
                assert await ask(one.client, method, url, operation) == 403, (method, path)
            if "{capsule_id}" in path:  # a team's sandbox is not the platform's
                assert await ask(everybody.owner.client, method, url, operation) == 404, (method, path)
        if (method, path) in HEADS_ONLY:
            assert await ask(everybody.member.client, method, url, operation) == 403, (method, path)
        if (method, path) in OWNERS_ONLY:
            assert await ask(everybody.admin.client, method, url, operation) == 403, (method, path)
    assert (await plane.client.get(f"/v1/capsules/{everybody.capsule}")).json()["state"] == "running"
    refused = (await everybody.owner.client.get("/v1/audit-logs?action=refuse&limit=200")).json()["items"]
    noted = {each["resource_id"] for each in refused}
    for method, path in HEADS_ONLY:
        assert f"{method.upper()} {path}" in noted


async def test_deactivation_and_demotion_count_with_the_next_request(plane: Plane, everybody: Everybody) -> None:
    owner, member, admin = everybody.owner, everybody.member, everybody.admin
    assert (await admin.client.get("/v1/admin/users")).status_code == 403
    assert (await owner.client.put(f"/v1/admin/users/{admin.user_id}/admin", json={"admin": True})).status_code == 204
    assert (await admin.client.get("/v1/admin/users")).status_code == 200
    assert (await owner.client.put(f"/v1/admin/users/{admin.user_id}/admin", json={"admin": False})).status_code == 204
    assert (await admin.client.get("/v1/admin/users")).status_code == 403
    team = f"/v1/teams/{owner.team_id}"
    assert (await owner.client.patch(f"{team}/members/{admin.user_id}", json={"role": "member"})).status_code == 204
    assert (await admin.client.patch(team, json={"name": "Mine"})).status_code == 403
    key = (await owner.client.patch(f"{team}/members/{member.user_id}", json={"role": "admin"})).status_code
    assert key == 204
    made = (await member.client.post("/v1/api-keys", json={"name": "of a member"})).json()["key"]
    ticket = (await member.client.post("/v1/auth/ticket")).json()["ticket"]
    assert (await plane.anyone.get("/v1/capsules", headers={"X-API-Key": made})).status_code == 200
    assert (await owner.client.put(f"/v1/admin/users/{member.user_id}/active", json={"active": False})).status_code == 204
    assert (await member.client.get("/v1/capsules")).status_code in (401, 403)
    assert (await plane.anyone.get("/v1/capsules", headers={"X-API-Key": made})).status_code == 401
    assert (await plane.anyone.get("/v1/events/stream", params={"ticket": ticket})).status_code in (401, 403)
