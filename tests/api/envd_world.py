"""The data plane of the E2B dialect on a real server on loopback, behind a front that stands in for the port proxy and for what the SDKs ask of the control
plane; the guests are the real agent."""

from __future__ import annotations

import base64
import gzip
import json
import struct
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from api_world import client_of, served
from google.protobuf import json_format
from plane_world import Plane, open_plane

from patience import PATIENCE
from torpor.api.e2b.envd.app import make_envd
from torpor.api.e2b.envd.messages import FILESYSTEM, PROCESS
from torpor.model.records import PLATFORM_TEAM, Actor, ActorKind, Exposure, SandboxState
from torpor.service.caller import Caller
from torpor.service.sandboxes import CreateRequest

Json = dict[str, Any]
_HEAD = struct.Struct(">BI")


class Front:
    """Routes by the SDKs' headers, or to `default` where there are none; answers connects, so that SDKs have token and version."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._envd = make_envd(plane.wired.services)
        self.default = ""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        path = scope["path"].removeprefix("/v2")
        headers = dict(scope["headers"])
        if path.startswith("/sandboxes/") and path.endswith("/connect"):
            await self._connect(path.split("/")[2], send)
            return
        scope.setdefault("state", {})["sandbox_id"] = headers.get(b"e2b-sandbox-id", self.default.encode()).decode()
        await self._envd(scope, receive, send)

    async def _connect(self, sandbox_id: str, send: Any) -> None:
        token = self._plane.wired.services.tokens.access(sandbox_id)
        body = {"templateID": "base", "sandboxID": sandbox_id, "clientID": "c", "envdVersion": "0.6.13", "envdAccessToken": token, "domain": None}
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": json.dumps(body).encode()})


@dataclass
class EnvdWorld:
    """`client` holds the token of `sandbox`, `stranger` none. `home` is the guest's default user's."""

    plane: Plane
    front: Front
    url: str
    sandbox: str
    token: str
    client: httpx.AsyncClient
    stranger: httpx.AsyncClient

    @property
    def home(self) -> Path:
        return self.plane.home

    async def make(self, **fields: Any) -> str:
        """A running sandbox's id."""
        sandboxes = self.plane.wired.services.sandboxes
        team = self.plane.wired.first.team_id if self.plane.wired.first is not None else PLATFORM_TEAM
        caller = Caller(team, Actor(ActorKind.API_KEY, "", "a test"))
        request = CreateRequest("base", **{"dialect": "e2b", "exposure": Exposure(guarded=True)} | fields)
        started = await sandboxes.create(caller, request)
        settled = await sandboxes.settled(started.sandbox.id, started.operation_id, PATIENCE)
        assert settled.state is SandboxState.RUNNING
        return settled.id

    async def end(self, sandbox_id: str) -> None:
        """Kills it, and with it every session of its guest, as the end of a machine does."""
        await self.plane.host.close()
        sandboxes = self.plane.wired.services.sandboxes
        team = self.plane.wired.first.team_id if self.plane.wired.first is not None else PLATFORM_TEAM
        started = await sandboxes.kill(Caller(team, Actor(ActorKind.API_KEY, "", "a test")), sandbox_id)
        await sandboxes.settled(sandbox_id, started.operation_id, PATIENCE)

    async def call(self, method: str, message: Json | None = None, *, user: str = "", codec: str = "json", **headers: str) -> httpx.Response:
        """A unary call; `method` as `process.Process/List`. The answer's body is JSON in both codecs, see `read`."""
        how = {"Content-Type": f"application/{codec}", "Connect-Protocol-Version": "1", **_named(headers), **_as(user)}
        return await self.client.post(f"/{method}", content=written(method, message or {}, codec), headers=how)

    async def asked(self, method: str, message: Json | None = None, *, user: str = "", codec: str = "json") -> Json:
        """What a unary call that succeeds says."""
        answer = await self.call(method, message, user=user, codec=codec)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == f"application/{codec}"
        return read(method, answer.content, codec)

    @asynccontextmanager
    async def stream(self, method: str, message: Json, *, user: str = "", codec: str = "json", **headers: str) -> AsyncIterator[AsyncIterator[Json]]:
        """The messages of a server's stream; the last one is {"end": ...}."""
        how = {"Content-Type": f"application/connect+{codec}", "Connect-Protocol-Version": "1", **_named(headers), **_as(user)}
        async with self.client.stream("POST", f"/{method}", content=enveloped(written(method, message, codec)), headers=how) as answer:
            assert answer.status_code == 200, (await answer.aread()).decode()
            assert answer.headers["content-type"] == f"application/connect+{codec}"
            gzipped = answer.headers.get("connect-content-encoding") == "gzip"
            async with aclosing(_messages(method, answer.aiter_raw(), codec, gzipped=gzipped)) as messages:
                yield messages

    async def run(self, command: str, *, user: str = "", codec: str = "json", headers: dict[str, str] | None = None, **fields: Any) -> list[Json]:
        """Every message of a command in a shell."""
        request = {"process": {"cmd": "/bin/bash", "args": ["-c", command], **fields.pop("process", {})}, "stdin": False, **fields}
        async with self.stream("process.Process/Start", request, user=user, codec=codec, **(headers or {})) as messages:
            return [message async for message in messages]


def _named(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


def _as(user: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:".encode()).decode()} if user else {}


def _kind(method: str, what: str) -> Any:
    service, _, name = method.partition("/")
    return (PROCESS if service == "process.Process" else FILESYSTEM)[name + what]


def written(method: str, message: Json, codec: str) -> bytes:
    if codec == "json":
        return json.dumps(message).encode()
    return bytes(json_format.ParseDict(message, _kind(method, "Request")()).SerializeToString())


def read(method: str, data: bytes, codec: str) -> Json:
    found: Json = json.loads(data) if codec == "json" else json_format.MessageToDict(_kind(method, "Response").FromString(data))
    return found


def enveloped(data: bytes, flags: int = 0) -> bytes:
    return _HEAD.pack(flags, len(data)) + data


async def _messages(method: str, body: AsyncIterator[bytes], codec: str, *, gzipped: bool) -> AsyncIterator[Json]:
    held = b""
    async for data in body:
        held += data
        while len(held) >= 5 and len(held) >= 5 + _HEAD.unpack_from(held)[1]:
            flags, length = _HEAD.unpack_from(held)
            payload, held = held[5 : 5 + length], held[5 + length :]
            if flags & 1:
                assert gzipped
                payload = gzip.decompress(payload)
            yield {"end": json.loads(payload)} if flags & 2 else read(method, payload, codec)
    assert held == b""


def output(messages: list[Json], name: str = "stdout") -> bytes:
    """All that was told of one of a command's streams."""
    return b"".join(base64.b64decode(m["event"]["data"].get(name, "")) for m in messages if "data" in m.get("event", {}))


def ended(messages: list[Json]) -> Json:
    """The event with which a command ended, before the end of its stream."""
    assert messages[-1] == {"end": {}}, messages[-1]
    found: Json = messages[-2]["event"]["end"]
    return found


@asynccontextmanager
async def open_envd(folder: Path) -> AsyncIterator[EnvdWorld]:
    async with open_plane(folder) as plane:
        front = Front(plane)
        async with served(front) as url, client_of(url) as client, client_of(url) as stranger:
            world = EnvdWorld(plane, front, url, "", "", client, stranger)
            world.sandbox = front.default = await world.make()
            world.token = plane.wired.services.tokens.access(world.sandbox)
            named = {"E2b-Sandbox-Id": world.sandbox, "E2b-Sandbox-Port": "49983"}
            client.headers.update(named | {"X-Access-Token": world.token})
            stranger.headers.update(named)
            yield world
