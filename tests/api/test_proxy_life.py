"""The proxy and the life of sandboxes: waking them, counting as activity, and connections that end with their machine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets
from proxy_world import DOMAIN, INNER_PORT, ProxyWorld, answering, bytes_server, open_proxy
from starlette.types import Receive, Scope, Send

from patience import PATIENCE
from torpor.model.records import SYSTEM, Sandbox
from torpor.service.caller import Caller

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def endless(scope: Scope, receive: Receive, send: Send) -> None:
    """An inner data plane: /health answers, /hang never does, anything else streams without end."""
    if scope["path"] == "/hang":
        await asyncio.Event().wait()
    if scope["path"] == "/health":
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"begun", "more_body": True})
    await asyncio.Event().wait()


@pytest.fixture
async def proxy(tmp_path: Path) -> AsyncIterator[ProxyWorld]:
    async with open_proxy(tmp_path, domain=DOMAIN, inner={INNER_PORT: endless}) as world:
        yield world


async def record(proxy: ProxyWorld, sandbox: str) -> Sandbox:
    return await proxy.wired.services.sandboxes.get(Caller(proxy.team, SYSTEM), sandbox)


async def begun(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An answer that goes on until somebody ends it."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\n\r\nbegun")
    await reader.read()


async def is_reset(reader: asyncio.StreamReader) -> bool:
    """Whether the connection ends with a reset: not in order, and not with the end of a chunked answer."""
    try:
        async with asyncio.timeout(PATIENCE):
            while await reader.read(65536):
                pass
    except ConnectionResetError:
        return True
    return False


async def opened(proxy: ProxyWorld, sandbox: str, port: int, path: str = "/stream") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await proxy.raw(f"GET {path} HTTP/1.1\r\nHost: {proxy.host_of(sandbox, port)}\r\n\r\n".encode())
    await reader.readuntil(b"begun")
    return reader, writer


async def test_a_kill_resets_what_is_open_and_is_known_at_once(proxy: ProxyWorld) -> None:
    sandbox = await proxy.sandbox()
    async with bytes_server(begun) as port:
        streams = [await opened(proxy, sandbox, port), await opened(proxy, sandbox, INNER_PORT)]
        waiting = asyncio.create_task(proxy.to(sandbox, INNER_PORT).get("/hang"))
        while proxy.wired.services.lives.watched(sandbox) < 3:
            await asyncio.sleep(0.01)
        proxy.host.hold("kill")  # it is known before the host has done anything
        started = await proxy.wired.services.sandboxes.kill(Caller(proxy.team, SYSTEM), sandbox)
        for at in (INNER_PORT, port):
            answer = await proxy.to(sandbox, at).get("/health")
            assert (answer.status_code, answer.json()["message"]) == (502, "The sandbox was not found")
        for reader, writer in streams:
            assert await is_reset(reader)
            writer.close()
        assert ((await waiting).status_code, (await waiting).json()["message"]) == (502, "The sandbox was not found")
        proxy.host.let_go("kill")
        await proxy.wired.services.sandboxes.settled(sandbox, started.operation_id, PATIENCE)
        assert (await proxy.to(sandbox, INNER_PORT).get("/health")).status_code == 502
        assert (await proxy.to(f"cl-{sandbox}", port).get("/")).json()["error"]["code"] == "invalid_state"
    while proxy.wired.services.lives.watched(sandbox):
        await asyncio.sleep(0.01)


async def test_an_end_by_itself_resets_as_well(proxy: ProxyWorld) -> None:
    sandbox = await proxy.sandbox()
    async with bytes_server(begun) as port:
        reader, writer = await opened(proxy, sandbox, port)
        proxy.host.die(sandbox)
        assert await is_reset(reader)
        writer.close()


async def test_a_whole_answer_stays_one(proxy: ProxyWorld) -> None:
    """The end of the sandbox, while its server does not hang up, is no reason to cut a connection that has its answer."""

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await asyncio.Event().wait()

    sandbox = await proxy.sandbox()
    async with bytes_server(hold) as port:
        head = f"GET / HTTP/1.1\r\nHost: {proxy.host_of(sandbox, port)}\r\n\r\n".encode()
        reader, writer = await proxy.raw(head)
        await reader.readuntil(b"\r\n\r\nok")
        await proxy.kill(sandbox)
        while proxy.wired.services.lives.watched(sandbox):
            await asyncio.sleep(0.01)
        writer.write(head)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 502 ")
        writer.close()


async def test_a_pause_ends_connections_and_a_request_wakes_it_again(proxy: ProxyWorld) -> None:
    sandbox = await proxy.sandbox(auto_resume=True)
    async with bytes_server(begun) as port, bytes_server(answering(OK)) as other:
        reader, writer = await opened(proxy, sandbox, port)
        inner, inner_writer = await opened(proxy, sandbox, INNER_PORT)
        client = proxy.to(sandbox, other)
        assert (await client.get("/")).text == "ok"
        await proxy.pause(sandbox)
        assert await is_reset(reader) and await is_reset(inner)
        writer.close()
        inner_writer.close()
        assert (await client.get("/")).text == "ok"  # over the client's own connection, which lived on
        assert (await record(proxy, sandbox)).state.value == "running"
        async with proxy.wired.context.store.look() as records:
            events = await records.events.of(sandbox)
        assert any(event.data.get("cause") == "traffic" for event in events)


async def test_many_requests_wake_it_once(proxy: ProxyWorld) -> None:
    sandbox = await proxy.sandbox(auto_resume=True)
    async with bytes_server(answering(OK)) as port:
        assert (await proxy.to(sandbox, port).get("/")).text == "ok"
        await proxy.pause(sandbox)
        answers = await asyncio.gather(*(proxy.to(sandbox, port).get("/") for _ in range(10)))
        assert {answer.text for answer in answers} == {"ok"}
        assert [call for call in proxy.host.effects if call[0] == "resume"] == [("resume", sandbox)]


async def test_a_sandbox_that_sleeps_and_is_not_to_be_woken(proxy: ProxyWorld) -> None:
    sandbox = await proxy.sandbox()
    await proxy.pause(sandbox)
    for port in (80, INNER_PORT):
        assert (await proxy.to(sandbox, port).get("/")).json()["message"] == "The sandbox was not found"
    native = await proxy.to(f"cl-{sandbox}", 80).get("/")
    assert (native.status_code, native.json()["error"]["code"]) == (409, "invalid_state") and "paused" in native.text


async def test_in_between(proxy: ProxyWorld) -> None:
    sandbox = await proxy.sandbox()
    proxy.host.hold("pause")
    started = await proxy.wired.services.sandboxes.pause(Caller(proxy.team, SYSTEM), sandbox)
    for shown in (sandbox, f"cl-{sandbox}"):
        answer = await proxy.to(shown, 80).get("/")
        assert (answer.status_code, answer.headers["retry-after"]) == (409, "1")
        assert "not found" not in answer.text and "not open" not in answer.text
    proxy.host.let_go("pause")
    await proxy.wired.services.sandboxes.settled(sandbox, started.operation_id, PATIENCE)


async def test_a_snapshot_does_not_end_what_is_open(proxy: ProxyWorld) -> None:
    sandbox = await proxy.sandbox()
    async with bytes_server(begun) as port:
        reader, writer = await opened(proxy, sandbox, port)
        started = await proxy.wired.services.sandboxes.snapshot(Caller(proxy.team, SYSTEM), sandbox, "one")
        await proxy.wired.services.sandboxes.settled(sandbox, started.operation_id, PATIENCE)
        await proxy.wired.services.sandboxes.fork(Caller(proxy.team, SYSTEM), sandbox)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await reader.read()
        writer.close()


async def test_traffic_is_activity_while_it_lasts(proxy: ProxyWorld) -> None:
    sandbox = await proxy.sandbox(idle_timeout=0.5)
    async with bytes_server(begun) as port:
        _, writer = await opened(proxy, sandbox, port)
        begin = asyncio.get_running_loop().time()
        while asyncio.get_running_loop().time() < begin + 2:
            assert (await record(proxy, sandbox)).state.value == "running"
            await asyncio.sleep(0.1)
        writer.close()
        async with asyncio.timeout(PATIENCE):
            while (await record(proxy, sandbox)).state.value != "paused":
                await asyncio.sleep(0.05)


async def test_a_server_that_starts_late_is_waited_for(proxy: ProxyWorld) -> None:
    sandbox = await proxy.sandbox()
    async with bytes_server(answering(OK)) as port:
        pass
    asking = asyncio.create_task(proxy.to(sandbox, port).get("/"))
    await asyncio.sleep(0.15)
    server = await asyncio.start_server(answering(OK), "127.0.0.1", port)
    async with server:
        answer = await asking
        assert answer.text == "ok" or answer.json()["port"] == port  # a busy machine may have been too slow for it


async def test_websockets_end_to_end(proxy: ProxyWorld) -> None:
    """Subprotocols, binary, large messages, pings, compression and close codes are the two ends' own affair."""
    sandbox, closes = await proxy.sandbox(), []

    async def echo(socket: websockets.ServerConnection) -> None:
        assert socket.request is not None
        await socket.send(socket.request.path)
        try:
            while True:
                message = await socket.recv()
                if message == "close":
                    await socket.close(4321, "as you say")
                elif message == "ping":
                    await (await socket.ping(b"are you there"))
                    await socket.send("pong")
                else:
                    await socket.send(message)
        except websockets.ConnectionClosed:
            closes.append((socket.close_code, socket.close_reason))

    async with websockets.serve(echo, "127.0.0.1", 0, subprotocols=["chat", "other"], max_size=64 << 20) as server:  # type: ignore[list-item]
        port = next(iter(server.sockets)).getsockname()[1]
        async with proxy.socket(sandbox, port, "/kernels/x?y=1", subprotocols=["other"], max_size=64 << 20) as socket:
            assert socket.subprotocol == "other" and socket.response.headers["Sec-WebSocket-Extensions"]
            assert await socket.recv() == "/kernels/x?y=1"
            for message in ("text", b"\0binary\xff", bytes(range(256)) * (20 << 12), "€" * (4 << 20)):
                await socket.send(message)
                assert await socket.recv() == message
            await socket.send("ping")
            assert await socket.recv() == "pong"
            await (await socket.ping(b"x"))
            await socket.send("close")
            with pytest.raises(websockets.ConnectionClosed) as closed:
                await socket.recv()
            assert closed.value.rcvd is not None and (closed.value.rcvd.code, closed.value.rcvd.reason) == (4321, "as you say")
        async with proxy.socket(sandbox, port, subprotocols=["chat"]) as socket:
            await socket.recv()
            await socket.close(4444, "mine")
        while len(closes) < 2:
            await asyncio.sleep(0.01)
        assert closes[1] == (4444, "mine")
        async with proxy.socket(sandbox, port, subprotocols=["chat"]) as socket:
            await socket.recv()
            await proxy.kill(sandbox)
            with pytest.raises(websockets.ConnectionClosedError):
                await socket.recv()


async def test_websockets_that_are_refused(proxy: ProxyWorld) -> None:
    private, public = await proxy.sandbox(public=False), await proxy.sandbox()
    async with bytes_server(answering(b"HTTP/1.1 426 Upgrade\r\nContent-Length: 0\r\n\r\n")) as port:
        for shown, at, status in ((private, port, 403), (public, port, 426), (public, 1, 502), ("0" * 25, port, 502)):
            with pytest.raises(websockets.InvalidStatus) as refused:
                async with proxy.socket(shown, at):
                    pass
            assert refused.value.response.status_code == status


async def test_any_switch_of_protocols(proxy: ProxyWorld) -> None:
    """Bytes after the head belong to the new protocol, early ones too; each half of the connection ends by itself."""
    sandbox = await proxy.sandbox()

    async def switch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"upgrade: tcp" in head.lower() and b"connection: upgrade" in head.lower()
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: tcp\r\nConnection: Upgrade\r\n\r\nwelcome")
        writer.write(b"got " + await reader.read())
        writer.write_eof()

    async with bytes_server(switch) as port:
        head = f"GET / HTTP/1.1\r\nHost: {proxy.host_of(sandbox, port)}\r\nConnection: keep-alive, Upgrade\r\nUpgrade: tcp\r\n\r\nearly "
        reader, writer = await proxy.raw(head.encode())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        writer.write(b"late")
        writer.write_eof()
        assert await reader.read() == b"welcomegot early late"
        writer.close()


async def test_a_switch_that_is_declined_is_an_answer(proxy: ProxyWorld) -> None:
    sandbox = await proxy.sandbox()
    async with bytes_server(answering(OK)) as port:
        client: httpx.AsyncClient = proxy.to(sandbox, port)
        how: dict[str, Any] = {"headers": {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAARAAAAAAAIAAAAA"}}
        for _ in range(2):
            assert (await client.get("/", **how)).text == "ok"
