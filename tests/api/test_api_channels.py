"""Channels over the API: what a team sets up, what arrives, what was given up."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from plane_world import Plane, open_plane

from torpor.apps.control import Outside
from torpor.notify.client import Client
from torpor.notify.guard import Guard, networks
from torpor.notify.seal import sealer_of
from torpor.service.context import Policy

NOWHERE = "ch-" + "0" * 25


@dataclass
class Receiver:
    """A webhook's server on loopback. `status`: what it answers."""

    url: str = ""
    status: int = 204
    seen: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    came: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        self.seen.append((headers, await reader.readexactly(int(headers["content-length"]))))
        writer.write(f"HTTP/1.1 {self.status} X\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n".encode())
        await writer.drain()
        writer.close()
        self.came.set()

    async def until(self, count: int) -> list[dict[str, Any]]:
        """The bodies, when there are so many."""
        async with asyncio.timeout(60):
            while len(self.seen) < count:
                self.came.clear()
                await self.came.wait()
        return [json.loads(body) for _, body in self.seen]


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0)
    receiver.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
    try:
        yield receiver
    finally:
        server.close()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as made:
        yield made


@asynccontextmanager
async def open_to_loopback(folder: Path, **policy: Any) -> AsyncIterator[Plane]:
    outside = Client(Guard(networks("127.0.0.0/8")))
    async with open_plane(folder, outside=Outside(outside, sealer_of(folder)), policy=Policy(**policy)) as opened:
        yield opened


@pytest.fixture
async def near(tmp_path: Path) -> AsyncIterator[Plane]:
    """A plane whose operator lets messages go to loopback."""
    async with open_to_loopback(tmp_path) as opened:
        yield opened


def body_of(receiver: Receiver, name: str = "ops", **fields: Any) -> dict[str, Any]:
    return {"name": name, "provider": "webhook", "config": {"url": receiver.url}, "events": ["capsule.created", "capsule.destroyed"]} | fields


async def made(near: Plane, receiver: Receiver, **fields: Any) -> dict[str, Any]:
    answer = await near.client.post("/v1/channels", json=body_of(receiver, **fields))
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def deliveries(near: Plane, channel_id: str, **query: Any) -> list[dict[str, Any]]:
    answer = await near.client.get(f"/v1/channels/{channel_id}/deliveries", params=query)
    assert answer.status_code == 200, answer.text
    return list(answer.json())


async def until_deliveries(near: Plane, channel_id: str, holds: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
    """Looks until they are so: what was sent is noted a moment later."""
    async with asyncio.timeout(60):
        while not holds(found := await deliveries(near, channel_id)):
            pass
    return found


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


async def test_a_sandbox_s_life_arrives_signed(near: Plane, receiver: Receiver) -> None:
    channel = await made(near, receiver)
    capsule = await near.capsule()
    assert (await near.client.delete(f"/v1/capsules/{capsule}")).status_code == 204
    created, destroyed = await receiver.until(2)
    assert (created["event"], destroyed["event"]) == ("capsule.created", "capsule.destroyed")
    assert created["resource"] == {"id": capsule, "type": "sandbox"}
    assert created["team_id"] == channel["team_id"]
    assert created["actor"]["type"] == "api_key"
    assert created["actor"]["id"].startswith("key-")
    assert created["id"] < destroyed["id"]
    for headers, body in receiver.seen:
        expected = hmac.new(channel["secret"].encode(), headers["x-wrenn-timestamp"].encode() + b"." + body, hashlib.sha256).hexdigest()
        assert headers["x-wrenn-signature"] == f"sha256={expected}"
    ids = [headers["x-torpor-delivery"] for headers, _ in receiver.seen]
    found = await until_deliveries(near, channel["id"], lambda all_: [one["state"] for one in all_] == ["delivered"] * 2)
    assert [one["id"] for one in found] == ids[::-1]
    assert [(one["event"], one["resource_id"], one["attempts"]) for one in found] == [("capsule.destroyed", capsule, 1), ("capsule.created", capsule, 1)]


async def test_secrets_are_shown_once_and_lie_nowhere_in_the_clear(near: Plane, receiver: Receiver, tmp_path: Path) -> None:
    channel = await made(near, receiver, config={"url": f"{receiver.url}?token=tok3n", "secret": "v3ry-secret"})
    assert channel["secret"] == "v3ry-secret"
    path = f"/v1/channels/{channel['id']}"
    answers = [
        await near.client.get(path),
        await near.client.get("/v1/channels"),
        await near.client.patch(path, json={"name": "x", "events": ["capsule.paused"]}),
        await near.client.put(f"{path}/config", json={"config": {"url": receiver.url}}),
        await near.client.get("/v1/audit-logs"),
    ]
    assert [answer.status_code for answer in answers] == [200] * 5
    for answer in answers:
        assert not any(secret in answer.text for secret in ("secret", "tok3n", "127.0.0.1"))
    with sqlite3.connect(tmp_path / "records.db") as database:
        dump = "\n".join(database.iterdump())
    assert "v3ry-secret" not in dump
    assert "tok3n" not in dump
    assert (tmp_path / "seal.key").stat().st_mode & 0o777 == 0o600


async def test_a_channel_is_made_seen_changed_and_deleted(near: Plane, receiver: Receiver) -> None:
    channel = await made(near, receiver, name="  My Ops ", events=["capsule.destroyed", "capsule.created", "capsule.created"])
    assert (channel["name"], channel["provider"], channel["events"]) == ("my-ops", "webhook", ["capsule.created", "capsule.destroyed"])
    path = f"/v1/channels/{channel['id']}"
    shown = {name: value for name, value in channel.items() if name != "secret"}
    assert (await near.client.get(path)).json() == shown
    assert (await near.client.get("/v1/channels")).json() == [shown]
    assert code(await near.client.post("/v1/channels", json=body_of(receiver, "my ops"))) == (409, "conflict")
    changed = (await near.client.patch(path, json={"name": "Night", "events": ["capsule.paused"]})).json()
    assert changed == shown | {"name": "night", "events": ["capsule.paused"], "updated_at": changed["updated_at"]}
    await made(near, receiver, name="my-ops")
    assert code(await near.client.patch(path, json={"name": "my-ops", "events": ["capsule.paused"]})) == (409, "conflict")
    for _ in range(2):
        assert (await near.client.delete(path)).status_code == 204
    assert code(await near.client.get(path)) == (404, "not_found")
    log = (await near.client.get("/v1/audit-logs", params={"resource_type": "channel"})).json()["items"]
    assert [(one["action"], one["status"], one["metadata"]["name"]) for one in log[::-1]] == [
        ("create", "success", "my-ops"),
        ("update", "info", "night"),
        ("create", "success", "my-ops"),
        ("delete", "warning", "night"),
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"provider": "pager"},
        {"provider": ""},
        {"name": ""},
        {"name": "a/b"},
        {"name": "x" * 65},
        {"events": []},
        {"events": ["capsule.nothing"]},
        {"events": ["channel.test"]},
        {"events": "capsule.created"},
        {"config": {}},
        {"config": {"url": ""}},
        {"config": {"url": 7}},
        {"config": {"url": "http://10.0.0.1/"}},
        {"config": {"url": "http://169.254.169.254/latest/meta-data"}},
        {"config": {"url": "http://[::ffff:169.254.169.254]/"}},
        {"config": {"url": "http://0xa9fea9fe/"}},
        {"config": {"url": "http://user:pass@127.0.0.1/"}},
        {"config": {"url": "http://nowhere.invalid/"}},
        {"config": {"url": "http://127.0.0.1/", "secret": "a\nb"}},
        {"provider": "slack", "config": {"webhook_url": "https://127.0.0.1/"}},
        {"provider": "matrix", "config": {"homeserver_url": "http://10.1.2.3", "access_token": "a", "room_id": "!a:b"}},
    ],
)
async def test_what_cannot_be_is_refused_when_it_is_saved(near: Plane, receiver: Receiver, change: dict[str, Any]) -> None:
    assert code(await near.client.post("/v1/channels", json=body_of(receiver) | change)) == (400, "invalid_request")
    assert (await near.client.get("/v1/channels")).json() == []


async def test_loopback_is_refused_unless_an_operator_opens_it(plane: Plane, receiver: Receiver) -> None:
    for path, body in (("/v1/channels", body_of(receiver)), ("/v1/channels/test", {"provider": "webhook", "config": {"url": receiver.url}})):
        answer = await plane.client.post(path, json=body)
        assert code(answer) == (400, "invalid_request")
        assert "not on the public internet" in answer.json()["error"]["message"]
    assert receiver.seen == []


async def test_a_test_is_sent_at_once(near: Plane, receiver: Receiver) -> None:
    given = {"provider": "webhook", "config": {"url": receiver.url, "secret": "s"}}
    answer = await near.client.post("/v1/channels/test", json=given)
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    channel = await made(near, receiver)
    assert (await near.client.post(f"/v1/channels/{channel['id']}/test")).json() == {"status": "ok"}
    first, second = await receiver.until(2)
    assert (first["event"], first["resource"]) == ("channel.test", {"id": "", "type": "channel"})
    assert second["resource"] == {"id": channel["id"], "type": "channel"}
    for status in (500, 302):
        receiver.status = status
        answer = await near.client.post("/v1/channels/test", json=given)
        assert code(answer) == (502, "delivery_failed")
        assert answer.json()["error"]["message"] == f"127.0.0.1 answered {status}."


async def test_tests_are_limited(tmp_path: Path, receiver: Receiver) -> None:
    async with open_to_loopback(tmp_path, channel_tests_a_minute=2) as near:
        given = {"provider": "webhook", "config": {"url": receiver.url}}
        answers = [await near.client.post("/v1/channels/test", json=given) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert 1 <= int(answers[2].headers["retry-after"]) <= 61
        assert (await near.other.post("/v1/channels/test", json=given)).status_code == 200
    assert len(receiver.seen) == 3


async def test_what_was_given_up_is_seen_and_can_be_sent_again(tmp_path: Path, receiver: Receiver) -> None:
    receiver.status = 503
    async with open_to_loopback(tmp_path, delivery_given_up=0.0) as near:
        channel = await made(near, receiver)
        capsule = await near.capsule()
        await receiver.until(1)
        await until_deliveries(near, channel["id"], lambda all_: [one["state"] for one in all_] == ["dead"])
        dead = await deliveries(near, channel["id"], state="dead")
        assert dead[0] | {"ended_at": "", "created_at": ""} == {
            "id": receiver.seen[0][0]["x-torpor-delivery"],
            "event_id": dead[0]["event_id"],
            "event": "capsule.created",
            "resource_id": capsule,
            "state": "dead",
            "attempts": 1,
            "error": "127.0.0.1 answered 503.",
            "ended_at": "",
            "created_at": "",
        }
        receiver.status = 200
        retry = f"/v1/channels/{channel['id']}/deliveries/{dead[0]['id']}/retry"
        assert (await near.client.post(retry)).json()["state"] == "waiting"
        await receiver.until(2)
        await until_deliveries(near, channel["id"], lambda all_: [one["state"] for one in all_] == ["delivered"])
        assert code(await near.client.post(retry)) == (409, "invalid_state")
        assert code(await near.client.post(retry.replace(dead[0]["id"], "dlv-" + "0" * 25))) == (404, "not_found")


async def test_another_config_sends_what_waits_at_once_and_keeps_the_secret(near: Plane, receiver: Receiver) -> None:
    receiver.status = 500
    async with receiving() as better:
        channel = await made(near, receiver)
        await near.capsule()
        await receiver.until(1)
        await until_deliveries(near, channel["id"], lambda all_: [one.get("error") for one in all_] == ["127.0.0.1 answered 500."])
        answer = await near.client.put(f"/v1/channels/{channel['id']}/config", json={"config": {"url": better.url}})
        assert answer.status_code == 200
        await better.until(1)
    headers, body = better.seen[0]
    expected = hmac.new(channel["secret"].encode(), headers["x-wrenn-timestamp"].encode() + b"." + body, hashlib.sha256).hexdigest()
    assert headers["x-wrenn-signature"] == f"sha256={expected}"
    assert headers["x-torpor-delivery"] == receiver.seen[0][0]["x-torpor-delivery"]


async def test_deliveries_come_in_pages(near: Plane, receiver: Receiver) -> None:
    channel = await made(near, receiver)
    for _ in range(3):
        await near.capsule()
    await receiver.until(3)
    url, seen = f"/v1/channels/{channel['id']}/deliveries?limit=2", []
    while url:
        answer = await near.client.get(url)
        seen += [one["event_id"] for one in answer.json()]
        url = answer.links.get("next", {}).get("url", "")
    assert seen == sorted(seen, reverse=True)
    assert len(seen) == 3
    assert code(await near.client.get(f"/v1/channels/{channel['id']}/deliveries?cursor=x")) == (400, "invalid_request")
    assert code(await near.client.get(f"/v1/channels/{channel['id']}/deliveries?state=lost")) == (400, "invalid_request")


async def test_another_team_sees_and_changes_nothing(near: Plane, receiver: Receiver) -> None:
    channel = await made(near, receiver)
    path = f"/v1/channels/{channel['id']}"
    assert (await near.other.get("/v1/channels")).json() == []
    answers = [
        await near.other.get(path),
        await near.other.patch(path, json={"name": "x", "events": ["capsule.paused"]}),
        await near.other.put(f"{path}/config", json={"config": {"url": receiver.url}}),
        await near.other.post(f"{path}/test"),
        await near.other.get(f"{path}/deliveries"),
        await near.other.post(f"{path}/deliveries/dlv-{'0' * 25}/retry"),
    ]
    unknown = await near.client.get(f"/v1/channels/{NOWHERE}")
    assert {(answer.status_code, answer.json()["error"]["message"]) for answer in answers} == {(404, unknown.json()["error"]["message"])}
    assert (await near.other.delete(path)).status_code == 204
    assert (await near.client.get(path)).status_code == 200
    assert receiver.seen == []


async def test_scopes_are_asked_for(near: Plane, receiver: Receiver) -> None:
    reader, stranger = await near.add_key(scopes=("team:read",)), await near.add_key(scopes=("sandboxes:read",))
    given = body_of(receiver)
    for key, method, path, status in (
        (reader, "GET", "/v1/channels", 200),
        (reader, "POST", "/v1/channels", 403),
        (reader, "POST", "/v1/channels/test", 403),
        (reader, "DELETE", f"/v1/channels/{NOWHERE}", 403),
        (stranger, "GET", "/v1/channels", 403),
        ("", "GET", "/v1/channels", 401),
    ):
        headers = {"X-API-Key": key} if key else {}
        answer = await near.anyone.request(method, path, headers=headers, json=given if method == "POST" else None)
        assert answer.status_code == status, (method, path)
    assert receiver.seen == []


async def test_a_team_has_a_bounded_number(tmp_path: Path, receiver: Receiver) -> None:
    async with open_to_loopback(tmp_path, channels_of_team=2) as near:
        for number in range(2):
            await made(near, receiver, name=f"c{number}")
        answer = await near.client.post("/v1/channels", json=body_of(receiver, "c3"))
        assert code(answer) == (400, "invalid_request")
        assert "2 channels" in answer.json()["error"]["message"]
