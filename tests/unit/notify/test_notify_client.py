"""The guarded client against servers that are slow, hang, answer too much or lead elsewhere."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from notify_world import LOOPBACK, OK, Seen, answering, certificate, client_of, everything_at, web

from torpor.model.errors import Undelivered
from torpor.notify.client import MOST_ANSWER, Answer, Client
from torpor.notify.guard import Guard, Place


async def post(client: Client, url: str, timeout: float = 60.0) -> Answer:
    return await client.request("POST", url, {"Content-Type": "text/plain", "Host": "elsewhere", "Content-Length": "999"}, b"hello", timeout=timeout)


async def test_a_request_arrives_as_it_was_meant() -> None:
    async with web() as server:
        answer = await post(Client(LOOPBACK), f"{server.url}/a%20b?c=d&e")
    assert (answer.status, answer.body) == (200, b"ok")
    (seen,) = server.seen
    assert (seen.method, seen.target, seen.body) == ("POST", "/a%20b?c=d&e", b"hello")
    assert seen.headers == {
        "host": f"127.0.0.1:{server.port}",
        "content-type": "text/plain",
        "content-length": "5",
        "accept-encoding": "identity",
        "connection": "close",
    }


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with web() as proxy, web() as server:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        await post(Client(LOOPBACK), server.url)
    assert (proxy.connections, server.connections) == (0, 1)


async def test_a_private_address_is_not_connected_to() -> None:
    async with web() as server:
        with pytest.raises(Undelivered, match="not on the public internet"):
            await post(Client(Guard()), server.url)
    assert server.connections == 0


async def test_a_name_that_turns_private_between_two_looks_is_refused() -> None:
    """DNS rebinding: what was judged is what is connected to."""
    async with web() as server:
        said = iter([[("8.8.8.8", 80)], [("127.0.0.1", server.port)]])

        async def changing(host: str, port: int) -> list[Place]:
            return next(said)

        guard = Guard(resolve=changing)
        await guard.check("rebinding.example", 80)
        with pytest.raises(Undelivered, match="not on the public internet"):
            await post(Client(guard), "http://rebinding.example/")
    assert server.connections == 0


async def test_a_name_is_asked_for_once_and_the_connection_goes_to_what_was_said() -> None:
    asked: list[str] = []
    async with web() as server:

        async def once(host: str, port: int) -> list[Place]:
            asked.append(host)
            return [("127.0.0.1", server.port)]

        assert (await post(Client(Guard(LOOPBACK.allowed, once)), "http://hooks.example/")).status == 200
    assert asked == ["hooks.example"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(status: int) -> None:
    async with web() as secret:
        async with web(answering(f"HTTP/1.1 {status} Moved\r\nLocation: {secret.url}/inside\r\nContent-Length: 0\r\n\r\n".encode())) as server:
            answer = await post(Client(LOOPBACK), server.url)
    refusal = answer.refusal("hooks.example")
    assert refusal is not None
    assert refusal.message == f"hooks.example answered {status}."
    assert (secret.connections, server.connections) == (0, 1)


async def test_a_huge_answer_is_read_up_to_a_bound() -> None:
    sent = 0

    async def flood(seen: Seen, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(4096):
            writer.write(b"x" * 65536)
            await writer.drain()
            sent += 65536

    async with web(flood) as server:
        answer = await post(Client(LOOPBACK), server.url)
    assert (answer.status, len(answer.body)) == (200, MOST_ANSWER)
    assert sent < 4096 * 65536


async def test_endless_headers_are_an_error() -> None:
    async def headers(seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"X-More: " + b"x" * 8000 + b"\r\n")
            await writer.drain()

    async with web(headers) as server:
        with pytest.raises(Undelivered, match="did not speak HTTP"):
            await post(Client(LOOPBACK), server.url)


async def test_a_server_that_hangs_is_given_up() -> None:
    over = asyncio.Event()

    async def hang(seen: Seen, writer: asyncio.StreamWriter) -> None:
        await over.wait()

    async with web(hang) as server:
        with pytest.raises(Undelivered, match="did not answer within"):
            await post(Client(LOOPBACK), server.url, timeout=0.2)
        over.set()


async def test_a_server_that_drips_is_given_up() -> None:
    """Each byte comes in time; all of them do not."""
    over = False

    async def drip(seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while not over:
            writer.write(b".")
            await writer.drain()
            await asyncio.sleep(0.01)

    async with web(drip) as server:
        with pytest.raises(Undelivered, match="did not answer within"):
            await post(Client(LOOPBACK), server.url, timeout=0.3)
        over = True


@pytest.mark.parametrize("said", [b"", b"SSH-2.0-OpenSSH_9.2\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort", b"\x00" * 100])
async def test_what_is_no_http_is_an_error(said: bytes) -> None:
    async with web(answering(said)) as server:
        with pytest.raises(Undelivered, match="broke off, or did not speak HTTP"):
            await post(Client(LOOPBACK), server.url)


async def test_a_port_that_nobody_serves_is_an_error() -> None:
    async with web() as server:
        pass
    with pytest.raises(Undelivered, match="could not be reached"):
        await post(Client(LOOPBACK), server.url)


async def test_the_next_address_is_tried_when_one_does_not_answer() -> None:
    async with web() as gone:
        pass
    async with web() as server:

        async def two(host: str, port: int) -> list[Place]:
            return [("127.0.0.1", gone.port), ("127.0.0.1", server.port)]

        assert (await post(Client(Guard(LOOPBACK.allowed, two)), "http://hooks.example/")).status == 200


async def test_certificates_are_checked_against_the_name(tmp_path: Path) -> None:
    tls, trusted = certificate(tmp_path, "hooks.example")
    async with web(tls=tls) as server:
        assert (await post(client_of(server, trusted), "https://hooks.example/")).status == 200
        for client, url in ((client_of(server, trusted), "https://other.example/"), (client_of(server), "https://hooks.example/")):
            with pytest.raises(Undelivered, match="no certificate that can be trusted"):
                await post(client, url)
    assert [seen.headers["host"] for seen in server.seen] == ["hooks.example"]


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("503 Busy\r\nRetry-After: 120", 120.0),
        ("429 Slow\r\nRetry-After: soon", 0.0),
        ("500 Oops\r\nRetry-After: 7", 0.0),
        ("429 Slow\r\nRetry-After: 99999999", 0.0),
    ],
)
async def test_what_a_server_asks_for_is_passed_on(head: str, expected: float) -> None:
    async with web(answering(f"HTTP/1.1 {head}\r\nContent-Length: 0\r\n\r\n".encode())) as server:
        refusal = (await post(Client(LOOPBACK), server.url)).refusal("x")
    assert refusal is not None
    assert refusal.retry_after == expected


async def test_a_cancel_breaks_the_connection_off() -> None:
    came, gone = asyncio.Event(), asyncio.Event()

    async def wait(seen: Seen, writer: asyncio.StreamWriter) -> None:
        came.set()
        await gone.wait()
        writer.write(OK)

    async with web(wait) as server:
        asking = asyncio.ensure_future(post(Client(LOOPBACK), server.url))
        await came.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        gone.set()


async def test_a_resolver_that_hangs_is_given_up() -> None:
    async def never(host: str, port: int) -> list[Place]:
        await asyncio.Event().wait()
        return []

    with pytest.raises(Undelivered, match="did not answer within"):
        await post(Client(Guard(resolve=never)), "http://hooks.example/", timeout=0.2)
    assert await everything_at(1)("x", 2) == [("127.0.0.1", 1)]
