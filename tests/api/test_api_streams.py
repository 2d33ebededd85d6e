"""Commands and terminals over WebSockets, through the real agent and a real server."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
from typing import Any

import pytest
import websockets
from api_world import World

Frames = list[dict[str, Any]]


async def speak(socket: Any, **frame: Any) -> None:
    """A server that has closed already is not spoken to; what it said is still to be read."""
    with contextlib.suppress(websockets.ConnectionClosed):
        await socket.send(json.dumps(frame))


async def to_the_end(socket: Any) -> Frames:
    """All frames until the server closes."""
    frames = []
    try:
        while True:
            frames.append(json.loads(await socket.recv()))
    except websockets.ConnectionClosed:
        return frames


def text(frames: Frames, kind: str = "stdout") -> str:
    return "".join(frame["data"] for frame in frames if frame["type"] == kind)


async def exec_stream(world: World, capsule: str, script: str, **fields: Any) -> tuple[Frames, int]:
    async with world.socket(f"/v1/capsules/{capsule}/exec/stream") as socket:
        await speak(socket, type="start", cmd="/bin/sh", args=["-c", script], **fields)
        frames = await to_the_end(socket)
        return frames, socket.close_code


async def test_a_command_streams_and_ends(world: World, capsule: str) -> None:
    frames, code = await exec_stream(world, capsule, "echo $A; echo err >&2; exit 3", envs={"A": "out"}, tag="mine")
    assert (frames[0]["type"], frames[0]["tag"]) == ("start", "mine")
    assert (text(frames), text(frames, "stderr")) == ("out\n", "err\n")
    assert frames[-1] == {"type": "exit", "exit_code": 3}
    assert code == 1000


async def test_characters_that_pieces_split_stay_whole(world: World, capsule: str) -> None:
    script = r"printf '\303'; sleep 0.1; printf '\274\n'; printf '\377|\342\202'"
    frames, _ = await exec_stream(world, capsule, script)
    assert text(frames) == "ü\n\ufffd|\ufffd"


async def test_base64_is_binary_safe_both_ways(world: World, capsule: str) -> None:
    data = bytes(range(256)) * 1000
    async with world.socket(f"/v1/capsules/{capsule}/exec/stream") as socket:
        await speak(socket, type="start", cmd="cat", stdin=True, encoding="base64")
        await speak(socket, type="stdin", data=base64.b64encode(data).decode())
        await speak(socket, type="stdin_close")
        frames = await to_the_end(socket)
    assert b"".join(base64.b64decode(frame["data"]) for frame in frames if frame["type"] == "stdout") == data
    offsets = [(frame["offset"], len(base64.b64decode(frame["data"]))) for frame in frames if frame["type"] == "stdout"]
    assert all(begin + length == following for (begin, length), (following, _) in itertools.pairwise(offsets))


async def test_stop_kills_even_one_that_does_not_read(world: World, capsule: str) -> None:
    async with world.socket(f"/v1/capsules/{capsule}/exec/stream") as socket:
        await speak(socket, type="start", cmd="sleep", args=["1000"], stdin=True)
        for _ in range(3):
            await speak(socket, type="stdin", data="x" * 500_000)
        await speak(socket, type="stop")
        frames = await to_the_end(socket)
    assert frames[-1] == {"type": "exit", "exit_code": 137, "signal": 9}


async def test_who_leaves_detaches_and_comes_back_where_he_was(world: World, capsule: str) -> None:
    async with world.socket(f"/v1/capsules/{capsule}/exec/stream") as socket:
        await speak(socket, type="start", cmd="/bin/sh", args=["-c", "echo one; read x; echo two $x"], stdin=True, tag="t")
        frames = [json.loads(await socket.recv()) for _ in range(2)]
    assert text(frames) == "one\n"
    async with world.socket(f"/v1/capsules/{capsule}/processes/t/stream?stdout_offset=4") as socket:
        await speak(socket, type="stdin", data="in\n")
        assert text(await to_the_end(socket)) == "two in\n"
    async with world.socket(f"/v1/capsules/{capsule}/processes/{frames[0]['pid']}/stream") as socket:  # it has ended, and is still remembered
        after = await to_the_end(socket)
    assert (text(after), after[-1]) == ("one\ntwo in\n", {"type": "exit", "exit_code": 0})


async def test_several_follow_one_command_and_each_sees_all(world: World, capsule: str) -> None:
    async with world.socket(f"/v1/capsules/{capsule}/exec/stream") as first:
        await speak(first, type="start", cmd="/bin/sh", args=["-c", "echo one; read x; seq 1 20000; echo $x"], stdin=True, tag="many")
        assert [json.loads(await first.recv())["type"] for _ in range(2)] == ["start", "stdout"]
        async with (
            world.socket(f"/v1/capsules/{capsule}/processes/many/stream") as second,
            world.socket(f"/v1/capsules/{capsule}/processes/many/stream") as third,
        ):
            assert json.loads(await second.recv())["type"] == "start"
            assert json.loads(await third.recv())["type"] == "start"
            await speak(second, type="stdin", data="go\n")
            seen = await asyncio.gather(*(to_the_end(socket) for socket in (first, second, third)))
    rest = "".join(f"{n}\n" for n in range(1, 20001)) + "go\n"
    assert [text(frames) for frames in seen] == [rest, "one\n" + rest, "one\n" + rest]
    assert [frames[-1]["type"] for frames in seen] == ["exit"] * 3


async def test_who_follows_a_command_of_a_plain_request_takes_nothing_from_it(world: World, capsule: str) -> None:
    gate = world.home / "gate"
    script = f"echo one; while [ ! -e {gate} ]; do sleep 0.01; done; echo two"
    body = {"cmd": "/bin/sh", "args": ["-c", script], "tag": "both"}
    asking = asyncio.create_task(world.client.post(f"/v1/capsules/{capsule}/exec", json=body, timeout=100))
    while not (await world.client.get(f"/v1/capsules/{capsule}/processes")).json()["processes"]:
        await asyncio.sleep(0.01)
    async with world.socket(f"/v1/capsules/{capsule}/processes/both/stream") as socket:
        assert json.loads(await socket.recv())["type"] == "start"
        gate.touch()
        assert text(await to_the_end(socket)) == "one\ntwo\n"
    assert (await asking).json()["stdout"] == "one\ntwo\n"


async def test_a_slow_reader_holds_the_command_back_and_loses_nothing(world: World, capsule: str) -> None:
    size = 30_000_000
    async with world.socket(f"/v1/capsules/{capsule}/exec/stream", max_queue=2) as socket:
        await speak(socket, type="start", cmd="/bin/sh", args=["-c", f"head -c {size} /dev/zero | tr '\\0' x; touch {world.home}/done"])
        assert json.loads(await socket.recv())["type"] == "start"
        await asyncio.sleep(0.3)  # the time in which an unbounded server would have taken all of it
        assert not (world.home / "done").exists()
        frames = await to_the_end(socket)
    assert len(text(frames)) == size


async def test_the_time_out_says_so(world: World, capsule: str) -> None:
    frames, _ = await exec_stream(world, capsule, "sleep 1000", timeout_sec=1)
    assert frames[-1] == {"type": "exit", "exit_code": 124, "signal": 9, "timed_out": True}


@pytest.mark.parametrize(
    ("frame", "code", "word"),
    [
        ("nonsense", 4400, "invalid_request"),
        ("[]", 4400, "invalid_request"),
        ("{}", 4400, "invalid_request"),
        ('{"type": "start"}', 4400, "invalid_request"),
        ('{"type": "start", "cmd": 1}', 4400, "invalid_request"),
        ('{"type": "start", "cmd": "a\\u0000"}', 4400, "invalid_request"),
        ('{"type": "start", "cmd": "a\\ud800"}', 4400, "invalid_request"),
        ("[" * 100_000, 4400, "invalid_request"),
        (b"\xff\xfe", 4400, "invalid_request"),
        ('{"type": "start", "cmd": "/no/such"}', 4404, "not_found"),
        ('{"type": "start", "cmd": "true", "cwd": "/no/such"}', 4404, "not_found"),
    ],
)
async def test_nonsense_gets_an_error_frame_and_a_close_code(world: World, capsule: str, frame: str | bytes, code: int, word: str) -> None:
    async with world.socket(f"/v1/capsules/{capsule}/exec/stream") as socket:
        await socket.send(frame)
        frames = await to_the_end(socket)
    assert [(each["type"], each["code"]) for each in frames] == [("error", word)]
    assert socket.close_code == code


async def test_nonsense_in_the_middle_ends_the_conversation_and_not_the_command(world: World, capsule: str) -> None:
    async with world.socket(f"/v1/capsules/{capsule}/exec/stream") as socket:
        await speak(socket, type="start", cmd="sleep", args=["1000"], tag="stays")
        assert json.loads(await socket.recv())["type"] == "start"
        await speak(socket, type="signal", signal="loud")
        assert (await to_the_end(socket))[-1]["code"] == "invalid_request"
    assert (await world.client.delete(f"/v1/capsules/{capsule}/processes/stays")).status_code == 204


async def test_text_that_is_no_utf8_closes_the_connection(world: World, capsule: str) -> None:
    async with world.socket(f"/v1/capsules/{capsule}/exec/stream") as socket:
        await socket.send(b"\xff\xff", text=True)
        await to_the_end(socket)
    assert socket.close_code == 1007


async def test_other_teams_unknown_and_paused_ones(world: World, capsule: str) -> None:
    found = {}
    for name, path, key in (
        ("another team's", f"/v1/capsules/{capsule}/exec/stream", "trp_" + "2" * 40),
        ("unknown", f"/v1/capsules/cl-{'0' * 25}/exec/stream", None),
        ("no id", "/v1/capsules/what/exec/stream", None),
        ("no process", f"/v1/capsules/{capsule}/processes/none/stream", None),
        ("no key", f"/v1/capsules/{capsule}/exec/stream", "trp_" + "3" * 40),
    ):
        async with world.socket(path, key=key) as socket:
            await speak(socket, type="start", cmd="true")
            frames = await to_the_end(socket)
            found[name] = (socket.close_code, frames[0]["code"])
    assert found == {
        "another team's": (4404, "not_found"),
        "unknown": (4404, "not_found"),
        "no id": (4400, "invalid_request"),
        "no process": (4404, "not_found"),
        "no key": (4401, "unauthorized"),
    }
    await world.client.post(f"/v1/capsules/{capsule}/pause")
    async with world.socket(f"/v1/capsules/{capsule}/exec/stream") as socket:
        await speak(socket, type="start", cmd="true")
        assert [frame["reason"] for frame in await to_the_end(socket)] == ["not_running"]


# Terminals


async def until(socket: Any, wanted: bytes) -> bytes:
    """Output, however it is framed, until it holds `wanted`."""
    seen = b""
    while wanted not in seen:
        message = await socket.recv()
        if isinstance(message, bytes):
            seen += message
        elif (frame := json.loads(message))["type"] == "output":
            seen += base64.b64decode(frame["data"])
    return seen


@pytest.mark.parametrize("encoding", ["base64", "binary"])
async def test_a_terminal_types_resizes_and_ends(world: World, capsule: str, encoding: str) -> None:
    async def typed(data: bytes) -> None:
        await (socket.send(data) if encoding == "binary" else speak(socket, type="input", data=base64.b64encode(data).decode()))

    async with world.socket(f"/v1/capsules/{capsule}/pty") as socket:
        await speak(socket, type="start", cmd="/bin/sh", cols=100, rows=30, envs={"PS1": "> "}, cwd="/", encoding=encoding)
        started = json.loads(await socket.recv())
        assert started["type"] == "started"
        assert started["tag"].startswith("pty-")
        await typed(b"stty size; pwd\n")
        assert b"30 100\r\n/\r\n" in await until(socket, b"/\r\n")
        await speak(socket, type="resize", cols=120, rows=40)
        await typed(b"stty size\n")
        await until(socket, b"40 120")
        await typed(b"exit 7\n")
        assert (await to_the_end_mixed(socket))[-1] == {"type": "exit", "exit_code": 7}
    assert socket.close_code == 1000


async def to_the_end_mixed(socket: Any) -> Frames:
    frames = []
    try:
        while True:
            message = await socket.recv()
            if isinstance(message, str):
                frames.append(json.loads(message))
    except websockets.ConnectionClosed:
        return frames


async def test_clients_that_do_not_say_are_told_apart(world: World, capsule: str) -> None:
    """One that answers the ping gets binary frames; one that does not, text."""
    for answers in (True, False):
        async with world.socket(f"/v1/capsules/{capsule}/pty") as socket:
            await speak(socket, type="start", cmd="echo", args=["hello"])
            assert [json.loads(await socket.recv())["type"] for _ in range(2)] == ["started", "ping"]
            if answers:
                await speak(socket, type="pong")
            message = await socket.recv()
            assert isinstance(message, bytes) == answers
            data = message if answers else base64.b64decode(json.loads(message)["data"])
            assert data == b"hello\r\n"


async def test_a_terminal_is_found_again_by_its_tag(world: World, capsule: str) -> None:
    async with world.socket(f"/v1/capsules/{capsule}/pty") as socket:
        await speak(socket, type="start", cmd="/bin/sh", envs={"PS1": "> "}, encoding="binary")
        tag = json.loads(await socket.recv())["tag"]
        await socket.send(b"X=kept; echo fir''st\n")
        await until(socket, b"first\r\n")
    async with world.socket(f"/v1/capsules/{capsule}/pty") as socket, world.socket(f"/v1/capsules/{capsule}/pty") as beside:
        for each in (socket, beside):
            await speak(each, type="connect", tag=tag, encoding="binary")
            assert json.loads(await each.recv())["tag"] == tag
        await until(socket, b"first\r\n")  # replayed
        await socket.send(b"echo $X-on\n")
        await until(socket, b"kept-on")
        await until(beside, b"kept-on")
        await speak(socket, type="kill")
        assert (await to_the_end_mixed(socket))[-1]["exit_code"] == 137


async def test_terminal_nonsense(world: World, capsule: str) -> None:
    frames: dict[str, int] = {
        '{"type": "input", "data": ""}': 4400,
        '{"type": "start", "cols": 0}': 4400,
        '{"type": "connect"}': 4400,
        '{"type": "connect", "tag": "none"}': 4404,
        '{"type": "start", "cmd": "/no/such"}': 4404,
    }
    for frame, code in frames.items():
        async with world.socket(f"/v1/capsules/{capsule}/pty") as socket:
            await socket.send(frame)
            (error,) = await to_the_end(socket)
            assert (error["type"], error["fatal"], socket.close_code) == ("error", True, code), frame
    async with world.socket(f"/v1/capsules/{capsule}/pty") as socket:
        await speak(socket, type="start", cmd="cat", encoding="base64")
        await speak(socket, type="input", data="no base64!")
        assert (await to_the_end(socket))[-1]["code"] == "invalid_request"
    for info in (await world.client.get(f"/v1/capsules/{capsule}/processes")).json()["processes"]:
        assert (await world.client.delete(f"/v1/capsules/{capsule}/processes/{info['pid']}")).status_code == 204


# Who


async def test_a_socket_without_headers_says_who_it_is_first(world: World, capsule: str) -> None:
    async with world.socket(f"/v1/capsules/{capsule}/exec/stream", key="") as socket:
        await speak(socket, type="auth", token=world.key)
        await speak(socket, type="start", cmd="echo", args=["in"])
        assert text(await to_the_end(socket)) == "in\n"
    world.access.tickets["once"] = world.access.keys[world.key]
    async with world.socket(f"/v1/capsules/{capsule}/exec/stream?ticket=once", key="") as socket:
        await speak(socket, type="start", cmd="echo", args=["in"])
        assert text(await to_the_end(socket)) == "in\n"
    for first in ('{"type": "auth", "token": "wrong"}', '{"type": "auth"}', '{"type": "start", "cmd": "id"}', "x"):
        async with world.socket(f"/v1/capsules/{capsule}/exec/stream?ticket=once", key="") as socket:
            await socket.send(first)
            frames = await to_the_end(socket)
            assert [(each["type"], each["data"]) for each in frames] == [("error", "authentication failed")]
            assert socket.close_code == 4401
