"""Commands over HTTP, through the real agent."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import httpx
import pytest
from api_world import World

from patience import gone


async def sh(world: World, capsule: str, script: str, **fields: Any) -> httpx.Response:
    return await world.client.post(f"/v1/capsules/{capsule}/exec", json={"cmd": "/bin/sh", "args": ["-c", script], **fields}, timeout=100)


async def test_a_command_answers_with_its_output_and_code(world: World, capsule: str) -> None:
    answer = await sh(world, capsule, "echo out; echo err >&2; exit 7")
    assert answer.status_code == 200
    tree = answer.json()
    assert (tree["stdout"], tree["stderr"], tree["exit_code"], tree["encoding"], tree["truncated"]) == ("out\n", "err\n", 7, "utf-8", False)
    assert (tree["sandbox_id"], tree["cmd"]) == (capsule, "/bin/sh")


async def test_variables_folder_user_and_input_reach_it(world: World, capsule: str) -> None:
    answer = await sh(world, capsule, "echo $A; pwd; id -un; cat", envs={"A": "ü b"}, cwd="~", user="root", stdin="typed")
    assert answer.json()["stdout"] == f"ü b\n{world.home}\nroot\ntyped"
    answer = await sh(world, capsule, "cat", stdin=base64.b64encode(b"\xff\0").decode(), stdin_encoding="base64")
    assert (answer.json()["encoding"], base64.b64decode(answer.json()["stdout"])) == ("base64", b"\xff\0")


async def test_one_stream_that_is_no_text_makes_both_base64(world: World, capsule: str) -> None:
    tree = (await sh(world, capsule, r"printf '\377'; echo err >&2")).json()
    assert (tree["encoding"], base64.b64decode(tree["stdout"]), base64.b64decode(tree["stderr"])) == ("base64", b"\xff", b"err\n")


async def test_output_beyond_the_bound_is_counted_and_said(world: World, capsule: str) -> None:
    tree = (await sh(world, capsule, "head -c 9000000 /dev/zero | tr '\\0' x")).json()
    assert (tree["truncated"], tree["stdout_bytes"], len(tree["stdout"])) == (True, 9000000, 8 << 20)


async def test_the_time_out_kills_the_tree_and_shows_what_was_said(world: World, capsule: str) -> None:
    for seconds in (1, 10, 100):  # a busy machine may not even have begun the command after the first
        answer = await sh(world, capsule, "sleep 1000 & echo $!; wait", timeout_sec=seconds)
        assert answer.status_code == 502
        tree = answer.json()
        assert (tree["error"]["code"], tree["error"]["reason"], tree["exit_code"]) == ("agent_error", "timed_out", 124)
        if tree["stdout"]:
            break
    await gone(int(tree["stdout"]))  # the "guest" is this machine


async def test_a_caller_who_leaves_ends_the_command(world: World, capsule: str) -> None:
    begun = world.home / "begun"
    running = asyncio.create_task(sh(world, capsule, f"touch {begun}; exec sleep 1000", tag="left"))
    while not begun.exists():
        await asyncio.sleep(0.01)
    running.cancel()
    while (await world.client.get(f"/v1/capsules/{capsule}/processes")).json()["processes"]:
        await asyncio.sleep(0.01)


async def test_a_background_command_is_listed_signalled_and_followed_later(world: World, capsule: str) -> None:
    ready = world.home / "ready"
    answer = await sh(world, capsule, f"trap 'echo bye; exit 3' TERM; echo up; touch {ready}; while :; do sleep 0.01; done", background=True)
    assert answer.status_code == 202
    while not ready.exists():
        await asyncio.sleep(0.01)
    started = answer.json()
    assert started["tag"].startswith("proc-")
    listed = (await world.client.get(f"/v1/capsules/{capsule}/processes")).json()["processes"]
    assert [(each["pid"], each["tag"], each["cmd"]) for each in listed] == [(started["pid"], started["tag"], "/bin/sh")]
    assert (await world.client.delete(f"/v1/capsules/{capsule}/processes/{started['tag']}", params={"signal": "SIGTERM"})).status_code == 204
    while (await world.client.get(f"/v1/capsules/{capsule}/processes")).json()["processes"]:
        await asyncio.sleep(0.01)
    ended = (await world.client.get(f"/v1/capsules/{capsule}/processes", params={"ended": True})).json()["processes"]
    assert [each["exit_code"] for each in ended] == [3]
    assert (await world.client.delete(f"/v1/capsules/{capsule}/processes/{started['pid']}")).status_code == 404


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 400, "invalid_request"),
        ({"cmd": ""}, 400, "invalid_request"),
        ({"cmd": 3}, 400, "invalid_request"),
        ({"cmd": "sh", "args": "x"}, 400, "invalid_request"),
        ({"cmd": "a\0b"}, 400, "invalid_request"),
        ({"cmd": "/no/such/program"}, 404, "not_found"),
        ({"cmd": "true", "cwd": "/no/such/folder"}, 404, "not_found"),
        ({"cmd": "true", "user": "nobody-of-that-name"}, 400, "invalid_request"),
        ({"cmd": "true", "envs": {"A=B": "c"}}, 400, "invalid_request"),
        ({"cmd": "true", "stdin": "é", "stdin_encoding": "base64"}, 400, "invalid_request"),
        ({"cmd": "/etc/passwd"}, 403, "forbidden"),
    ],
)
async def test_what_cannot_run_says_why(world: World, capsule: str, body: dict[str, Any], status: int, code: str) -> None:
    answer = await world.client.post(f"/v1/capsules/{capsule}/exec", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


async def test_only_a_running_sandbox_of_ones_own_takes_commands(world: World, capsule: str) -> None:
    assert (await world.other.post(f"/v1/capsules/{capsule}/exec", json={"cmd": "true"})).status_code == 404
    assert (await world.client.post("/v1/capsules/cl-x/exec", json={"cmd": "true"})).status_code == 400
    await world.client.post(f"/v1/capsules/{capsule}/pause")
    answer = await world.client.post(f"/v1/capsules/{capsule}/exec", json={"cmd": "true"})
    assert (answer.status_code, answer.json()["error"]["code"], answer.json()["error"]["reason"]) == (409, "invalid_state", "not_running")


async def test_a_tag_is_one_running_commands(world: World, capsule: str) -> None:
    """Asked for by many at once, one has it; when its command has ended it is free."""
    body = {"cmd": "sleep", "args": ["1000"], "background": True, "tag": "mine"}
    answers = await asyncio.gather(*(world.client.post(f"/v1/capsules/{capsule}/exec", json=body) for _ in range(6)))
    assert sorted(answer.status_code for answer in answers) == [202] + [409] * 5
    assert {answer.json()["error"]["code"] for answer in answers if answer.status_code == 409} == {"conflict"}
    async with world.socket(f"/v1/capsules/{capsule}/exec/stream") as socket:
        await socket.send(json.dumps({"type": "start", "cmd": "true", "tag": "mine"}))
        assert json.loads(await socket.recv())["code"] == "conflict"
    async with world.socket(f"/v1/capsules/{capsule}/pty") as socket:
        await socket.send(json.dumps({"type": "start", "cmd": "true", "tag": "mine"}))
        assert json.loads(await socket.recv())["code"] == "conflict"
    assert (await world.client.delete(f"/v1/capsules/{capsule}/processes/mine")).status_code == 204
    while (await world.client.get(f"/v1/capsules/{capsule}/processes")).json()["processes"]:
        await asyncio.sleep(0.01)
    assert (await world.client.post(f"/v1/capsules/{capsule}/exec", json=body | {"cmd": "true", "args": []})).status_code == 202
