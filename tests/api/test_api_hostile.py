"""What nobody should send, to every operation of the document: the answer is a typed 4xx, and nothing is lost or told."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from typing import Any

import httpx
import pytest
import websockets
from people_world import login
from plane_world import Plane

FIELDS = ("cmd", "path", "name", "template", "sandbox_id", "source", "email", "password", "token", "provider", "snapshot", "role", "config", "events", "scopes")
DEEP = b'{"cmd":' * 20_000 + b"1" + b"}" * 20_000
BODIES: dict[str, bytes] = {
    "cut off": b'{"cmd": "x"',
    "no object": b"[1, 2]",
    "a number": b"7",
    "null": b"null",
    "empty": b"",
    "no text": b"\xff\xfe\x00{",
    "bad utf-8": b'{"cmd": "\xc3\x28", "path": "\xc3\x28", "name": "\xc3\x28"}',
    "deep": DEEP,
    "deep list": b"[" * 200_000,
    "not numbers": b'{"vcpus": NaN, "timeout_sec": Infinity, "count": -Infinity, "depth": NaN, "cmd": "x", "path": "x", "name": NaN}',
    "large numbers": b'{"vcpus": 1e999, "count": 99999999999999999999999999, "depth": 1e400, "timeout_sec": -99999999999999999999999}',
    "long digits": b'{"count": ' + b"9" * 5000 + b', "vcpus": ' + b"9" * 5000 + b"}",
    "half characters": json.dumps(dict.fromkeys(FIELDS, "\ud800")).encode(),
    "nul": json.dumps(dict.fromkeys(FIELDS, "a\0b")).encode(),
    "wrong types": json.dumps({name: {"a": [None]} for name in FIELDS}).encode(),
    "lists": json.dumps(dict.fromkeys(FIELDS, ["x"] * 1000)).encode(),
    "long": json.dumps(dict.fromkeys(FIELDS, "x" * 200_000)).encode(),
}


def operations(plane: Plane) -> list[tuple[str, str, dict[str, Any]]]:
    paths = plane.app.openapi()["paths"]
    return [(method, path, operation) for path, methods in paths.items() for method, operation in methods.items()]


def typed(answer: httpx.Response) -> None:
    assert 400 <= answer.status_code < 500, answer.text[:500]
    error = answer.json()["error"]
    assert error["code"] and error["reason"] and error["request_id"] == answer.headers["x-request-id"]
    assert len(answer.content) < 4096, "it does not send back what it was sent"
    assert "Traceback" not in error["message"] and "/src/" not in error["message"]


async def _healthy(plane: Plane, capsule: str) -> None:
    assert (await plane.client.get(f"/v1/capsules/{capsule}")).json()["state"] == "running"
    ran = await plane.client.post(f"/v1/capsules/{capsule}/exec", json={"cmd": "echo", "args": ["here"]})
    assert ran.json()["stdout"] == "here\n"


async def test_bodies_that_are_none(plane: Plane) -> None:
    """By the one who may do the most, so that nothing is refused for who asks."""
    owner, capsule = await login(plane), await plane.capsule()
    for method, path, operation in operations(plane):
        if "application/json" not in operation.get("requestBody", {}).get("content", {}):
            continue
        url = path.replace("{capsule_id}", capsule).replace("{team_id}", owner.team_id).replace("{user_id}", owner.user_id)
        url = re.sub(r"{\w+}", "0" * 25, url)
        for name, body in BODIES.items():
            answer = await owner.client.request(method.upper(), url, content=body, headers={"Content-Type": "application/json"})
            if answer.status_code >= 400:
                typed(answer)
            else:  # numbers and fields that this operation does not know are no business of it
                assert name in ("not numbers", "large numbers", "long digits", "wrong types", "half characters", "nul", "lists", "long"), (method, url, name)
    await _healthy(plane, capsule)


async def test_bodies_beyond_their_bounds(plane: Plane) -> None:
    capsule = await plane.capsule()
    huge = b'{"cmd": "' + b"x" * (5 << 20) + b'"}'

    async def pieces() -> Any:
        for at in range(0, len(huge), 1 << 16):
            yield huge[at : at + (1 << 16)]

    for content in (huge, pieces()):
        answer = await plane.client.post(f"/v1/capsules/{capsule}/exec", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 413
        typed(answer)
    await _healthy(plane, capsule)


PATHS = [
    "/v1/capsules/..", "/v1/capsules/../../etc/passwd", "/v1/capsules/%2e%2e/%2e%2e", "/v1/capsules/..%2f..%2fetc%2fpasswd", "/v1/capsules/%00",
    "/v1/capsules/cl-%ff%fe", "/v1//capsules", "/v1/capsules/", "//v1/capsules", "/v1/capsules/cl-" + "0" * 5000, "/v1/capsules/CL-" + "0" * 25,
    "/v1/capsules/cl-" + "z" * 25, "/v1/snapshots/..%2f..", "/v1/snapshots/%00", "/v1/snapshots/%F0%9F%98%80", "/v1/api/v1/capsules", "/api/api/v1/capsules",
    "/v1/teams/cl-" + "0" * 25, "/v1/admin/../capsules/x", "/%", "/v1/capsules/;x", "/v1/capsules/cl-0%0d%0aSet-Cookie:%20x=y",
]  # fmt: skip


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_paths_that_lead_nowhere(plane: Plane, method: str) -> None:
    """As they are, byte for byte: a client library would tidy them up."""
    capsule = await plane.capsule()
    for path in PATHS:
        with socket.create_connection(("127.0.0.1", int(plane.url.rsplit(":", 1)[1]))) as peer:
            peer.setblocking(False)
            answer = await _raw(peer, f"{method} {path} HTTP/1.1\r\nHost: x\r\nX-API-Key: {plane.key}\r\nConnection: close\r\n\r\n".encode("latin-1"))
        status = int(answer.split()[1])
        assert 400 <= status < 500, (path, answer[:300])
        assert b"set-cookie" not in answer.lower().partition(b"\r\n\r\n")[0]
        assert b"root:" not in answer
    await _healthy(plane, capsule)


async def _raw(peer: socket.socket, request: bytes) -> bytes:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(peer, request)
    answer = b""
    while data := await loop.sock_recv(peer, 65536):
        answer += data
    return answer


QUERIES = [
    "limit=0", "limit=-1", "limit=1e9", "limit=NaN", "limit=%00", "cursor=%00", "cursor=" + "A" * 600, "cursor=bm9uc2Vuc2U=", "state=%ff", "state=nonsense",
    "label=", "label=%00=1", "label=x", "range=1y", "from=0000-00-00", "from=2026-13-01", "to=-1", "before=never", "before_id=%00", "type=x", "after=-1",
    "after=" + "9" * 30, "page=0", "page=99999999999", "signal=" + "x" * 50, "ended=perhaps", "email=%00%00@", "template=" + "x" * 100,
]  # fmt: skip


async def test_queries_that_ask_for_nothing_there_is(plane: Plane) -> None:
    """To every operation that only looks: the ones it knows are refused, the others ignored."""
    owner, capsule = await login(plane), await plane.capsule()
    for method, path, operation in operations(plane):
        if method != "get" or path.endswith(("/events/stream", "/files/watch")):
            continue
        url = re.sub(r"{\w+}", "0" * 25, path.replace("{capsule_id}", capsule).replace("{team_id}", owner.team_id))
        known = {each["name"] for each in operation.get("parameters", []) if each["in"] == "query"}
        for query in QUERIES:
            answer = await owner.client.get(f"{url}?{query}")
            assert answer.status_code < 500, (url, query, answer.text)
            if answer.status_code >= 400:
                typed(answer)
            if query.partition("=")[0] in known and query not in ("after=" + "9" * 30, "email=%00%00@"):
                assert answer.status_code >= 400 or path.endswith("/snapshots") or query.startswith(("template", "signal")), (url, query)
    await _healthy(plane, capsule)


FRAMES: list[str | bytes] = [
    "", "{", "null", "[]", "7", '"start"', "{}", '{"type": 7}', '{"type": null}', '{"type": "start"}', '{"type": "start", "cmd": 7}', b"\x00\xff", "[" * 50_000,
    '{"type": "start", "cmd": "x", "cols": 1e999, "timeout_sec": NaN}', '{"type": "start", "cmd": "a\\u0000b"}', '{"type": "start", "cmd": "\\ud800"}',
    '{"type": "connect"}', '{"type": "connect", "tag": "' + "x" * 100_000 + '"}', '{"type": "nonsense", "data": {}}',
]  # fmt: skip


@pytest.mark.parametrize("what", ["exec/stream", "pty"])
async def test_frames_that_are_none(plane: Plane, what: str) -> None:
    capsule = await plane.capsule()
    url = f"{plane.url.replace('http', 'ws')}/v1/capsules/{capsule}/{what}"
    for frame in FRAMES:
        if what == "pty" and frame == '{"type": "start"}':
            continue  # a shell
        async with websockets.connect(url, additional_headers={"X-API-Key": plane.key}, max_size=None) as socket_:
            await socket_.send(frame)
            told = json.loads(await socket_.recv())
            assert (told["type"], told.get("fatal")) == ("error", True), frame[:80]
            assert told["code"] in ("invalid_request", "not_found") and told["request_id"]
            with pytest.raises(websockets.ConnectionClosed):
                await socket_.recv()
            assert socket_.close_code in (4400, 4404)
    await _healthy(plane, capsule)
