"""What lies around every request: errors, callers, headers, the pages for operators."""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

import httpx
import pytest
import structlog
import websockets
from api_world import TEAM, World

from torpor.api import errors
from torpor.log import Log
from torpor.model import errors as tree
from torpor.model.errors import GuestOSError, NoPermission, TorporError
from torpor.model.records import Actor, ActorKind, Role
from torpor.service.access import LoggedIn
from torpor.service.caller import Caller


def every_error(kind: type[TorporError] = TorporError) -> set[type[TorporError]]:
    return {kind}.union(*(every_error(child) for child in kind.__subclasses__()))


def test_every_class_of_error_stands_in_the_table() -> None:
    ours = {kind for kind in every_error() if kind.__module__ == tree.__name__}
    assert ours == set(errors.TABLE)
    assert all(400 <= row.status < 600 for row in errors.TABLE.values())


def test_messages_for_operators_stay_with_them() -> None:
    body = errors.body_of(NoPermission("/var/lib/torpor/secret may not be read"), "id")
    assert "secret" not in json.dumps(body)
    assert body["error"]["reason"] == "no_permission"
    for kind, row in errors.TABLE.items():
        if row.status == 500:
            assert not row.shown, kind


def test_names_that_are_no_text_become_some() -> None:
    message = errors.body_of(GuestOSError(2, "No such file: a\udcffb\ud800", "a\udcff"), "id")["error"]["message"]
    assert message == "No such file: a\ufffdb\ufffd"
    message.encode()


async def test_what_http_itself_refuses_is_typed_too(world: World) -> None:
    missing = await world.client.get("/no/such/path")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    wrong = await world.client.put("/v1/capsules")
    assert (wrong.status_code, wrong.json()["error"]["code"], wrong.headers["allow"]) == (405, "method_not_allowed", "GET, POST")


async def test_what_nobody_expected_is_a_500_without_its_words(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a secret of the inside")

    monkeypatch.setattr(world.sandboxes, "list", broken)
    answer = await world.client.get("/v1/capsules")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "secret" not in answer.text
    assert answer.json()["error"]["request_id"] == answer.headers["x-request-id"]


async def test_request_ids_are_kept_when_sane_and_made_when_not(world: World) -> None:
    for given, kept in (("abc-123", True), ("a" * 65, False), ("a b", False), ("", False)):
        answer = await world.client.get("/health", headers={"X-Request-Id": given})
        assert (answer.headers["x-request-id"] == given) is kept
        assert re.match(r"[A-Za-z0-9._-]{1,64}\Z", answer.headers["x-request-id"])


async def test_browsers_are_kept_careful(world: World) -> None:
    answer = await world.client.get("/v1/capsules")
    wanted = {"x-content-type-options": "nosniff", "x-frame-options": "DENY", "cache-control": "no-store"}
    assert {name: answer.headers[name] for name in wanted} == wanted
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "access-control-allow-origin" not in answer.headers


async def test_the_log_has_no_secrets(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[dict[str, Any]] = []
    monkeypatch.setattr(Log, "_write", lambda _log, level, event, fields: lines.append({"event": event, "level": level.name, **fields}))
    world.access.tickets["hush-ticket"] = world.access.keys[world.key]
    await world.client.get("/v1/capsules", params={"ticket": "hush-ticket"})
    await world.anyone.get("/v1/capsules", headers={"Authorization": "Bearer hush-token"})
    await world.client.post("/v1/capsules", json={"envs": {"SECRET": "hush-variable"}})
    assert [line["status"] for line in lines if line["event"] == "request"] == [200, 401, 201]
    assert {"request_id", "method", "path", "milliseconds", "client", "team"} <= set(lines[0])
    text = json.dumps(lines, default=str)
    assert "hush" not in text
    assert world.key not in text
    assert structlog.contextvars.get_contextvars() == {}


# Callers


async def test_without_a_valid_credential_nothing_is_told(world: World) -> None:
    for headers in (
        {},
        {"X-API-Key": "trp_" + "9" * 40},
        {"X-API-Key": "x" * 10_000},
        {"Authorization": "Bearer nothing"},
        {"Authorization": "Bearer trp_wrong"},
        {"Authorization": "Basic abc"},
        {"Authorization": "Bearer"},
        {"Cookie": "torpor_session=nothing"},
    ):
        answer = await world.anyone.get("/v1/capsules", headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized"), headers
        assert answer.headers["www-authenticate"] == "Bearer"


async def test_a_key_is_taken_as_bearer_too(world: World) -> None:
    assert (await world.anyone.get("/v1/capsules", headers={"Authorization": f"Bearer {world.key}"})).status_code == 200


@pytest.fixture
def login(world: World) -> str:
    """The token of a person of TEAM."""
    caller = Caller(TEAM, Actor(ActorKind.USER, "0" * 25, "Ann"), user_id="0" * 25, role=Role.OWNER)
    world.access.sessions["token"] = LoggedIn(caller, "csrf-value")
    return "token"


async def test_a_browser_must_show_its_csrf_token_and_come_from_here(world: World, login: str) -> None:
    def headers(**more: str) -> dict[str, str]:
        return {"Cookie": f"torpor_session={login}"} | {name.replace("_", "-"): value for name, value in more.items()}

    here = world.url
    expected: list[tuple[str, dict[str, str], int]] = [
        ("GET", headers(), 200),
        ("GET", headers(Origin=here), 200),
        ("GET", headers(Origin="http://evil.example"), 403),
        ("GET", headers(Origin="null"), 403),
        ("POST", headers(), 403),
        ("POST", headers(X_CSRF_Token="wrong"), 403),
        ("POST", headers(X_CSRF_Token="csrf-välue"), 403),
        ("POST", headers(X_CSRF_Token="csrf-value", Origin="http://evil.example"), 403),
        ("POST", headers(X_CSRF_Token="csrf-value", Origin=here), 201),
        ("POST", headers(X_CSRF_Token="csrf-value"), 201),
    ]
    for method, given, status in expected:
        encoded = [(name.encode(), value.encode("latin-1")) for name, value in given.items()]
        answer = await world.anyone.request(method, "/v1/capsules", json={} if method == "POST" else None, headers=encoded)
        assert answer.status_code == status, (method, given)
    bearer = await world.anyone.post("/v1/capsules", json={}, headers={"Authorization": f"Bearer {login}"})
    assert bearer.status_code == 201  # no browser sends this by itself


async def test_a_cookie_opens_a_socket_only_from_here(world: World, login: str, capsule: str) -> None:
    codes = {}
    for origin in (world.url, "http://evil.example", None):
        headers = {"Cookie": f"torpor_session={login}"} | ({"Origin": origin} if origin else {})
        async with world.socket(f"/v1/capsules/{capsule}/exec/stream", key="", headers=headers) as socket:
            with contextlib.suppress(websockets.ConnectionClosed):
                await socket.send(json.dumps({"type": "start", "cmd": "true"}))
            frame = json.loads(await socket.recv())
            codes[origin] = frame.get("code", frame["type"])
    assert codes == {world.url: "start", "http://evil.example": "forbidden", None: "forbidden"}


async def test_tickets_are_for_streams_only(world: World, capsule: str) -> None:
    world.access.tickets["once"] = world.access.keys[world.key]
    assert (await world.anyone.get("/v1/capsules", params={"ticket": "once"})).status_code == 401
    (world.home / "f").write_text("x")
    path = f"/v1/capsules/{capsule}/files/content"
    assert (await world.anyone.get(path, params={"path": "f", "ticket": "once"})).text == "x"
    assert (await world.anyone.get(path, params={"path": "f", "ticket": "once"})).status_code == 401


# For operators


async def test_the_pages_for_operators(world: World) -> None:
    assert (await world.anyone.get("/health")).json()["status"] == "ok"
    document = (await world.anyone.get("/openapi.json")).json()
    assert document["openapi"] == "3.1.0"
    page = await world.anyone.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "/v1/capsules" in page.text
    assert "http://" not in page.text
    assert "<script" not in page.text
    await world.client.get("/v1/capsules")
    counted = (await world.anyone.get("/metrics")).text
    assert 'torpor_http_requests_total{method="GET",route="/v1/capsules",status="200"} 1.0' in counted
    for path in ("/metrics", "/docs"):
        proxied = await world.anyone.get(path, headers={"X-Forwarded-For": "8.8.8.8"})
        assert proxied.status_code == 403
        transport = httpx.ASGITransport(world.app, client=("8.8.8.8", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as far:
            assert (await far.get(path)).status_code == 403
            assert (await far.get(path, headers={"X-API-Key": world.key})).status_code == 403


def test_the_openapi_file_is_complete(world_app: Any) -> None:
    document = world_app.openapi()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            where = f"{method} {path}"
            assert operation.get("description"), where
            if "x-scope" in operation:
                assert {"400", "401", "403", "429", "500", "503"} <= set(operation["responses"]), where
                assert operation["responses"]["401"]["content"]["application/json"]["schema"]["$ref"].endswith("/Error"), where
            assert "422" not in operation["responses"], where
