"""The application on a real server on loopback, with sandboxes whose guest is the real agent, run as a process of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import uvicorn
import websockets

from patience import PATIENCE
from torpor.api.app import make_app
from torpor.api.services import Services
from torpor.apps.serve import Listening, configuration, listen
from torpor.guestlink.guest import RemoteGuest
from torpor.guestlink.link import Link
from torpor.lifecycle.sandbox import demand_running
from torpor.model.errors import NotFound, TorporError, Unauthorized
from torpor.model.records import Actor, ActorKind, Operation, OperationKind, Sandbox, SandboxState
from torpor.model.sandbox import base36
from torpor.model.shapes import Shape
from torpor.ports.guest import Guest
from torpor.ports.records import Page, SandboxFilter
from torpor.service.access import LoggedIn
from torpor.service.caller import Caller
from torpor.service.sandboxes import CreateRequest, Started

SOURCE = Path(__file__).parents[2] / "src"
_START = "import sys; sys.path.insert(0, sys.argv.pop(1)); from torpor.guest.main import serve_socket; serve_socket(*sys.argv[1:])"
TEAM, OTHER_TEAM = base36(1), base36(2)


def descendants(pid: int) -> list[int]:
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


@contextmanager
def running_agent(folder: Path) -> Iterator[Path]:
    """The guest agent's socket; `folder`/home is the home of its default user."""
    (folder / "home").mkdir()
    path = folder / "agent.sock"
    argv = [sys.executable, "-I", "-S", "-B", "-c", _START, str(SOURCE), str(path), "root", str(folder / "home")]
    with subprocess.Popen(argv, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == b"torpor: agent ready\n"
        try:
            yield path
            died = process.poll() is not None
        finally:
            left = descendants(process.pid)  # of tests that failed, or let a command run on
            process.kill()
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        complaints = process.stderr.read().decode()
    assert (died, complaints) == (False, "")


class AgentSession:
    """The one session with an agent, opened at the first need: an agent lets go of a session when another one begins."""

    def __init__(self, agent: Path) -> None:
        self._agent = agent
        self._guest: RemoteGuest | None = None
        self._opening = asyncio.Lock()

    async def guest(self) -> RemoteGuest:
        async with self._opening:
            if self._guest is None:
                self._guest = await Link().connect(self._agent, generation=None, timeout=100)
            return self._guest

    async def close(self) -> None:
        """The next need opens another."""
        guest, self._guest = self._guest, None
        if guest is not None:
            await guest.close()


def new_id() -> str:
    return base36(secrets.randbits(128))


@dataclass
class FakeAccess:
    keys: dict[str, Caller] = field(default_factory=dict)
    sessions: dict[str, LoggedIn] = field(default_factory=dict)
    tickets: dict[str, Caller] = field(default_factory=dict)

    async def by_key(self, secret: str) -> Caller:
        if secret not in self.keys:
            raise Unauthorized("The key is unknown.")
        return self.keys[secret]

    async def by_session(self, token: str) -> LoggedIn:
        if token not in self.sessions:
            raise Unauthorized("The login is over.")
        return self.sessions[token]

    async def by_ticket(self, ticket: str) -> Caller:
        if ticket not in self.tickets:
            raise Unauthorized("The ticket was used.")
        return self.tickets.pop(ticket)


class FakeAudit:
    async def refused(self, caller: Caller, what: str, reason: str) -> None: ...


class FakeSandboxes:
    """Records in memory; one guest for all. `hold` keeps operations under way until it is set; `failure` is what the next one fails with."""

    def __init__(self, agent: Path) -> None:
        self._session = AgentSession(agent)
        self.records: dict[str, Sandbox] = {}
        self.hold: asyncio.Event | None = None
        self.waited = asyncio.Event()
        """Somebody waits for `hold` in earnest."""
        self.failure: TorporError | None = None
        self.requests: list[CreateRequest] = []
        self.idempotent: dict[str, Started] = {}
        self.in_use = 0

    async def _begin(self, sandbox: Sandbox, kind: OperationKind, through: SandboxState, after: SandboxState) -> Started:
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        operation = Operation(new_id(), kind, time.time(), time.time() + 60)
        self.records[sandbox.id] = replace(sandbox, state=through, operation=operation, generation=sandbox.generation + 1)
        if self.hold is None:
            self._end(sandbox.id, after)
        else:
            asyncio.get_running_loop().create_task(self._later(sandbox.id, after, self.hold))
        return Started(self.records[sandbox.id], operation.id)

    async def _later(self, sandbox_id: str, after: SandboxState, hold: asyncio.Event) -> None:
        await hold.wait()
        self._end(sandbox_id, after)

    def _end(self, sandbox_id: str, after: SandboxState) -> None:
        self.records[sandbox_id] = replace(self.records[sandbox_id], state=after, operation=None)

    async def create(self, caller: Caller, request: CreateRequest, *, idempotency_key: str = "", request_digest: str = "") -> Started:
        if idempotency_key in self.idempotent:
            return self.idempotent[idempotency_key]
        self.requests.append(request)
        if request.template.startswith("no-"):
            raise NotFound("There is no such template.")
        now, sandbox_id = time.time(), new_id()
        shape = Shape.fit(request.vcpus, request.memory_mib, request.disk_mib)
        sandbox = Sandbox(
            sandbox_id, caller.team_id, SandboxState.PENDING, 1, base36(9), request.template, shape, request.network, now, now, now,
            started_at=now, labels=request.labels, idle_timeout=request.idle_timeout, deadline=request.deadline, env=request.env,
        )  # fmt: skip
        started = await self._begin(sandbox, OperationKind.CREATE, SandboxState.STARTING, SandboxState.RUNNING)
        if idempotency_key:
            self.idempotent[idempotency_key] = started
        return started

    async def pause(self, caller: Caller, sandbox_id: str) -> Started:
        return await self._begin(await self.get(caller, sandbox_id), OperationKind.PAUSE, SandboxState.PAUSING, SandboxState.PAUSED)

    async def resume(self, caller: Caller, sandbox_id: str) -> Started:
        return await self._begin(await self.get(caller, sandbox_id), OperationKind.RESUME, SandboxState.RESUMING, SandboxState.RUNNING)

    cold_boot = resume

    async def rollback(self, caller: Caller, sandbox_id: str, snapshot: str) -> Started:
        return await self.resume(caller, sandbox_id)

    async def kill(self, caller: Caller, sandbox_id: str) -> Started:
        return await self._begin(await self.get(caller, sandbox_id), OperationKind.KILL, SandboxState.STOPPING, SandboxState.STOPPED)

    async def fork(self, caller: Caller, sandbox_id: str, count: int, **_how: Any) -> Sequence[Started]:
        source = await self.get(caller, sandbox_id)
        return [await self._begin(replace(source, id=new_id()), OperationKind.FORK, SandboxState.STARTING, SandboxState.RUNNING) for _ in range(count)]

    async def settled(self, sandbox_id: str, operation_id: str, timeout: float) -> Sandbox:
        if self.hold is not None:
            if timeout > 1:
                self.waited.set()
            try:
                async with asyncio.timeout(timeout):
                    await self.hold.wait()
                    await asyncio.sleep(0)
            except TimeoutError:
                pass
        return self.records[sandbox_id]

    async def get(self, caller: Caller, sandbox_id: str) -> Sandbox:
        found = self.records.get(sandbox_id)
        if found is None or found.team_id != caller.team_id:
            raise NotFound("There is no such sandbox.")
        return found

    async def list(self, caller: Caller, wanted: SandboxFilter, *, cursor: str = "", limit: int = 100) -> Page[Sandbox]:
        held = [s for s in reversed(self.records.values()) if s.team_id == caller.team_id and s.state in wanted.states]
        held = [s for s in held if all(s.labels.get(name) == value for name, value in (wanted.labels or {}).items())]
        begin = int(cursor or 0)
        return Page(held[begin : begin + limit], str(begin + limit) if begin + limit < len(held) else "")

    async def ping(self, caller: Caller, sandbox_id: str) -> Sandbox:
        sandbox = await self.get(caller, sandbox_id)
        demand_running(sandbox.state)
        return sandbox

    async def set_timeouts(self, caller: Caller, sandbox_id: str, *, idle_timeout: float, deadline: float | None) -> Sandbox:
        self.records[sandbox_id] = replace(await self.get(caller, sandbox_id), idle_timeout=idle_timeout, deadline=deadline)
        return self.records[sandbox_id]

    @asynccontextmanager
    async def use(self, caller: Caller, sandbox_id: str, what: str) -> AsyncIterator[Guest]:
        demand_running((await self.get(caller, sandbox_id)).state)
        guest = await self._session.guest()
        self.in_use += 1
        try:
            yield guest
        finally:
            self.in_use -= 1

    async def counts(self) -> dict[SandboxState, int]:
        return dict(Counter(sandbox.state for sandbox in self.records.values()))

    async def close(self) -> None:
        await self._session.close()


@dataclass
class World:
    """`url` of the server, `client` with the key of TEAM, `other` with another team's, `anyone` without one. `folder`/home is the guest's home."""

    url: str
    key: str
    client: httpx.AsyncClient
    other: httpx.AsyncClient
    anyone: httpx.AsyncClient
    sandboxes: FakeSandboxes
    access: FakeAccess
    folder: Path
    app: Any

    @property
    def home(self) -> Path:
        return self.folder / "home"

    async def capsule(self, **fields: Any) -> str:
        answer = await self.client.post("/v1/capsules", json=fields)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def socket(self, path: str, *, key: str | None = None, **how: Any) -> Any:
        headers = {"X-API-Key": self.key if key is None else key} if key != "" else {}
        patient = {"open_timeout": PATIENCE, "close_timeout": PATIENCE, "ping_interval": None}
        return websockets.connect(self.url.replace("http", "ws") + path, additional_headers=headers | how.pop("headers", {}), **patient, **how)


_documents: list[Any] = []


def app_on(services: Services, *more: Any) -> Any:
    """An application, and its OpenAPI document from the first one that was asked for it: it is the same for all, and much work. `more`: see make_app."""
    app = make_app(services, *more)
    make = app.openapi

    def known() -> Any:
        if not _documents:
            _documents.append(make())
        return _documents[0]

    app.openapi = known  # type: ignore[method-assign]
    return app


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[str]:
    """Its address on loopback."""
    listener = listen(Listening("127.0.0.1", 0))
    server = uvicorn.Server(configuration(app, Listening("127.0.0.1", 0)))
    server.capture_signals = no_signals  # type: ignore[method-assign]
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


def client_of(url: str, key: str = "") -> httpx.AsyncClient:
    """As patient as a busy machine needs. Without certificates: reading them takes longer than most tests."""
    return httpx.AsyncClient(base_url=url, headers={"X-API-Key": key} if key else None, timeout=PATIENCE, verify=False)


@contextmanager
def no_signals() -> Iterator[None]:
    yield


@asynccontextmanager
async def open_world(folder: Path) -> AsyncIterator[World]:
    with running_agent(folder) as agent:
        sandboxes, access = FakeSandboxes(agent), FakeAccess()
        key, other_key = "trp_" + "1" * 40, "trp_" + "2" * 40
        access.keys[key] = Caller(TEAM, Actor(ActorKind.API_KEY, base36(11), "a key"))
        access.keys[other_key] = Caller(OTHER_TEAM, Actor(ActorKind.API_KEY, base36(12), "another"))
        nothing: dict[str, Any] = dict.fromkeys(field.name for field in dataclasses.fields(Services))
        given = {"access": access, "sandboxes": sandboxes, "audit": FakeAudit(), "counts": sandboxes.counts, "origins": (), "proxies": ()}
        app = app_on(Services(**nothing | given))
        async with (
            served(app) as url,
            client_of(url, key) as client,
            client_of(url, other_key) as other,
            client_of(url) as anyone,
        ):
            yield World(url, key, client, other, anyone, sandboxes, access, folder, app)
            async with asyncio.timeout(100):
                while sandboxes.in_use:  # an answer has arrived a moment before its sandbox is let go of
                    await asyncio.sleep(0.01)
        await sandboxes.close()
