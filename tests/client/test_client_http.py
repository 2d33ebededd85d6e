"""The client against servers that are busy, broken, foreign or hostile."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from torpor.client import (
    AsyncClient,
    BadAnswer,
    ClientError,
    ConfigurationError,
    ConnectionLost,
    LimitReached,
    ServerFailed,
    Unauthorized,
    Unavailable,
    Unreachable,
)
from torpor.client.events import Parser
from torpor.client.faces import source

Say = Callable[[bytes, int], bytes]
"""From a request and its number, what is answered; then the connection is closed."""
ID = "cl-0000000000000000000000000"
STATE = {
    "id": ID, "state": "running", "version": 1, "template": "base", "vcpus": 1, "memory_mb": 512, "disk_size_mb": 4096, "network": "off", "timeout_sec": 0,
    "on_timeout": "pause", "auto_resume": False, "stored_bytes": 0, "metadata": {}, "created_at": "2030-01-01T00:00:00Z",
    "last_active_at": "2030-01-01T00:00:00Z", "last_updated": "2030-01-01T00:00:00Z", "a_field_of_a_later_version": [1],
}  # fmt: skip


def answer(status: int, tree: object, *headers: str) -> bytes:
    body = json.dumps(tree).encode()
    lines = [f"HTTP/1.1 {status} X", "Content-Type: application/json", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def refusal(status: int, code: str, *headers: str) -> bytes:
    return answer(status, {"error": {"code": code, "reason": code, "message": "No.", "request_id": "r1"}}, *headers)


@asynccontextmanager
async def speaking(say: Say) -> AsyncIterator[tuple[AsyncClient, list[bytes]]]:
    """A client of a server that says that, and what was asked of it."""
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await reader.readuntil(b"\r\n\r\n")
            for line in request.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    request += await reader.readexactly(int(line.split(b":")[1]))
            asked.append(request)
            writer.write(say(request, len(asked)))
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, AsyncClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "trp_x") as client:
        yield client, asked


def header(request: bytes, name: str) -> str:
    return next(line.split(": ", 1)[1] for line in request.decode().split("\r\n") if line.lower().startswith(name + ":"))


async def test_a_create_whose_answer_was_lost_is_asked_for_again_under_the_same_key() -> None:
    async with speaking(lambda _, number: b"" if number < 3 else answer(201, STATE)) as (client, asked):
        assert (await client.sandboxes.create("base")).id == ID
    assert len(asked) == 3 and len({header(request, "idempotency-key") for request in asked}) == 1


async def test_what_cannot_be_repeated_is_not() -> None:
    async with speaking(lambda _, number: answer(200, STATE) if number == 1 else b"") as (client, asked):
        sandbox = await client.sandboxes.get(ID)
        with pytest.raises(ConnectionLost):
            await sandbox.commands.background("true")
        with pytest.raises(ConnectionLost):
            await sandbox.rollback("x")
    assert len(asked) == 3


async def test_a_server_that_asks_for_patience_gets_it() -> None:
    begin = asyncio.get_running_loop().time()
    async with speaking(lambda _, number: refusal(503, "no_hosts_available", "Retry-After: 1") if number == 1 else answer(201, STATE)) as (client, asked):
        await client.sandboxes.create("base")
    assert len(asked) == 2 and asyncio.get_running_loop().time() - begin >= 1


@pytest.mark.parametrize(
    ("said", "kind", "tries"),
    [
        (refusal(503, "no_space", "Retry-After: 3600"), Unavailable, 1),
        (refusal(503, "no_space"), Unavailable, 1),
        (refusal(429, "quota_exceeded", "Retry-After: Wed, 21 Oct 2999 07:28:00 GMT"), LimitReached, 1),
        (refusal(401, "unauthorized"), Unauthorized, 1),
        (refusal(500, "internal_error"), ServerFailed, 1),
        (answer(500, ["no", "error"]), ServerFailed, 1),
        (b"HTTP/1.1 418 X\r\nContent-Length: 3\r\n\r\n\xff\xfe\xfd", ServerFailed, 1),
        (b"HTTP/1.1 502 X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", ClientError, 5),
        (answer(200, "text"), BadAnswer, 1),
        (answer(200, [{}]), BadAnswer, 1),
        (answer(200, STATE | {"vcpus": "many"}), BadAnswer, 1),
        (answer(200, STATE | {"created_at": "yesterday"}), BadAnswer, 1),
        (answer(200, None), BadAnswer, 1),
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>", BadAnswer, 1),
        (b"HTTP/1.1 302 X\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", BadAnswer, 1),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc", BadAnswer, 1),
        (b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 30 + b"\r\n\r\n", ClientError, 5),
        (b"SSH-2.0-OpenSSH_9.2\r\n", ConnectionLost, 5),
        (b"[" * 100_000, ConnectionLost, 5),
        (b"", ConnectionLost, 5),
        (answer(200, STATE)[:-5], ConnectionLost, 5),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + b"[" * 200_000, BadAnswer, 1),
    ],
)  # fmt: skip
async def test_every_answer_becomes_an_error_with_a_type(said: bytes, kind: type[ClientError], tries: int) -> None:
    async with speaking(lambda *_: said) as (client, asked):
        with pytest.raises(kind):
            await client.sandboxes.get(ID)
    assert len(asked) == tries


async def test_a_file_that_ends_early_is_no_file() -> None:
    short = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this"
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
    for said in (short, chunked):
        async with speaking(lambda _, number, said=said: answer(200, STATE) if number == 1 else said) as (client, _asked):  # type: ignore[misc]
            sandbox = await client.sandboxes.get(ID)
            with pytest.raises(ConnectionLost):
                await sandbox.files.read("x")


async def test_nobody_there() -> None:
    async with AsyncClient("http://127.0.0.1:1", "trp_x", retries=1) as client:
        with pytest.raises(Unreachable):
            [each async for each in client.keys.list()]


@pytest.mark.parametrize("url", ["", "localhost:8080", "ftp://x", "http://", "http://user:pass@x", "http://x?y"])
def test_addresses_that_are_none(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORPOR_URL", url)
    monkeypatch.delenv("TORPOR_API_KEY", raising=False)
    with pytest.raises(ConfigurationError):
        AsyncClient(url or None, "trp_x" if url else None)


def test_the_key_is_not_shown_by_accident() -> None:
    from torpor.client.transport import where

    assert "secret" not in repr(where("http://x", "trp_secret", None))


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_events_come_in_any_pieces(size: int) -> None:
    text = b": hi\n\nid: 1\nevent: a\ndata: {\ndata: }\n\nevent: none\n\ndata: \xe2\x80\xa8x\r\n\r\nid: 2\ndata:last\n\nid: 3\ndata: not complete\n"
    parser, found = Parser(), []
    for at in range(0, len(text), size):
        found += parser.feed(text[at : at + size])
    assert [(each.id, each.event, each.data) for each in found] == [("1", "a", "{\n}"), ("", "message", "\u2028x"), ("2", "message", "last")]
    with pytest.raises(BadAnswer):
        Parser().feed(b"x" * 2_000_000)


def test_the_plain_client_is_what_the_asynchronous_one_makes_it() -> None:
    path = Path(__file__).parents[2] / "src" / "torpor" / "client" / "synchronous.py"
    ruff = [Path(sys.executable).with_name("ruff"), "format", "-", "--config", str(Path(__file__).parents[2] / "pyproject.toml")]
    made = subprocess.run(ruff, input=source(), capture_output=True, text=True, check=True).stdout
    assert path.read_text() == made, (
        "run: python -m torpor.client.faces > made.py && mv made.py src/torpor/client/synchronous.py && ruff format src/torpor/client/synchronous.py"
    )


def test_it_loads_nothing_else_of_torpor() -> None:
    program = "import sys; import torpor.client; print(*[name for name in sys.modules if name.startswith('torpor')])"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert {name for name in loaded if name != "torpor" and not name.startswith("torpor.client")} == set()
