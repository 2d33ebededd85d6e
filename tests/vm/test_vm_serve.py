"""`torpor serve` as an operator starts it, with real microVMs: the dialect's published SDK, a restart that nothing running notices, `torpor run` beside it."""

from __future__ import annotations

import asyncio
import stat
import sys
import time
from pathlib import Path

import httpx
import pytest
from cli_world import end, left, torpor
from serve_world import server

sys.path.append(str(Path(__file__).parents[1] / "api"))
from sdk_world import drive

pytestmark = pytest.mark.vm
SECTIONS = ("lifecycle", "commands", "files", "pty", "git", "snapshots", "asynchronous")


async def test_the_server_with_real_microvms(fresh_home: Path) -> None:
    with server(fresh_home) as (process, url):
        written = fresh_home / "first-key"
        key = written.read_text().strip()
        assert stat.S_IMODE(written.stat().st_mode) == 0o600
        await drive("0.1.2", url, key, "base", "lifecycle", "commands", "pty", seconds=120)
        await drive("0.3.0", url, key, "base", *SECTIONS, "events", seconds=240)
        async with httpx.AsyncClient(base_url=url, headers={"X-API-Key": key}, timeout=60) as client:
            capsule = (await client.post("/v1/capsules", json={"template": "base"})).json()["id"]
            script = "n=0; while :; do n=$((n+1)); echo $n > next; mv next count; sleep 0.05; done"
            begun = await client.post(f"/v1/capsules/{capsule}/exec", json={"cmd": "sh", "args": ["-c", script], "background": True, "tag": "counter"})
            assert begun.status_code == 202
            beside = await asyncio.to_thread(torpor, fresh_home, "run", "--", "echo", "beside")
            assert (beside.returncode, beside.stdout) == (0, b"beside\n")
        assert await asyncio.to_thread(end, process) == 0
    begin = time.monotonic()
    with server(fresh_home) as (process, url):
        print(f"ready again after {time.monotonic() - begin:.2f} s")
        async with httpx.AsyncClient(base_url=url, headers={"X-API-Key": key}, timeout=60) as client:
            assert (await client.get(f"/v1/capsules/{capsule}")).json()["state"] == "running"
            listed = (await client.get(f"/v1/capsules/{capsule}/processes")).json()["processes"]
            assert [each["tag"] for each in listed] == ["counter"]
            before = int((await client.post(f"/v1/capsules/{capsule}/files/read", json={"path": "count"})).text)
            assert before > 1
            assert (await client.delete(f"/v1/capsules/{capsule}")).status_code == 204
            for each in (await client.get("/v1/snapshots", params={"type": "snapshot"})).json():
                assert (await client.delete(f"/v1/snapshots/{each['name']}")).status_code == 204
        assert await asyncio.to_thread(end, process) == 0
    assert left(fresh_home) == {}
