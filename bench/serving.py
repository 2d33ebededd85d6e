"""A real `torpor serve` in a process of its own, on a home of its own, and as little of an HTTP client as can speak to it: what is measured is the server."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from floor import Clock

TORPOR = Path(sys.executable).with_name("torpor")
WAIT = {"Prefer": "wait=300"}
SECONDS = 120.0
"""What a start or an end of the server may take before it counts as hung."""
_PIECE = 1 << 18
_KEPT = ("PATH", "HOME", "LANG")


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes

    def tree(self, *expected: int) -> Any:
        """The JSON. Raises Refused for another status than the expected ones."""
        if self.status not in expected:
            raise Refused(f"{self.status}: {self.body[:300].decode(errors='replace')}")
        return json.loads(self.body) if self.body else None


class Refused(Exception):
    """The server's answer was another one than was wanted."""


class Api:
    """One connection. Every answer of the server names its length, but for streams, which come in chunks."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: str) -> None:
        self._reader = reader
        self._writer = writer
        self._head = head

    async def call(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        content = b"" if body is None else json.dumps(body).encode()
        self.begin(method, path, {"Content-Type": "application/json", **(headers or {})}, len(content))
        self._writer.write(content)
        status, pieces = await self.answer()
        return Answer(status, b"".join([piece async for piece in pieces]))

    def begin(self, method: str, path: str, headers: Mapping[str, str], length: int) -> None:
        fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._writer.write(f"{method} {path} HTTP/1.1\r\n{self._head}{fields}Content-Length: {length}\r\n\r\n".encode())

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def answer(self) -> tuple[int, AsyncIterator[bytes]]:
        """The status, and the body as it comes, to be read to its end."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        status = int(head[9:12])
        length = re.search(r"\r\ncontent-length: (\d+)", head)
        return status, self._chunks() if "\r\ntransfer-encoding: chunked" in head else self._bytes(int(length[1]) if length else 0)

    async def _bytes(self, left: int) -> AsyncIterator[bytes]:
        while left:
            piece = await self._reader.read(min(left, _PIECE))
            if not piece:
                raise Refused("The answer broke off.")
            left -= len(piece)
            yield piece

    async def _chunks(self) -> AsyncIterator[bytes]:
        while size := int(await self._reader.readline(), 16):
            yield await self._reader.readexactly(size)
            await self._reader.readline()
        await self._reader.readline()

    def close(self) -> None:
        self._writer.close()


class Server:
    """One running `torpor serve`; `variables` are its settings. What it logs is taken from it and dropped, as a service manager would take it."""

    def __init__(self, home: Path, **variables: str) -> None:
        self.home = home
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        self._environment = kept | {"TORPOR_HOME": str(home), "TORPOR_PORT": "0", "TORPOR_NETWORK_POOL": "2"} | variables
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0
        self.key = ""
        self.took = 0.0
        """Milliseconds from its start until it said that it serves."""

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        clock = Clock()
        self._process = subprocess.Popen([TORPOR, "serve"], env=self._environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
        said = self._process.stderr
        assert said is not None
        lines = []
        for line in said:
            lines.append(line.decode(errors="replace"))
            if found := re.search(rb"torpor serves https?://127\.0\.0\.1:(\d+)", line):
                self.took = clock()
                self.port = int(found[1])
                break
        else:
            self._process.wait()
            raise Refused(f"`torpor serve` ended: {''.join(lines)}")
        threading.Thread(target=_drain, args=(said,), daemon=True).start()
        self.key = json.loads((self.home / "client.json").read_text())["key"]

    def stop(self) -> None:
        """Its sandboxes run on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(SECONDS)
        finally:
            self._process.kill()
            self._process.wait()

    async def connect(self, **headers: str) -> Api:
        """A connection with the server's own key; `headers` go with every request, with `-` for `_`."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)
        fields = {"Host": f"127.0.0.1:{self.port}", "X-API-Key": self.key} | {name.replace("_", "-"): value for name, value in headers.items()}
        return Api(reader, writer, "".join(f"{name}: {value}\r\n" for name, value in fields.items()))

    @asynccontextmanager
    async def api(self, **headers: str) -> AsyncIterator[Api]:
        api = await self.connect(**headers)
        try:
            yield api
        finally:
            api.close()


def _drain(said: Any) -> None:
    with said:
        while os.read(said.fileno(), 1 << 16):
            pass


def fresh(home: Path, images: Path) -> None:
    """A home on the images, and with the warm images, of earlier runs; its records are new. No machine may be left in it."""
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "images").exists():
        (home / "images").symlink_to(images)
    for path in home.iterdir():
        if path.name.startswith(("torpor.db", "first-", "client.json", "host.id")):
            path.unlink()


def peak(pid: int) -> int:
    """The most memory that the process had resident at once, in bytes, since `forget_peak`."""
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM:"))


def forget_peak(pid: int) -> int:
    """Begins a new peak; the bytes resident now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return peak(pid)
