"""The server is killed and started again, ten times, under load, in every way that operators and service managers have: no sandbox is lost, no byte that was
acknowledged, and who follows a command goes on as if nothing had been."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest
from cli_world import left
from serve_world import Client, Follower, Progress, Server, append_lines, background, bring, client_of, come_and_go, serving, sleep_and_wake, write_files

pytestmark = [pytest.mark.vm, pytest.mark.root]

WAYS = ("sigterm", "sigkill", "control-group", "mixed")
COUNTING = "n=0; while [ ! -e /root/enough ]; do n=$((n+1)); echo line $n; sleep 0.02; done; echo end $n"


async def counting(client: Client, capsule: str, tag: str) -> None:
    how = {"cmd": "sh", "args": ["-c", COUNTING], "background": True, "tag": tag}
    answer = await client.ask("POST", f"/v1/capsules/{capsule}/exec", json=how)
    assert answer.status_code == 202, answer.text


async def check_files(client: Client, capsule: str, told: dict[str, bytes]) -> None:
    listed = await client.run(capsule, "cd /root && sha256sum file*")
    found = {f"/root/{name}": digest for digest, name in (line.split() for line in listed.splitlines())}
    assert {path: found.get(path) for path in told} == {path: hashlib.sha256(body).hexdigest() for path, body in told.items()}


async def check_lines(client: Client, capsule: str, name: str, told: list[int]) -> None:
    """Each that was answered once, in order; one whose answer was lost once or not at all."""
    lines = [int(line) for line in (await client.run(capsule, f"cat /root/{name}")).split()]
    assert lines == sorted(set(lines))
    assert set(told) <= set(lines)


def check_count(said: bytes) -> None:
    lines = said.decode().splitlines()
    count = len(lines) - 1
    assert lines == [f"line {number}" for number in range(1, count + 1)] + [f"end {count}"]


@pytest.mark.timeout(600)
async def test_ten_restarts_under_load_lose_nothing(fresh_home: Path) -> None:
    async with serving(fresh_home) as server, client_of(server) as client:
        worked, asleep = await asyncio.gather(client.create(), client.create())
        await client.run(asleep, "echo kept > /dev/shm/memory")
        files: dict[str, bytes] = {}
        lines: list[int] = []
        alive: set[str] = set()
        gone: set[str] = set()
        progress = Progress()
        followers = [Follower(server, worked, tag) for tag in ("first", "second")]
        for follower in followers:
            await counting(client, worked, follower.tag)
        following = [asyncio.create_task(follower.follow(progress)) for follower in followers]
        works = [
            asyncio.create_task(write_files(client, worked, "file-a", files, progress)),
            asyncio.create_task(write_files(client, worked, "file-b", files, progress)),
            asyncio.create_task(append_lines(client, worked, "lines", lines, progress)),
            asyncio.create_task(sleep_and_wake(client, asleep, "asleep", progress)),
            asyncio.create_task(come_and_go(client, "coming", alive, gone, progress)),
        ]
        with background(*works, *following) as check:
            for number in range(10):
                await _progress(progress, works + following)
                check()
                await server.restart(WAYS[number % len(WAYS)])
            await _progress(progress, works + following)
            await _stop(works)
            await client.run(worked, "touch /root/enough")
            await asyncio.gather(*following)
        for follower in followers:
            assert follower.exit_code == 0
            assert follower.breaks >= 10
            check_count(bytes(follower.said))
        await check_files(client, worked, files)
        await check_lines(client, worked, "lines", lines)
        await _check_sandboxes(client, {worked, asleep}, alive, gone)
        print(f"{len(files)} files, {len(lines)} lines, {len(gone)} sandboxes came and went")
        await _empty(client)
        await server.stop("sigterm")
    assert left(fresh_home) == {}


async def _progress(progress: Progress, works: list[asyncio.Task[None]]) -> None:
    """All that work have been told that something is done since now, unless one of them fails first."""
    waiting = asyncio.create_task(progress.each_did(2, ["file-a", "file-b", "lines", "first", "second"]))
    await asyncio.wait({waiting, *works}, return_when=asyncio.FIRST_COMPLETED)
    for work in works:
        if work.done():
            waiting.cancel()
            work.result()
    await waiting


async def _stop(works: list[asyncio.Task[None]]) -> None:
    """Lets them go, in the middle of what they do."""
    for work in works:
        work.cancel()
    for outcome in await asyncio.gather(*works, return_exceptions=True):
        assert isinstance(outcome, asyncio.CancelledError), outcome


async def _check_sandboxes(client: Client, kept: set[str], alive: set[str], gone: set[str]) -> None:
    listed = {each["id"]: each for each in (await client.surely("GET", "/v1/capsules")).json()}
    assert kept | alive <= listed.keys()
    assert not gone & {name for name, each in listed.items() if each["state"] != "stopped"}
    for capsule in kept | alive:
        await bring(client, capsule, "resume", "running")
        assert await client.run(capsule, "echo here") == "here\n"


async def _empty(client: Client) -> None:
    for each in (await client.surely("GET", "/v1/capsules")).json():
        assert (await client.surely("DELETE", f"/v1/capsules/{each['id']}", headers={"Prefer": "wait=120"})).status_code == 204


async def test_a_server_that_is_stopped_as_systemd_does_leaves_its_keeper_alone(fresh_home: Path) -> None:
    """KillMode=control-group reaches everything in the unit's cgroup, so nothing that must live on may be in it."""
    async with serving(fresh_home) as server, client_of(server) as client:
        capsule = await client.create()
        await client.run(capsule, "echo kept > /dev/shm/memory")
        assert _only(server)
        await server.restart("control-group")
        assert await client.run(capsule, "cat /dev/shm/memory") == "kept\n"
        await _empty(client)
        await server.stop("sigterm")
    assert left(fresh_home) == {}


def _only(server: Server) -> bool:
    assert server.process is not None
    return server.unit.pids() == [server.process.pid]
