"""HTTP through the proxy: to real servers "in the sandbox", both ways, as it comes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from proxy_world import DOMAIN, ProxyWorld, answering, asgi, bytes_server, open_proxy, program
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from patience import PATIENCE
from torpor.api.proxy import exchange as exchange_module
from torpor.model.records import Exposure


@pytest.fixture
async def proxy(tmp_path: Path) -> AsyncIterator[ProxyWorld]:
    async with open_proxy(tmp_path) as world:
        yield world


async def show(request: Request) -> Response:
    body = await request.body()
    pairs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers.raw]
    about: dict[str, Any] = {"method": request.method, "path": request.scope["raw_path"].decode(), "query": request.scope["query_string"].decode()}
    return JSONResponse(about | {"headers": pairs, "body": hashlib.sha256(body).hexdigest(), "bytes": len(body)})


async def ticks(request: Request) -> Response:
    """Server-sent events: each waits for the one before to be taken."""
    gate: asyncio.Queue[None] = request.app.state.gate

    async def stream() -> AsyncIterator[bytes]:
        for number in range(3):
            await gate.get()
            yield b"data: %d\n\n" % number

    return StreamingResponse(stream(), media_type="text/event-stream")


async def cookies(request: Request) -> Response:
    response = PlainTextResponse("", headers={"Service-Worker-Allowed": "/", "Alt-Svc": 'h3=":443"', "Clear-Site-Data": '"*"'})
    response.raw_headers += [
        (b"set-cookie", b"a=1; Domain=example.test; Path=/; HttpOnly"),
        (b"set-cookie", b"b=2; path=/deep"),
        (b"set-cookie", b"torpor_session=stolen; Path=/"),
        (b"set-cookie", b"__Host-torpor_session=stolen; Path=/; Secure"),
        (b"set-cookie", b"c=3"),
    ]
    return response


async def moved(request: Request) -> Response:
    return RedirectResponse(request.query_params["to"], 307)


def site() -> Starlette:
    every = ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]
    app = Starlette(
        routes=[
            Route("/ticks", ticks),
            Route("/cookies", cookies),
            Route("/moved", moved),
            Route("/{rest:path}", show, methods=every),
        ]
    )
    app.state.gate = asyncio.Queue()
    return app


@pytest.mark.parametrize("form", ["{port}-{id}.sbx.example.test", "{port}-cl-{id}.anything.else", "{port}-{id}-00000000.sbx.example.test:1234"])
async def test_a_host_name_leads_to_the_port(proxy: ProxyWorld, form: str) -> None:
    sandbox = await proxy.sandbox()
    async with asgi(site()) as port:
        host = form.format(port=port, id=sandbox)
        sent = {"X-Own": "1", "Cookie": "mine=1; torpor_session=s; __Host-torpor_session=t; b=2"}
        answer = await proxy.client(host).post("/a%2Fb/ü?x=%20y&&z", content=b"hello", headers=sent)
    seen = answer.json()
    assert (seen["method"], seen["path"], seen["query"], seen["bytes"]) == ("POST", "/a%2Fb/%C3%BC", "x=%20y&&z", 5)
    headers = dict(seen["headers"])
    assert (headers["host"], headers["x-own"], headers["content-length"]) == (host, "1", "5")
    assert (headers["x-forwarded-for"], headers["x-forwarded-proto"], headers["x-forwarded-host"]) == ("127.0.0.1", "http", host)
    assert headers["cookie"] == "mine=1; b=2"
    assert not {"content-security-policy", "x-frame-options", "cross-origin-resource-policy", "x-request-id"} & set(answer.headers)


async def test_headers_lead_to_the_port(proxy: ProxyWorld) -> None:
    sandbox = await proxy.sandbox()
    async with asgi(site()) as port:
        named = {"E2b-Sandbox-Id": sandbox, "E2b-Sandbox-Port": str(port)}
        for client in (
            proxy.client(**named),
            proxy.client("localhost:3000", **named),
            proxy.client("sandbox.e2b.test", **named),
            proxy.client("[::1]", **named),
        ):
            assert "e2b-sandbox-id" not in dict((await client.get("/")).json()["headers"])
        assert (await proxy.client("some.name", own_port=True, **named).get("/x")).json()["path"] == "/x"
        assert (await proxy.client("api.example.test", **named).get("/health")).text == "Health check successful"
        for left in named:
            answer = await proxy.client(**{left: named[left]}).get("/health")
            assert answer.status_code == 400 and answer.json()["code"] == 400


async def test_a_path_leads_to_the_port_on_a_port_of_its_own(proxy: ProxyWorld) -> None:
    sandbox = await proxy.sandbox()
    async with asgi(site()) as port:
        client = proxy.client(own_port=True)
        prefix = f"/cl-{sandbox}/{port}"
        seen = (await client.get(f"{prefix}/a/../b?q")).json()
        assert seen["path"] in ("/a/../b", "/b") and dict(seen["headers"])["x-forwarded-prefix"] == prefix
        moved = await client.get(prefix + "?x=1")
        assert moved.status_code == 308 and moved.headers["location"] == f"http://127.0.0.1:{proxy.own_port}{prefix}/?x=1"
        for to, seen_as in {
            "/login?a=1#b": f"{prefix}/login?a=1#b",
            "next": "next",
            f"http://127.0.0.1:{proxy.own_port}/x": f"http://127.0.0.1:{proxy.own_port}{prefix}/x",
            f"http://localhost:{port}": f"http://127.0.0.1:{proxy.own_port}{prefix}/",
            "https://elsewhere.test/x": "https://elsewhere.test/x",
        }.items():
            assert (await client.get(f"{prefix}/moved", params={"to": to})).headers["location"] == seen_as
        answer = await client.get(f"{prefix}/cookies")
        assert answer.headers.get_list("set-cookie") == [f"a=1; HttpOnly; Path={prefix}/", f"b=2; Path={prefix}/deep", f"c=3; Path={prefix}/"]
        assert not {"service-worker-allowed", "alt-svc", "clear-site-data"} & set(answer.headers)
        for nowhere in ("/health", "/v1/capsules", "/", f"/{sandbox}", f"/{sandbox}/0/", f"/{sandbox}/70000/", f"/{sandbox}/0{port}/", f"/../{sandbox}/x/"):
            assert (await client.get(nowhere)).status_code == 400, nowhere


async def test_what_would_reach_beyond_the_sandbox_is_not_passed_on(proxy: ProxyWorld) -> None:
    sandbox = await proxy.sandbox()
    async with asgi(site()) as port:
        answer = await proxy.to(sandbox, port).get("/cookies")
        assert answer.headers.get_list("set-cookie") == ["a=1; Path=/; HttpOnly", "b=2; path=/deep", "c=3"]
        assert not {"service-worker-allowed", "alt-svc"} & set(answer.headers) and "clear-site-data" in answer.headers
        assert (await proxy.to(sandbox, port).get("/moved", params={"to": "/x"})).headers["location"] == "/x"


async def test_a_masked_host(proxy: ProxyWorld) -> None:
    sandbox = await proxy.sandbox(exposure=Exposure(public_ports=True, mask_host="localhost:${PORT}"))
    async with asgi(site()) as port:
        client = proxy.to(sandbox, port)
        headers = dict((await client.get("/")).json()["headers"])
        assert (headers["host"], headers["x-forwarded-host"]) == (f"localhost:{port}", proxy.host_of(sandbox, port))
        moved = await client.get("/moved", params={"to": f"http://localhost:{port}/there"})
        assert moved.headers["location"] == f"http://{proxy.host_of(sandbox, port)}/there"


async def test_answers_stream_as_they_come(proxy: ProxyWorld) -> None:
    sandbox, app = await proxy.sandbox(), site()
    async with asgi(app) as port, proxy.to(sandbox, port).stream("GET", "/ticks") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        pieces = answer.aiter_bytes()
        for number in range(3):
            app.state.gate.put_nowait(None)
            assert await anext(pieces) == b"data: %d\n\n" % number


async def test_both_directions_at_the_same_time(proxy: ProxyWorld) -> None:
    """A server that answers each piece of a body while more of it comes."""

    async def echo(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while (message := await receive())["type"] == "http.request":
            await send({"type": "http.response.body", "body": message["body"], "more_body": message["more_body"]})
            if not message["more_body"]:
                return

    sandbox = await proxy.sandbox()
    async with asgi(echo) as port:
        reader, writer = await proxy.raw(f"POST / HTTP/1.1\r\nHost: {proxy.host_of(sandbox, port)}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        for word in (b"one", b"two"):
            writer.write(b"3\r\n" + word + b"\r\n")
            assert await reader.readexactly(8) == b"3\r\n" + word + b"\r\n"
        writer.write(b"0\r\n\r\n")
        assert await reader.readuntil(b"0\r\n\r\n") == b"0\r\n\r\n"
        writer.close()


async def test_a_development_server(proxy: ProxyWorld, tmp_path: Path) -> None:
    """python -m http.server: HTTP/1.0 answers, and ones with a length."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "index.html").write_text("<h1>hello</h1>")
    (site / "folder").mkdir()
    sandbox = await proxy.sandbox()
    argv = ("-m", "http.server", "--bind", "127.0.0.1", "0")
    async with program(*argv, ready=b"Serving HTTP on 127.0.0.1 port ", folder=site) as line:
        port = int(line.split()[0])
        client = proxy.to(sandbox, port)
        page = await client.get("/")
        assert (page.status_code, page.text, page.headers["content-type"]) == (200, "<h1>hello</h1>", "text/html")
        assert (await client.head("/")).headers["content-length"] == "14"
        assert (await client.get("/folder")).headers["location"] == "/folder/"
        since = {"If-Modified-Since": page.headers["last-modified"]}
        assert (await client.get("/", headers=since)).status_code == 304
        assert (await client.get("/none")).status_code == 404
        assert (await client.post("/", content=b"x" * 100_000)).status_code == 501
        assert (await client.get("/")).status_code == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0.0.0.0"])
async def test_wherever_the_server_listens(proxy: ProxyWorld, host: str) -> None:
    sandbox = await proxy.sandbox()
    async with bytes_server(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"), host=host) as port:
        assert (await proxy.to(sandbox, port).get("/")).text == "ok"


@pytest.mark.parametrize(
    ("answer", "status", "text"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nto the end", 200, "to the end"),
        (b"HTTP/1.0 200 OK\r\n\r\nto the end", 200, "to the end"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1;x=y\r\nc\r\n0\r\nTrailer: x\r\n\r\n", 200, "abc"),
        (b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", 200, "x"),
        (b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", 204, ""),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n", 304, ""),
        (b"HTTP/1.1 299 Odd\r\nContent-Length: 0\r\n\r\n", 299, ""),
        (b"HTTP/1.1 416 No\r\nContent-Range: bytes */5\r\nContent-Length: 0\r\n\r\n", 416, ""),
    ],
)
async def test_every_way_to_end_an_answer(proxy: ProxyWorld, answer: bytes, status: int, text: str) -> None:
    sandbox = await proxy.sandbox()
    async with bytes_server(answering(answer)) as port:
        found = await proxy.to(sandbox, port).get("/")
        assert (found.status_code, found.text) == (status, text)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\0c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 200_000 + b"\r\n\r\n",
        b"HTTP/1.1 999 No\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    ],
    ids=["nothing", "other", "lengths", "coding", "nul", "giant", "status", "switch"],
)
async def test_a_server_that_speaks_no_http(proxy: ProxyWorld, answer: bytes) -> None:
    sandbox = await proxy.sandbox()
    async with bytes_server(answering(answer)) as port:
        found = await proxy.to(sandbox, port).get("/")
        assert (found.status_code, found.json()["code"], found.json()["port"]) == (502, 502, port)
        assert "was not found" not in found.text and "not open" not in found.text
        native = await proxy.to(f"cl-{sandbox}", port).get("/")
        assert (native.status_code, native.json()["error"]["code"]) == (502, "agent_error")


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc"], ids=["length", "chunks"]
)
async def test_half_an_answer_is_never_taken_for_a_whole_one(proxy: ProxyWorld, answer: bytes) -> None:
    sandbox = await proxy.sandbox()
    async with bytes_server(answering(answer)) as port:
        with pytest.raises(httpx.ReadError):
            await proxy.to(sandbox, port).get("/")


async def test_expect_continue_is_the_servers_to_answer(proxy: ProxyWorld) -> None:
    sandbox, bodies = await proxy.sandbox(), []

    async def reject(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert b"expect: 100-continue" in (await reader.readuntil(b"\r\n\r\n")).lower()
        writer.write(b"HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n")
        bodies.append(await reader.read())

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        bodies.append(await reader.readexactly(5))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async def ignore(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        bodies.append(await reader.readexactly(5))
        writer.write(b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n")

    for handler, status, body in ((reject, b"413", b""), (accept, b"100", b"hello"), (ignore, b"100", b"hello")):
        async with bytes_server(handler) as port:
            head = f"PUT / HTTP/1.1\r\nHost: {proxy.host_of(sandbox, port)}\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
            reader, writer = await proxy.raw(head.encode())
            first = await reader.readuntil(b"\r\n\r\n")
            assert first.startswith(b"HTTP/1.1 " + status)
            if status == b"100":
                writer.write(b"hello")
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            writer.close()
            while not bodies:
                await asyncio.sleep(0.01)
            assert bodies.pop() == body


async def test_a_client_that_leaves_ends_it_at_the_server(proxy: ProxyWorld) -> None:
    sandbox, over = await proxy.sandbox(), asyncio.Event()

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            while True:
                writer.write(b"x" * 1000)
                await writer.drain()
                await asyncio.sleep(0.01)
        except ConnectionError:
            over.set()

    async with bytes_server(endless) as port:
        reader, writer = await proxy.raw(f"GET / HTTP/1.1\r\nHost: {proxy.host_of(sandbox, port)}\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        writer.close()
        async with asyncio.timeout(PATIENCE):
            await over.wait()
    while proxy.wired.services.lives.watched(sandbox):
        await asyncio.sleep(0.01)


async def test_a_server_that_takes_no_more_may_still_answer(proxy: ProxyWorld) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too much\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno!")
        await writer.drain()
        writer.write_eof()
        await reader.read(1000)
        await asyncio.sleep(PATIENCE)

    async def body() -> AsyncIterator[bytes]:
        for _ in range(200):
            yield bytes(100_000)

    sandbox = await proxy.sandbox()
    async with bytes_server(refuse) as port:
        answer = await proxy.to(sandbox, port).post("/", content=body())
        assert (answer.status_code, answer.text) == (413, "no!")


async def test_a_slow_reader_slows_the_server(proxy: ProxyWorld) -> None:
    sent = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(bytes(100_000))
            await writer.drain()
            sent += 100_000

    sandbox = await proxy.sandbox()
    async with bytes_server(flood) as port:
        reader, writer = await proxy.raw(f"GET / HTTP/1.1\r\nHost: {proxy.host_of(sandbox, port)}\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        before = -1
        while before != sent:  # until nothing moves any more
            before = sent
            await asyncio.sleep(0.5)
        assert sent < 64 << 20
        await reader.readexactly(1 << 20)
        while sent <= before:
            await asyncio.sleep(0.01)
        writer.close()


async def test_idle_exchanges_end(proxy: ProxyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    assert exchange_module.IDLE_SECONDS >= 620
    monkeypatch.setattr(exchange_module, "IDLE_SECONDS", 0.3)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    sandbox = await proxy.sandbox()
    async with bytes_server(silent) as port:
        assert (await proxy.to(sandbox, port).get("/")).status_code == 502


@pytest.mark.parametrize(
    "head",
    [
        "POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        "POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: +5\r\n\r\nhello",
        "GET / HTTP/1.1\r\nHost: {host}\r\nHost: api.example.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: {host}\r\nX: a\nGET /smuggled HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: {host}\r\n folded: x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: {host}\r\nX: a\0b\r\n\r\n",
        "CONNECT {host}:80 HTTP/1.1\r\nHost: {host}\r\n\r\n",
    ],
)
async def test_what_two_readers_could_understand_differently_is_refused(proxy: ProxyWorld, head: str) -> None:
    sandbox, seen = await proxy.sandbox(), []
    async with bytes_server(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", seen)) as port:
        reader, writer = await proxy.raw(head.format(host=proxy.host_of(sandbox, port)).encode("latin-1"))
        writer.write_eof()
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 400 ") and answer.count(b"HTTP/1.1") == 1
        writer.close()
        assert seen == []


async def test_hop_by_hop_headers_go_one_hop(proxy: ProxyWorld) -> None:
    sandbox, seen = await proxy.sandbox(), []
    async with bytes_server(answering(b"HTTP/1.1 200 OK\r\nConnection: X-Secret\r\nX-Secret: 1\r\nKeep-Alive: 5\r\nContent-Length: 0\r\n\r\n", seen)) as port:
        hops = {
            "Connection": "X-Hop, Host, Content-Length",
            "X-Hop": "1",
            "TE": "trailers",
            "Proxy-Authorization": "x",
            "X-Forwarded-For": "6.6.6.6",
            "Forwarded": "for=6",
        }
        answer = await proxy.to(sandbox, port).post("/", content=b"", headers=hops)
        assert not {"x-secret", "keep-alive"} & set(answer.headers)
    names = [line.partition(b":")[0].lower() for line in seen[0].split(b"\r\n")]
    assert not {b"x-hop", b"te", b"proxy-authorization", b"forwarded"} & set(names) and b"6.6.6.6" not in seen[0]
    assert names.count(b"host") == names.count(b"connection") == names.count(b"content-length") == 1
    assert b"onnection: close" in seen[0]


async def test_requests_of_one_connection_go_to_whom_each_is_for(proxy: ProxyWorld) -> None:
    sandbox = await proxy.sandbox()
    async with asgi(site()) as port:
        reader, writer = await proxy.raw()
        for number in range(3):
            writer.write(f"GET /{number} HTTP/1.1\r\nHost: {proxy.host_of(sandbox, port)}\r\n\r\nGET /v1/me HTTP/1.1\r\nHost: api.{DOMAIN}\r\n\r\n".encode())
        found = []
        for _ in range(6):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))[15:])
            found.append(json.loads(await reader.readexactly(length)).get("path"))
        assert found == ["/0", None, "/1", None, "/2", None]
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
