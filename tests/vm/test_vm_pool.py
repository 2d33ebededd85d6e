"""`torpor serve` with its pool, as it is by default: sandboxes made ahead become somebody's, also while the server is killed and started again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from cli_world import left, vmms
from serve_world import Client, client_of, serving

pytestmark = pytest.mark.vm
WHO = "hostname; cat /etc/machine-id; python3 -c 'import uuid; print(uuid.uuid4())'"


async def made(client: Client, count: int) -> dict[str, list[str]]:
    """What each of so many, created at once, says of itself."""
    kind = {"template": "base", "memory_mb": 512, "disk_size_mb": 4096}
    capsules = await asyncio.gather(*(client.create(**kind) for _ in range(count)))
    return {capsule: (await client.run(capsule, WHO)).split("\n") for capsule in capsules}


async def test_pooled_sandboxes_are_their_owners_and_nobody_elses(fresh_home: Path) -> None:
    async with serving(fresh_home, TORPOR_POOL_SIZE="2", TORPOR_NETWORK_POOL="2") as server, client_of(server) as client:
        said: dict[str, list[str]] = {}
        for how in ("sigkill", "sigterm"):
            said |= await made(client, 4)
            said |= await made(client, 1)
            await server.restart(how)  # whatever is being made ahead at this moment
            for capsule, before in said.items():
                after = (await client.run(capsule, WHO)).split("\n")
                assert after[:2] == before[:2]
        for number in range(3):
            assert len({one[number] for one in said.values()}) == len(said), "each has a name, a machine id and randomness of its own"
        listed = (await client.surely("GET", "/v1/capsules")).json()
        assert {one["id"] for one in listed} == set(said), "what is pooled is nobody's"
        for capsule in said:
            assert (await client.surely("DELETE", f"/v1/capsules/{capsule}", headers={"Prefer": "wait=120"})).status_code == 204
        await server.stop("sigterm")
        assert vmms(fresh_home) == [], "what was made ahead ends with its server"
    assert left(fresh_home) == {}
