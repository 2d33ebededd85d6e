"""The data plane of the E2B dialect on a real microVM: what the agent does there as root, with cgroups, users and a file system of its own; and a pause."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any

import httpx
import pytest

from torpor.api.e2b.envd.app import make_envd
from torpor.apps.control import control_plane
from torpor.apps.engine import Engine
from torpor.host.desk import HostDesk
from torpor.hostlink.local import LocalHosts
from torpor.model.records import Actor, ActorKind, Exposure, SandboxState
from torpor.model.sandbox import base36
from torpor.service.caller import Caller
from torpor.service.sandboxes import CreateRequest

pytestmark = pytest.mark.vm
SECONDS = 170.0


async def test_the_data_plane_with_a_real_microvm(engine: Engine, images_home: Path, tmp_path: Path) -> None:
    desk = HostDesk(base36(77), engine.agent, images_home)
    await desk.open()
    async with control_plane(LocalHosts(desk), tmp_path / "records.db") as wired:
        assert wired.first is not None
        sandboxes, tokens = wired.services.sandboxes, wired.services.tokens
        caller = Caller(wired.first.team_id, Actor(ActorKind.API_KEY, "", "a test"))
        started = await sandboxes.create(caller, CreateRequest("base", dialect="e2b", exposure=Exposure(guarded=True)))
        sandbox = await sandboxes.settled(started.sandbox.id, started.operation_id, SECONDS)
        assert sandbox.state is SandboxState.RUNNING
        envd = make_envd(wired.services)

        async def front(scope: Any, receive: Any, send: Any) -> None:
            scope.setdefault("state", {})["sandbox_id"] = sandbox.id
            await envd(scope, receive, send)

        transport = httpx.ASGITransport(front)
        headers = {"X-Access-Token": tokens.access(sandbox.id)}
        async with httpx.AsyncClient(transport=transport, base_url="http://sandbox", headers=headers, timeout=SECONDS) as client:
            await _serve(client)
            begun = await sandboxes.pause(caller, sandbox.id)
            assert (await sandboxes.settled(sandbox.id, begun.operation_id, SECONDS)).state is SandboxState.PAUSED
            gone = await client.get("/health")
            assert (gone.status_code, gone.json()["message"]) == (502, "The sandbox was not found")
            begun = await sandboxes.resume(caller, sandbox.id)
            assert (await sandboxes.settled(sandbox.id, begun.operation_id, SECONDS)).state is SandboxState.RUNNING
            assert (await client.get("/health")).status_code == 204
            assert (await client.get("/files", params={"path": "kept.txt"})).text == "kept"
        begun = await sandboxes.kill(caller, sandbox.id)
        assert (await sandboxes.settled(sandbox.id, begun.operation_id, SECONDS)).state is SandboxState.STOPPED


async def _serve(client: httpx.AsyncClient) -> None:
    assert _said(await _start(client, "whoami; pwd; echo $E2B_SANDBOX")).split() == [b"user", b"/home/user", b"true"]
    assert _said(await _start(client, "whoami; pwd", user="root")).split() == [b"root", b"/root"]
    watcher = await _call(client, "filesystem.Filesystem/CreateWatcher", {"path": "."})
    sent = await client.post("/files", params={"path": "kept.txt"}, files={"file": b"kept"}, headers={"X-Metadata-Kind": "text"})
    assert sent.status_code == 200
    events: list[Any] = []
    while len(events) < 3:
        events += (await _call(client, "filesystem.Filesystem/GetWatcherEvents", watcher)).get("events", [])
    assert [event["type"] for event in events[:2]] + [events[-1]["type"]] == ["EVENT_TYPE_CREATE", "EVENT_TYPE_CHMOD", "EVENT_TYPE_WRITE"]
    entry = (await _call(client, "filesystem.Filesystem/Stat", {"path": "kept.txt"}))["entry"]
    assert (entry["owner"], entry["mode"], entry["metadata"]) == ("user", 0o644, {"kind": "text"})
    assert (await client.post("/files", params={"path": "/opt/of/user"}, files={"file": b"x"})).status_code == 200
    assert _said(await _start(client, "stat -c %U /opt/of /opt/of/user")).split() == [b"user", b"user"]
    assert (await client.get("/metrics")).json()["cpu_count"] == 1
    killed = await _start(client, "setsid sh -c 'echo $$; sleep 1000' & wait", timeout_ms=3000)
    assert killed[-1]["end"]["error"]["code"] == "deadline_exceeded"
    gone = f"while kill -0 {int(_said(killed))}; do sleep 0.02; done 2>/dev/null; echo dead"  # it may be on its way out still
    assert _said(await _start(client, gone)) == b"dead\n"


async def _call(client: httpx.AsyncClient, method: str, message: dict[str, Any]) -> dict[str, Any]:
    answer = await client.post(f"/{method}", json=message)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def _start(client: httpx.AsyncClient, command: str, *, user: str = "", timeout_ms: int = 0) -> list[Any]:
    """Every message of a command in a shell."""
    body = json.dumps({"process": {"cmd": "/bin/bash", "args": ["-c", command]}, "stdin": False}).encode()
    headers = {"Content-Type": "application/connect+json"} | ({"Connect-Timeout-Ms": str(timeout_ms)} if timeout_ms else {})
    if user:
        headers["Authorization"] = "Basic " + base64.b64encode(f"{user}:".encode()).decode()
    answer = await client.post("/process.Process/Start", content=struct.pack(">BI", 0, len(body)) + body, headers=headers)
    assert answer.status_code == 200, answer.text
    data, messages = answer.content, []
    while data:
        flags, length = struct.unpack_from(">BI", data)
        payload, data = json.loads(data[5 : 5 + length]), data[5 + length :]
        messages.append({"end": payload} if flags & 2 else payload)
    return messages


def _said(messages: list[Any]) -> bytes:
    return b"".join(base64.b64decode(m["event"]["data"].get("stdout", "")) for m in messages if "data" in m.get("event", {}))
