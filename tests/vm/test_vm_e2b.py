"""E2B's control plane on real microVMs: what its users find in a sandbox, a pause that keeps the disk alone, an egress that holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from serve_world import serving

pytestmark = pytest.mark.vm
WHO = "cat /run/e2b/.E2B_SANDBOX /run/e2b/.E2B_SANDBOX_ID; echo; echo $E2B_SANDBOX $E2B_SANDBOX_ID $E2B_TEMPLATE_ID"


async def said(client: httpx.AsyncClient, sandbox_id: str, script: str) -> str:
    answer = await client.post(f"/v1/sandboxes/{sandbox_id}/exec", json={"cmd": "sh", "args": ["-c", script]})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["stdout"])


def expected(one: dict[str, Any]) -> str:
    return f"true{one['sandboxID']}\ntrue {one['sandboxID']} {one['templateID']}\n"


async def test_e2bs_ways_with_real_microvms(fresh_home: Path) -> None:
    async with serving(fresh_home) as server:
        key = (fresh_home / "first-e2b-key").read_text().strip()
        async with httpx.AsyncClient(base_url=server.url, headers={"X-API-Key": key}, timeout=120) as client:
            made = (await client.post("/v2/sandboxes", json={"templateID": "base", "envVars": {"A": "b"}})).json()
            path = f"/sandboxes/{made['sandboxID']}"
            assert await said(client, made["sandboxID"], WHO) == expected(made)
            (fork,) = (await client.post(f"{path}/fork", json={})).json()
            assert await said(client, fork["sandbox"]["sandboxID"], WHO) == expected(fork["sandbox"])
            assert (await client.delete(f"/sandboxes/{fork['sandbox']['sandboxID']}")).status_code == 204
            boot = await said(client, made["sandboxID"], "cat /proc/sys/kernel/random/boot_id; echo kept > ~/kept; echo lost > /dev/shm/lost")
            assert (await client.post(f"{path}/pause", json={})).status_code == 204
            assert (await client.post(f"/v2{path}/connect", json={})).status_code == 201
            assert await said(client, made["sandboxID"], "cat /proc/sys/kernel/random/boot_id /dev/shm/lost") == f"{boot}lost\n"
            assert (await client.post(f"{path}/pause", json={"memory": False})).status_code == 204
            assert (await client.post(f"/v2{path}/connect", json={})).status_code == 201
            later = await said(client, made["sandboxID"], "cat /proc/sys/kernel/random/boot_id ~/kept; ls /dev/shm/lost 2>&1 | grep -c No")
            assert later.splitlines()[1:] == ["kept", "1"]
            assert later.splitlines()[0] != boot.strip()
            assert await said(client, made["sandboxID"], WHO) == expected(made)
            assert (await client.delete(path)).status_code == 204
        await server.stop("sigterm")
