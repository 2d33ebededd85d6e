"""A request to a web server in the sandbox: through `torpor serve`'s HTTP and its proxy, against the guest's channel used directly. In turns, on one sandbox;
each with a connection of its own to the server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import uvicorn

from floor import Clock
from setting import TEMPLATE, Bench
from torpor.api.app import make_app
from torpor.apps.control import control_plane
from torpor.apps.serve import Listening, configuration, listen
from torpor.host.desk import HostDesk
from torpor.hostlink.local import LocalHosts
from torpor.model.records import SYSTEM, Exposure
from torpor.ports.guest import ExecSpec, Guest
from torpor.service.caller import Caller
from torpor.service.context import new_id
from torpor.service.sandboxes import CreateRequest

PORT = 8000
REQUESTS = 50
SERVER = f"""
import socket, threading
server = socket.create_server(("127.0.0.1", {PORT}), backlog=64)
print("ready", flush=True)
while True:
    connection, _ = server.accept()
    with connection:
        while b"\\r\\n\\r\\n" not in connection.recv(65536):
            pass
        connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\nok")
"""


async def measure(bench: Bench) -> None:
    for number in range(bench.counts.channel):
        bench.say(f"requests through the proxy: round {number + 1} of {bench.counts.channel}")
        async with bench.attempt("proxied"):
            await _round(bench)


async def _round(bench: Bench) -> None:
    with tempfile.TemporaryDirectory() as folder:
        desk = HostDesk(new_id(), bench.engine.agent, Path(folder))
        await desk.open()
        try:
            async with control_plane(LocalHosts(desk), Path(folder) / "records.db") as wired:
                assert wired.first is not None
                caller = Caller(wired.first.team_id, SYSTEM)
                sandboxes = wired.services.sandboxes
                started = await sandboxes.create(caller, CreateRequest(TEMPLATE, exposure=Exposure(public_ports=True)))
                sandbox = await sandboxes.settled(started.sandbox.id, started.operation_id, 60)
                async with sandboxes.use(caller, sandbox.id, "bench") as guest, _served(make_app(wired.services)) as port:
                    await _requests(bench, guest, port, sandbox.id)
                killed = await sandboxes.kill(caller, sandbox.id)
                await sandboxes.settled(sandbox.id, killed.operation_id, 60)
        finally:
            await desk.close()


async def _requests(bench: Bench, guest: Guest, port: int, sandbox_id: str) -> None:
    process = await guest.exec(ExecSpec(["/usr/bin/python3", "-I", "-S", "-c", SERVER]))
    async for piece in process.output():
        if b"ready" in piece.data:
            break
    process.detach()
    head = b"GET / HTTP/1.1\r\nHost: %d-%s.localhost\r\n\r\n" % (PORT, sandbox_id.encode())
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for number in range(-3, REQUESTS):  # the first ones warm both ways up
        clock = Clock()
        stream = await guest.connect(PORT)
        await stream.write(head)
        answer = b""
        while piece_of_answer := await stream.read():
            answer += piece_of_answer
        stream.close()
        direct = clock()
        assert answer.endswith(b"ok"), answer
        clock = Clock()
        writer.write(head)
        found = await reader.readuntil(b"\r\n\r\n") + await reader.readexactly(2)
        through = clock()
        assert found.startswith(b"HTTP/1.1 200") and found.endswith(b"ok"), found
        if number >= 0:
            bench.samples.add("proxied", through, floor=direct)
    writer.close()


@contextlib.asynccontextmanager
async def _served(app: object) -> AsyncIterator[int]:
    where = Listening("127.0.0.1", 0)
    listener: socket.socket = listen(where)
    server = uvicorn.Server(configuration(app, where))  # type: ignore[arg-type]
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await task
