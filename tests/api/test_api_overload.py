"""Overload is honest (T11): what does not fit is refused at once, with a time to come back; what was admitted succeeds. And a create whose answer was lost is
not made twice (T12)."""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import replace
from typing import Any

import httpx
from people_world import login
from plane_world import Plane

from patience import PATIENCE
from torpor.testing.fake_hosts import Fault, Trouble

WANTED = 60
ROOM = 7


async def ask(plane: Plane, **fields: Any) -> tuple[httpx.Response, float]:
    begin = time.monotonic()
    answer = await plane.client.post("/v1/capsules", json={"template": "base", "memory_mb": 512} | fields, headers={"Prefer": f"wait={PATIENCE:.0f}"})
    return answer, time.monotonic() - begin


async def test_a_full_host_says_so_while_the_admitted_are_still_being_made(plane: Plane) -> None:
    """Nobody waits for the work of others: the host makes nothing until all refusals have arrived."""
    plane.host.space = replace(plane.host.space, memory_mib=ROOM * 512 // 3 + 1)  # promised three times
    plane.host.hold("create")
    asking = [asyncio.create_task(ask(plane)) for _ in range(WANTED)]
    refused = []
    async with asyncio.timeout(PATIENCE):
        for done in asyncio.as_completed(asking):
            refused.append(await done)
            if len(refused) == WANTED - ROOM:
                break
    for answer, _ in refused:
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_hosts_available"), answer.text
        assert 1 <= int(answer.headers["retry-after"]) <= 60
    print(f"{len(refused)} refusals at once, the last after {max(seconds for _, seconds in refused):.3f} s")
    plane.host.let_go("create")
    answers = [answer for answer, _ in await asyncio.gather(*asking)]
    admitted = [answer.json() for answer in answers if answer.status_code == 201]
    assert len(admitted) == ROOM
    assert {each["state"] for each in admitted} == {"running"}
    assert (await ask(plane))[0].status_code == 503
    assert (await plane.client.delete(f"/v1/capsules/{admitted[0]['id']}")).status_code == 204
    assert (await ask(plane))[0].status_code == 201


async def test_a_host_below_its_mark_takes_nothing_new_and_keeps_what_it_has(plane: Plane) -> None:
    capsule = await plane.capsule()
    plane.host.space = replace(plane.host.space, accepts=False, problem="7 MiB are free on the disk of the home.")
    answer, _ = await ask(plane)
    assert (answer.status_code, "7 MiB" in answer.json()["error"]["message"]) == (503, True)
    assert int(answer.headers["retry-after"]) >= 1
    assert (await plane.client.post(f"/v1/capsules/{capsule}/pause")).status_code == 200
    assert (await plane.client.post(f"/v1/capsules/{capsule}/resume")).status_code == 503
    assert (await plane.client.get(f"/v1/capsules/{capsule}")).json()["state"] == "paused"
    plane.host.space = replace(plane.host.space, accepts=True, problem="")
    assert (await plane.client.post(f"/v1/capsules/{capsule}/resume")).status_code == 200


async def test_a_teams_own_limit_is_a_429_and_leaves_the_others_alone(plane: Plane) -> None:
    owner = await login(plane)
    assert (await owner.client.put(f"/v1/admin/teams/{owner.team_id}/limits", json={"sandboxes": 2})).status_code == 204
    answers = [answer for answer, _ in await asyncio.gather(*(ask(plane) for _ in range(10)))]
    assert sorted(answer.status_code for answer in answers) == [201] * 2 + [429] * 8
    for answer in answers:
        if answer.status_code == 429:
            assert answer.json()["error"]["code"] == "quota_exceeded"
            assert int(answer.headers["retry-after"]) >= 1
    assert (await plane.other.post("/v1/capsules", json={"template": "base"})).status_code == 201


async def lost(plane: Plane, key: str, body: bytes, *, seconds: float) -> None:
    """Puts the request and goes away without reading its answer."""
    _, writer = await asyncio.open_connection("127.0.0.1", int(plane.url.rsplit(":", 1)[1]))
    head = f"POST /v1/capsules HTTP/1.1\r\nHost: x\r\nX-API-Key: {plane.key}\r\nIdempotency-Key: {key}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    await writer.drain()
    await asyncio.wait([asyncio.create_task(asyncio.Event().wait())], timeout=seconds)  # the moment at which it leaves
    writer.transport.abort()


async def test_lost_answers_make_one_sandbox_a_key(plane: Plane) -> None:
    """Many times the same request, at once and one after another, most of whose answers nobody reads; the host's own replies get lost as well."""
    body = b'{"template":"base"}'
    for number in range(6):
        key = secrets.token_hex(8)
        plane.host.faults.append(Fault("create", Trouble.LOST_REPLY))
        await asyncio.gather(*(lost(plane, key, body, seconds=number * 0.004 + each * 0.002) for each in range(5)))
        how: dict[str, Any] = {"content": body, "headers": {"Idempotency-Key": key, "Content-Type": "application/json", "Prefer": "wait=100"}}
        answers = await asyncio.gather(*(plane.client.post("/v1/capsules", **how) for _ in range(3)))
        assert {answer.status_code for answer in answers} == {201}
        assert len({answer.json()["id"] for answer in answers}) == 1
    assert len((await plane.client.get("/v1/capsules")).json()) == 6
    assert len(plane.host.statuses()) == 6
