"""What comes before a request is one: endless headers, silence, nonsense."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket

import httpx
import pytest
from api_world import World

from patience import PATIENCE
from torpor.api import protocol


async def exchange(world: World, *pieces: bytes) -> bytes:
    """What the server says to these bytes until it closes."""
    loop = asyncio.get_running_loop()
    with socket.socket() as connection:
        connection.setblocking(False)
        await loop.sock_connect(connection, ("127.0.0.1", httpx.URL(world.url).port))
        said = b""
        async with asyncio.timeout(PATIENCE):
            with contextlib.suppress(ConnectionError):  # it may answer and hang up before it has heard all
                for piece in pieces:
                    await loop.sock_sendall(connection, piece)
            with contextlib.suppress(ConnectionError):
                while heard := await loop.sock_recv(connection, 65536):
                    said += heard
        return said


def answered(said: bytes) -> tuple[int, str]:
    head, _, body = said.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


@pytest.mark.parametrize(
    "pieces",
    [
        [b"GET /health HTTP/1.1\r\nHost: x\r\nX-A: ", b"a" * 70_000],
        [b"GET /" + b"a" * 70_000],
        [b"GET /health HTTP/1.1\r\nHost: x\r\n", b"X-A: a\r\n" * 9_000],
    ],
)
async def test_endless_headers_end(world: World, pieces: list[bytes]) -> None:
    assert answered(await exchange(world, *pieces)) == (431, "too_large")


async def test_endless_headers_behind_another_request_end_the_connection(world: World) -> None:
    await exchange(world, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /health HTTP/1.1\r\nX-A: ", b"a" * 70_000)


@pytest.mark.parametrize("begun", [b"", b"GET /health HTTP/1.1\r\nHost: x\r\n"])
async def test_silence_ends(world: World, begun: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.1)
    assert answered(await exchange(world, begun)) == (408, "timed_out")


async def test_a_request_that_takes_its_time_is_not_silence(world: World, capsule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 2.0)
    answer = await world.client.post(f"/v1/capsules/{capsule}/exec", json={"cmd": "sleep", "args": ["2.5"]})
    assert answer.status_code == 200


async def test_what_is_no_http_is_refused(world: World) -> None:
    assert (await exchange(world, b"\x16\x03\x01 nonsense\r\n\r\n")).startswith(b"HTTP/1.1 400 ")


async def test_large_headers_below_the_bound_are_taken(world: World) -> None:
    assert (await world.client.get("/health", headers={"X-A": "a" * 40_000})).status_code == 200
