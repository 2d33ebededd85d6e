"""`torpor serve` that is stopped and started again on one home and one port, in a cgroup of its own as a service manager gives it one; and clients that
work on through it, each with a log of what it was told is done."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
import json
import os
import secrets
import signal
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import websockets
from cli_world import ENDED, TORPOR, environment, served, started

from torpor.proc.keeper.cgroups import hierarchies

SECONDS = 120.0
"""What anything here may take before it counts as hung."""
KINDS = {"sigterm", "sigkill", "control-group", "mixed"}
"""SIGTERM or SIGKILL to the server alone; systemd's KillMode=control-group: SIGTERM to all in the unit's cgroup, then SIGKILL to what is left; KillMode=mixed:
SIGTERM to the server, then SIGKILL to all that is left."""


class Unit:
    """A cgroup such as systemd makes for a service."""

    def __init__(self) -> None:
        self.path = Path(hierarchies()["v2"]) / f"torpor-test-{secrets.token_hex(4)}.service"
        self.path.mkdir()

    def enter(self) -> None:
        (self.path / "cgroup.procs").write_text("0")

    def pids(self) -> list[int]:
        return [int(line) for path in self.path.rglob("cgroup.procs") for line in path.read_text().split()]

    def signal(self, number: signal.Signals) -> None:
        for pid in self.pids():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def close(self) -> None:
        assert self.pids() == []
        self.path.rmdir()


class Server:
    """`url` is the same over all restarts. `up` is set while it serves: clients wait for it instead of trying again and again."""

    def __init__(self, home: Path, *words: str, **variables: str) -> None:
        self.home = home
        self.unit = Unit()
        self.up = asyncio.Event()
        self.process: subprocess.Popen[bytes] | None = None
        self._words = words
        self._environment = environment(home, **variables)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.key = ""

    @property
    def headers(self) -> dict[str, str]:
        return {"X-API-Key": self.key}

    async def start(self) -> None:
        argv = [TORPOR, "serve", "--port", str(self.port), *self._words]
        self.process = subprocess.Popen(argv, env=self._environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=self.unit.enter)
        assert await asyncio.to_thread(served, self.process) == self.url
        self._drain = asyncio.create_task(asyncio.to_thread(drain, self.process))
        if not self.key:
            self.key = (self.home / "first-key").read_text().strip()
        self.up.set()

    async def stop(self, how: str) -> None:
        """As one of KINDS; returns when nothing is left in the unit's cgroup."""
        assert self.process is not None and how in KINDS
        self.up.clear()
        if how == "sigkill":
            self.process.kill()
        elif how == "control-group":
            self.unit.signal(signal.SIGTERM)
        else:
            self.process.terminate()
        await asyncio.to_thread(self.process.wait, ENDED)
        if how in ("control-group", "mixed"):
            self.unit.signal(signal.SIGKILL)
        await self._drain
        assert self.process.stderr is not None
        self.process.stderr.close()
        assert self.unit.pids() == [], "nothing of a sandbox lives in the unit"
        self.process = None

    async def restart(self, how: str) -> None:
        await self.stop(how)
        await self.start()

    async def close(self) -> None:
        if self.process is not None:
            await self.stop("sigkill")
        self.unit.close()


@contextmanager
def server(home: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The process and its address. What it logs is read all the time: a full pipe would hold it up."""
    with started(home, "serve", "--port", "0") as process:
        url = served(process)
        reading = threading.Thread(target=drain, args=(process,))
        reading.start()
        try:
            yield process, url
        finally:
            process.kill()
            reading.join()


def drain(process: subprocess.Popen[bytes]) -> None:
    """Reads what the server says until it ends: a full pipe would hold it up."""
    assert process.stderr is not None
    while process.stderr.read1(65536):
        pass


@asynccontextmanager
async def serving(home: Path, *words: str, **variables: str) -> AsyncIterator[Server]:
    server = Server(home, *words, **variables)
    try:
        await server.start()
        yield server
    finally:
        await server.close()


class Unanswered(Exception):
    """The server went away before it answered: what was asked may have been done or not."""


class Client:
    """Asks over HTTP. While the server is away it waits; an answer that was lost raises Unanswered."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._http = httpx.AsyncClient(base_url=server.url, headers=server.headers, timeout=SECONDS)

    async def ask(self, method: str, path: str, **how: Any) -> httpx.Response:
        await self._server.up.wait()
        try:
            return await self._http.request(method, path, **how)
        except httpx.TransportError as error:
            raise Unanswered(repr(error)) from error

    async def surely(self, method: str, path: str, **how: Any) -> httpx.Response:
        """Asks again until there is an answer: only for what may be repeated."""
        while True:
            try:
                return await self.ask(method, path, **how)
            except Unanswered:
                await asyncio.sleep(0)

    async def create(self, **fields: Any) -> str:
        body = {"template": "minimal", "memory_mb": 256, "disk_size_mb": 1024} | fields
        answer = await self.surely("POST", "/v1/capsules", json=body, headers={"Prefer": "wait=120", "Idempotency-Key": secrets.token_hex(8)})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    async def run(self, capsule: str, script: str) -> str:
        """A script that may be repeated; what it printed."""
        answer = await self.surely("POST", f"/v1/capsules/{capsule}/exec", json={"cmd": "sh", "args": ["-c", script], "timeout_sec": 60})
        assert answer.status_code == 200, answer.text
        assert answer.json()["exit_code"] == 0, answer.text
        return str(answer.json()["stdout"])

    async def close(self) -> None:
        await self._http.aclose()


@asynccontextmanager
async def client_of(server: Server) -> AsyncIterator[Client]:
    client = Client(server)
    try:
        yield client
    finally:
        await client.close()


@dataclass
class Progress:
    """How often each worker was told that something is done; `each_did` waits for all of them."""

    counts: dict[str, int] = field(default_factory=dict)
    _moved: asyncio.Event = field(default_factory=asyncio.Event)

    def tick(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1
        self._moved.set()

    async def each_did(self, more: int, names: list[str]) -> None:
        """Returns when each has been told `more` times more than now."""
        goals = {name: self.counts.get(name, 0) + more for name in names}
        async with asyncio.timeout(SECONDS):
            while any(self.counts.get(name, 0) < goal for name, goal in goals.items()):
                self._moved.clear()
                await self._moved.wait()


def content(name: str, number: int) -> bytes:
    """Of a file: 1 to 64 KiB, from its name."""
    seed = hashlib.sha256(f"{name} {number}".encode()).digest()
    return seed * (32 + 2016 * seed[0] // 255)


async def write_files(client: Client, capsule: str, name: str, told: dict[str, bytes], progress: Progress) -> None:
    """Writes one file after another; `told`: those whose write was answered."""
    for number in itertools.count():
        path = f"/root/{name}-{number}"
        body = content(name, number)
        try:
            answer = await client.ask("POST", f"/v1/capsules/{capsule}/files/write", data={"path": path}, files={"file": ("f", body)})
        except Unanswered:
            continue
        if answer.status_code == 204:
            told[path] = body
            progress.tick(name)
        else:
            assert answer.status_code in (502, 503), answer.text


async def append_lines(client: Client, capsule: str, name: str, told: list[int], progress: Progress) -> None:
    """Appends one line a command to /root/NAME; `told`: those whose command was answered."""
    for number in itertools.count():
        script = f"echo {number} >> /root/{name}"
        try:
            answer = await client.ask("POST", f"/v1/capsules/{capsule}/exec", json={"cmd": "sh", "args": ["-c", script], "timeout_sec": 60})
        except Unanswered:
            continue
        if answer.status_code == 200:
            assert answer.json()["exit_code"] == 0, answer.text
            told.append(number)
            progress.tick(name)
        else:
            assert answer.status_code in (502, 503), answer.text


async def bring(client: Client, capsule: str, verb: str, state: str) -> None:
    """Pauses or resumes it. A request whose answer was lost may have done it already, and one of before a restart may be under way."""
    while True:
        answer = await client.surely("POST", f"/v1/capsules/{capsule}/{verb}", headers={"Prefer": "wait=120"})
        if answer.status_code == 200:
            assert answer.json()["state"] == state, answer.text
            return
        reason = answer.json()["error"]["reason"] if answer.status_code == 409 else "under way"
        assert answer.status_code in (202, 409) and reason in ("under way", "busy", "already"), answer.text
        if reason == "already":
            return


async def sleep_and_wake(client: Client, capsule: str, name: str, progress: Progress) -> None:
    """Pauses and resumes; after each resume what is in its memory alone is there."""
    while True:
        for verb, state in (("pause", "paused"), ("resume", "running")):
            await bring(client, capsule, verb, state)
        assert await client.run(capsule, "cat /dev/shm/memory") == "kept\n"
        progress.tick(name)


async def come_and_go(client: Client, name: str, alive: set[str], gone: set[str], progress: Progress) -> None:
    """Creates and deletes. `alive`: created, and no delete was sent; `gone`: whose delete was answered."""
    while True:
        capsule = await client.create()
        alive.add(capsule)
        await client.run(capsule, "true")
        alive.discard(capsule)
        answer = await client.surely("DELETE", f"/v1/capsules/{capsule}", headers={"Prefer": "wait=120"})
        assert answer.status_code == 204, answer.text
        gone.add(capsule)
        progress.tick(name)


class Follower:
    """Follows a command by its tag from where it stands, on a new connection whenever one breaks. `said` is all of its standard output."""

    def __init__(self, server: Server, capsule: str, tag: str) -> None:
        self._server = server
        self._path = f"{server.url.replace('http', 'ws', 1)}/v1/capsules/{capsule}/processes/{tag}/stream"
        self.tag = tag
        self.said = bytearray()
        self.exit_code: int | None = None
        self.breaks = 0

    async def follow(self, progress: Progress) -> None:
        """Returns at the command's end."""
        while self.exit_code is None:
            await self._server.up.wait()
            url = f"{self._path}?stdout_offset={len(self.said)}&encoding=base64"
            try:
                async with websockets.connect(url, additional_headers=self._server.headers, max_size=None, open_timeout=SECONDS) as stream:
                    async for text in stream:
                        self._take(json.loads(text), progress)
            except (OSError, websockets.InvalidMessage, websockets.ConnectionClosed, EOFError):
                pass
            self.breaks += self.exit_code is None

    def _take(self, frame: dict[str, Any], progress: Progress) -> None:
        if frame["type"] == "stdout":
            assert frame["offset"] == len(self.said), "a byte was lost or came twice"
            self.said += base64.b64decode(frame["data"])
            progress.tick(self.tag)
        elif frame["type"] == "exit":
            self.exit_code = frame["exit_code"]
        elif frame["type"] == "error":
            assert frame["code"] in ("agent_error", "host_unavailable"), frame


@contextmanager
def background(*works: asyncio.Task[None]) -> Iterator[Callable[[], None]]:
    """Tasks for as long as the block lasts; the function it gives raises what one of them failed with."""

    def check() -> None:
        for work in works:
            if work.done() and not work.cancelled():
                work.result()

    try:
        yield check
    finally:
        for work in works:
            work.cancel()
