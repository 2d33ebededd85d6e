"""The whole server on loopback, with the proxy's own port beside it, and servers "in the sandbox": the guest's agent is a process of this machine, so whatever
listens on loopback here does so in every guest."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn
import websockets
from api_world import app_on, no_signals, running_agent
from plane_world import AgentHost, cheap
from starlette.types import ASGIApp

from patience import PATIENCE
from torpor.api.reach import Reach
from torpor.apps.control import Wired, control_plane
from torpor.apps.serve import Listening, configuration, listen
from torpor.hostlink.local import LocalHosts
from torpor.model.records import SYSTEM, ApiKey, Exposure, Team
from torpor.service.access import digest_of
from torpor.service.caller import Caller
from torpor.service.first import new_key
from torpor.service.sandboxes import CreateRequest

DOMAIN = "sbx.example.test"
INNER_PORT = 49983


@dataclass
class ProxyWorld:
    """`port` of the API, `own_port` of the proxy alone. `key` is of the team that owns the sandboxes, `other_key` of another."""

    port: int
    own_port: int
    key: str
    other_key: str
    wired: Wired
    host: AgentHost
    home: Path
    tls: bool = False
    clients: list[httpx.AsyncClient] = field(default_factory=list)

    @property
    def team(self) -> str:
        assert self.wired.first is not None
        return self.wired.first.team_id

    async def sandbox(self, *, public: bool = True, exposure: Exposure | None = None, **more: Any) -> str:
        """A running one; its 25 digits."""
        request = CreateRequest("base", dialect="e2b", exposure=exposure or Exposure(public_ports=public), **more)
        sandboxes, caller = self.wired.services.sandboxes, Caller(self.team, SYSTEM)
        started = await sandboxes.create(caller, request)
        await sandboxes.settled(started.sandbox.id, started.operation_id, PATIENCE)
        return started.sandbox.id

    async def pause(self, sandbox_id: str) -> None:
        await self._done(await self.wired.services.sandboxes.pause(Caller(self.team, SYSTEM), sandbox_id))

    async def kill(self, sandbox_id: str) -> None:
        await self._done(await self.wired.services.sandboxes.kill(Caller(self.team, SYSTEM), sandbox_id))

    async def _done(self, started: Any) -> None:
        await self.wired.services.sandboxes.settled(started.sandbox.id, started.operation_id, PATIENCE)

    def host_of(self, shown: str, port: int) -> str:
        return f"{port}-{shown}.{DOMAIN}"

    def client(self, host: str = "", *, own_port: bool = False, **headers: str) -> httpx.AsyncClient:
        """Talks to the server as if it had that name. Closed with the world."""
        port = self.own_port if own_port else self.port
        scheme = "https" if self.tls else "http"
        client = httpx.AsyncClient(
            base_url=f"{scheme}://127.0.0.1:{port}", headers=({"Host": host} if host else {}) | headers, timeout=PATIENCE, verify=False, trust_env=False
        )
        self.clients.append(client)
        return client

    def to(self, shown: str, port: int, **headers: str) -> httpx.AsyncClient:
        """A client of one port of one sandbox, by name."""
        return self.client(self.host_of(shown, port), **headers)

    def socket(self, shown: str, port: int, path: str = "/", **how: Any) -> Any:
        """A WebSocket to it."""
        patient = {"open_timeout": PATIENCE, "close_timeout": PATIENCE, "ping_interval": None, "proxy": None}
        return websockets.connect(f"ws://{self.host_of(shown, port)}:80{path}", host="127.0.0.1", port=self.port, **patient | how)

    async def raw(self, data: bytes = b"", *, own_port: bool = False) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.own_port if own_port else self.port)
        writer.write(data)
        return reader, writer


@asynccontextmanager
async def open_proxy(
    folder: Path, *, domain: str = "", inner: Mapping[int, ASGIApp] | None = None, certificate: tuple[str, str] = ("", ""), idle: float = 0.0, **how: Any
) -> AsyncIterator[ProxyWorld]:
    with running_agent(folder) as agent:
        host = AgentHost(agent, folder / "home")
        async with control_plane(LocalHosts(host), folder / "records.db", people=cheap(), **how) as wired:
            where = Listening("127.0.0.1", 0, *certificate)
            with listen(where) as listener, listen(where) as own:
                ports = [each.getsockname()[1] for each in (listener, own)]
                app = app_on(wired.services, Reach(domain, ports[1]), inner)
                server = uvicorn.Server(configuration(app, where))
                server.capture_signals = no_signals  # type: ignore[method-assign]
                task = asyncio.create_task(server.serve(sockets=[listener, own]))
                assert wired.first is not None
                world = ProxyWorld(ports[0], ports[1], wired.first.key, await _other_key(wired), wired, host, folder / "home", bool(certificate[0]))
                try:
                    yield world
                finally:
                    for client in world.clients:
                        await client.aclose()
                    server.should_exit = True
                    await task
        await host.close()


async def _other_key(wired: Wired) -> str:
    context, secret = wired.context, new_key()
    team = Team(context.new_id(), "Others", context.new_id()[:12], context.now())
    async with context.store.write() as records:
        await records.teams.add(team)
        await records.keys.add(ApiKey(context.new_id(), team.id, "k", digest_of(secret), secret[:10], context.now()))
    return secret


@asynccontextmanager
async def asgi(app: Any, *, tls: tuple[str, str] | None = None) -> AsyncIterator[int]:
    """A web server in the sandbox; its port."""
    with listen(Listening("127.0.0.1", 0)) as listener:
        secure = {"ssl_certfile": tls[0], "ssl_keyfile": tls[1]} if tls else {}
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", ws="none", **secure))
        server.capture_signals = no_signals  # type: ignore[method-assign]
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            server.force_exit = True
            await task


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def bytes_server(handler: Handler, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Whatever the handler makes of a connection, in the sandbox; its port."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await handler(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            tasks.discard(task)
            with contextlib.suppress(ConnectionError):
                writer.close()

    server = await asyncio.start_server(serve, host, 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def answering(answer: bytes, seen: list[bytes] | None = None) -> Handler:
    """Reads one head, answers with these bytes, and closes."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if seen is not None:
            seen.append(head)
        writer.write(answer)
        await writer.drain()

    return handle


@asynccontextmanager
async def program(*argv: str, ready: bytes, folder: Path) -> AsyncIterator[bytes]:
    """A process in the sandbox; the rest of the line that begins with `ready`."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-u", *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=folder)
    assert process.stdout is not None
    try:
        while not (line := await process.stdout.readline()).startswith(ready):
            assert line, "it ended"
        yield line.removeprefix(ready).strip()
    finally:
        process.kill()
        await process.communicate()
