"""The life of sandboxes through the client, on both of its faces."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from client_world import open_face

from torpor.client import Conflict, InvalidRequest, InvalidState, NotFound, Unauthorized


async def test_a_sandbox_from_create_to_kill(client: Any) -> None:
    made = await client.sandboxes.create("base", name="web", vcpus=2, memory_mb=1024, metadata={"team": "blue"}, timeout_sec=60, envs={"A": "1"})
    assert (made.state, made.name, made.details.vcpus, made.details.memory_mb, made.details.timeout_sec) == ("running", "web", 2, 1024, 60)
    assert made.details.metadata == {"name": "web", "team": "blue"}
    assert (await made.pause()).state == "paused"
    assert (await made.pause()).state == "paused", "what is so already is no error"
    with pytest.raises(InvalidState):
        await made.ping()
    assert (await made.resume()).state == "running"
    await made.ping()
    assert (await made.set_timeouts(idle=5, lifetime=3600)).expires_at > datetime.now(UTC) + timedelta(minutes=50)
    found = await client.sandboxes.get(made.id)
    assert (found.id, found.details.timeout_sec) == (made.id, 5)
    await made.kill()
    await made.kill()
    assert ((await made.refresh()).state, made.details.end_reason) == ("stopped", "user")
    with pytest.raises(InvalidState) as refused:
        await made.resume()
    assert refused.value.status == 409 and refused.value.request_id


async def test_as_a_context_it_is_killed(client: Any) -> None:
    async with await client.sandboxes.create("minimal") as sandbox:
        assert sandbox.state == "running"
    assert (await client.sandboxes.get(sandbox.id)).state in ("stopping", "stopped")
    await sandbox.wait_for("stopped")


async def test_forks_snapshots_and_the_way_back(client: Any, sandbox: Any) -> None:
    template = await sandbox.snapshot("kept")
    assert (template.name, template.type, template.platform) == ("kept", "snapshot", False)
    with pytest.raises(Conflict):
        await sandbox.snapshot("kept")
    assert (await sandbox.snapshot("kept", overwrite=True)).id != template.id
    assert (await sandbox.rollback("kept")).state == "running"
    copies = await sandbox.fork(3)
    assert len({copy.id for copy in [sandbox, *copies]}) == 4
    assert {copy.state for copy in copies} == {"running"}
    assert [each.name async for each in client.templates.list(type="snapshot")] == ["kept"]
    assert {each.name async for each in client.templates.list(page_size=1)} == {"kept", "base", "minimal"}
    for each in [sandbox, *copies]:
        await each.kill()
    await client.templates.delete("kept")
    with pytest.raises(NotFound):
        await client.templates.get("kept")


async def test_lists_come_in_pages_and_are_filtered(client: Any) -> None:
    made = [(await client.sandboxes.create("base", metadata={"n": str(number % 2)})).id for number in range(5)]
    assert [each.id async for each in client.sandboxes.list(page_size=2)] == made[::-1]
    assert [each.id async for each in client.sandboxes.list(labels={"n": "1"})] == [made[3], made[1]]
    await (await client.sandboxes.get(made[0])).kill()
    assert [each.id async for each in client.sandboxes.list(states=["stopped"])] == [made[0]]


async def test_what_is_refused_has_its_type(client: Any, sandbox: Any) -> None:
    with pytest.raises(NotFound):
        await client.sandboxes.create("no-such-template")
    with pytest.raises(InvalidRequest):
        await client.sandboxes.create("base", vcpus=77)
    with pytest.raises(NotFound):
        await client.sandboxes.get("../../v1/api-keys")
    with pytest.raises(NotFound) as missing:
        await client.sandboxes.get("cl-0000000000000000000000000")
    assert (missing.value.status, missing.value.code) == (404, "not_found")


async def test_keys_audit_events_and_figures(client: Any, sandbox: Any, server: Any) -> None:
    key = await client.keys.create("ci", scopes=["sandboxes:read"], expires_at=datetime.now(UTC) + timedelta(days=1))
    assert key.key.startswith("trp_") and key.scopes == ("sandboxes:read",)
    everything = [each.id async for each in client.keys.list()]
    assert key.id in everything and len(everything) > 1
    assert [each.id async for each in client.keys.list(page_size=1)] == everything
    await client.keys.revoke(key.id)
    async with open_face("async", server.url, key.key) as revoked:
        with pytest.raises(Unauthorized):
            [each async for each in revoked.keys.list()]
    entries = [each async for each in client.audit.list(page_size=1)]
    assert {"create", "revoke"} <= {each.action for each in entries if each.resource_type == "api_key"}
    names = [each.name for each in await sandbox.events()]
    assert {"capsule.starting", "capsule.created"} <= set(names)
    assert await sandbox.metrics("5m") is not None
    assert isinstance(await client.sandboxes.usage(), list)
