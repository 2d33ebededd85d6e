"""E2B's routes and everybody who may not call them; what no client of good will sends."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any
from urllib.parse import urlsplit

import pytest
from fastapi.routing import APIRoute
from plane_world import Plane
from test_e2b_sandboxes import create

from torpor.api.dialect import NATIVE
from torpor.api.e2b import ROUTERS
from torpor.api.e2b import errors as dialect
from torpor.api.errors import TABLE
from torpor.api.openapi import needs_of
from torpor.model.errors import TorporError

ROUTES = [(method, route) for router in ROUTERS for route in router.routes if isinstance(route, APIRoute) for method in sorted(route.methods or ())]
BODY = {"templateID": "base", "timeout": 100, "name": "n", "tags": ["t"], "target": "base", "public": False}


def address(route: APIRoute, sandbox_id: str) -> str:
    path = route.path
    if "/sandboxes/" in path:
        path = path.replace("{segment}", sandbox_id)
    for name, value in (("{segment}", "0" * 24 + "1"), ("{alias}", "mine"), ("{tag}", "t"), ("{build}", "b"), ("{digest}", "d"), ("{rest:path}", "x")):
        path = path.replace(name, value)
    return path


async def ask(client: Any, method: str, route: APIRoute, sandbox_id: str, **how: Any) -> Any:
    more: dict[str, Any] = {"params": {"metric": "concurrent_sandboxes", "sandbox_ids": "x", "tag": "t"}} if method == "GET" else {"json": BODY}
    return await client.request(method, address(route, sandbox_id), **more, **how)


def is_error(answer: Any) -> bool:
    body = answer.json()
    return bool(body.keys() <= {"code", "message", "error_code"} and body["code"] == answer.status_code and isinstance(body["message"], str))


def test_every_class_of_error_stands_in_the_table() -> None:
    assert set(TABLE) == set(dialect.TABLE) - {dialect.NotBuilt}
    for kind, row in dialect.TABLE.items():
        assert 400 <= row.status < 600
        if row.status in (429, 503):
            assert row.retry_after or row.retry is False, kind
        if row.status == 500:
            assert row.retry is False, kind


def test_every_route_asks_who_calls() -> None:
    assert len(ROUTES) > 60
    for method, route in ROUTES:
        assert needs_of(route) is not None, (method, route.path)
        assert NATIVE is not dialect.E2B
        assert dialect.claims({"type": "http", "path": route.path, "headers": []}), route.path


async def test_no_credential_that_is_no_good_opens_anything(plane: Plane) -> None:
    made = (await create(plane))["sandboxID"]
    bad = {
        "none": {},
        "unknown": {"X-API-Key": "e2b_" + "0" * 40},
        "revoked": {"X-API-Key": await plane.add_key(revoked_at=time.time())},
        "expired": {"X-API-Key": await plane.add_key(expires_at=time.time() - 1)},
        "forged": {"Authorization": "Bearer e2b_forged"},
    }
    narrow = {"X-API-Key": await plane.add_key(scopes=("nothing:at-all",))}
    for method, route in ROUTES:
        for name, headers in bad.items():
            answer = await ask(plane.anyone, method, route, made, headers=headers)
            assert (answer.status_code, is_error(answer)) == (401, True), (method, route.path, name)
        answer = await ask(plane.anyone, method, route, made, headers=narrow)
        assert (answer.status_code, is_error(answer)) == (403, True), (method, route.path)
    assert (await plane.client.get(f"/sandboxes/{made}")).json()["state"] == "running"


async def test_another_teams_are_not_there(plane: Plane) -> None:
    made = (await create(plane))["sandboxID"]
    await plane.client.post(f"/sandboxes/{made}/snapshots", json={"name": "mine"})
    for method, route in ROUTES:
        if "/sandboxes/{segment}" in route.path:
            answer = await ask(plane.other, method, route, made)
            assert (answer.status_code, is_error(answer)) == (404, True), (method, route.path)
    for name in ("mine", "mine%3Adefault"):
        for method, path in (
            ("GET", f"/templates/{name}"),
            ("DELETE", f"/templates/{name}"),
            ("GET", f"/templates/aliases/{name}"),
            ("GET", f"/templates/{name}/tags"),
        ):
            assert (await plane.other.request(method, path)).status_code == 404, path
    assert (await plane.other.post("/v2/sandboxes", json={"templateID": "mine"})).status_code == 404
    assert (await plane.client.get(f"/sandboxes/{made}")).json()["state"] == "running"


async def test_what_http_itself_refuses_is_in_its_words(plane: Plane) -> None:
    for method, path, expected in (
        ("GET", "/sandboxes/x/nothing", 404),
        ("GET", "/v2/nothing", 404),
        ("GET", "/templates/a/b/c/d/e", 404),
        ("PATCH", "/v2/sandboxes", 405),
        ("GET", "/sandboxes/x/pause", 405),
    ):
        answer = await plane.client.request(method, path)
        assert (answer.status_code, is_error(answer)) == (expected, True), path
    for headers in ({"X-API-Key": "e2b_" + "0" * 40}, {"Host": "api.example.org"}):
        answer = await plane.anyone.get("/nothing/at/all", headers=headers)
        assert (answer.status_code, is_error(answer)) == (404, True)
    assert "error" in (await plane.client.get("/nothing/at/all")).json()
    large = await raw(plane, b"/v2/sandboxes", b"POST", b"Content-Length: 5000000\r\n")
    assert (large[0], large[1]["code"]) == (413, 413)


async def test_what_nobody_expected_is_a_500_in_its_words(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a secret of the inside")

    monkeypatch.setattr(plane.wired.services.tags, "find", broken)
    answer = await plane.client.post("/v2/sandboxes", json={"templateID": "base"})
    assert (answer.status_code, is_error(answer), answer.headers["should-retry"]) == (500, True, "false")
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"base"',
        b"{}",
        b'{"templateID": 1}',
        b'{"templateID": null}',
        b'{"templateID": "base\\u0000"}',
        b'{"templateID": "\\ud800"}',
        b'{"templateID": "base", "timeout": "300"}',
        b'{"templateID": "base", "timeout": 0}',
        b'{"templateID": "base", "timeout": -5}',
        b'{"templateID": "base", "timeout": 1.5}',
        b'{"templateID": "base", "timeout": true}',
        b'{"templateID": "base", "timeout": 1e400}',
        b'{"templateID": "base", "timeout": NaN}',
        b'{"templateID": "base", "timeout": 99999999999999999999}',
        b'{"templateID": "base", "metadata": {"a": 1}}',
        b'{"templateID": "base", "metadata": ["a"]}',
        b'{"templateID": "base", "metadata": {"a": "\\u0000"}}',
        b'{"templateID": "base", "envVars": {"": "x"}}',
        b'{"templateID": "base", "envVars": {"A=B": "x"}}',
        b'{"templateID": "base", "autoPause": "yes"}',
        b'{"templateID": "base", "autoResume": true}',
        b'{"templateID": "base", "network": []}',
        b'{"templateID": "base", "network": {"allowOut": [1]}}',
        b'{"templateID": "base", "allow_internet_access": 0}',
        b'{"templateID": "' + b"x" * 100_000 + b'"}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
    ids=lambda content: content[:48].decode("latin-1"),
)
async def test_a_broken_body_makes_nothing(plane: Plane, content: bytes) -> None:
    for path in ("/sandboxes", "/v2/sandboxes"):
        answer = await plane.client.post(path, content=content, headers={"Content-Type": "application/json"})
        assert (answer.status_code, is_error(answer)) == (400, True), answer.text
    assert not plane.host.statuses()


async def raw(plane: Plane, target: bytes, method: bytes = b"GET", headers: bytes = b"") -> tuple[int, dict[str, Any]]:
    """With a request line that no HTTP library would send."""
    where = urlsplit(plane.url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    writer.write(method + b" " + target + b" HTTP/1.1\r\nHost: x\r\nX-API-Key: " + plane.key.encode() + b"\r\n" + headers + b"Connection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body) if body.startswith(b"{") else {}


@pytest.mark.parametrize(
    "target",
    [
        b"/sandboxes/%2e%2e%2fv1%2fcapsules",
        b"/sandboxes/%00",
        b"/sandboxes/%ff%fe",
        b"/sandboxes/%",
        b"/sandboxes/%zz",
        b"/sandboxes/a%2fb%2fc",
        b"/sandboxes/../v2/sandboxes",
        b"/sandboxes//pause",
        b"/templates/%2F%2F",
        b"/templates/a%252Fb",
        b"/templates/aliases/%F0%9F%92%A9",
        b"/templates/aliases/" + b"x" * 2000,
        b"/api-keys/%27%20OR%201=1",
    ],
)
async def test_odd_paths_are_refused(plane: Plane, target: bytes) -> None:
    status, body = await raw(plane, target)
    assert status in (400, 404, 405)
    assert body["code"] == status


async def test_ids_are_decoded_behind_the_slashes(plane: Plane) -> None:
    made = (await create(plane))["sandboxID"]
    assert (await raw(plane, f"/%73andboxes/{made}".encode()))[0] in (200, 404)  # one or the other, but no crash
    assert (await raw(plane, b"/sandboxes/" + made[0].encode().hex().join(["%", ""]).encode() + made[1:].encode()))[0] == 200
    assert (await raw(plane, b"/templates/e2bdev%2Fbase%3Adefault"))[0] == 200
    assert (await raw(plane, b"/templates/e2bdev%2fbase"))[0] == 200
    assert (await raw(plane, b"/templates/e2bdev/base"))[0] == 404


def test_the_message_of_a_fault_of_ours_stays_inside() -> None:
    body = dialect.body_of(TorporError("/var/lib/torpor/secret"), "the-id")
    assert body == {"code": 500, "message": "Something failed on our side; the log has the details under this request id: the-id"}
