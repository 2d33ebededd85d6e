"""process.Process of the E2B dialect on the wire: what clients of the protocol rely on, in both codecs."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
from typing import Any

import httpx
import pytest
from envd_world import EnvdWorld, ended, enveloped, output, written

CODECS = pytest.mark.parametrize("codec", ["json", "proto"])
Json = dict[str, Any]


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def started(messages: Any) -> int:
    first = await anext(messages)
    return int(first["event"]["start"]["pid"])


async def rest(messages: Any) -> list[Json]:
    return [message async for message in messages]


@CODECS
async def test_a_command_tells_its_pid_its_output_and_its_end(envd: EnvdWorld, codec: str) -> None:
    messages = await envd.run("echo out; echo err >&2; echo $$; exit 3", codec=codec)
    assert messages[0]["event"]["start"]["pid"] == int(output(messages).split()[1])
    assert (output(messages).split()[0], output(messages, "stderr")) == (b"out", b"err\n")
    assert ended(messages) == {"exitCode": 3, "exited": True, "status": "exit status 3", "error": "exit status 3"}


@CODECS
async def test_bytes_arrive_as_they_are(envd: EnvdWorld, codec: str) -> None:
    messages = await envd.run("head -c 300000 /dev/zero | tr '\\0' '\\342'; printf '\\342'", codec=codec)
    assert output(messages) == b"\xe2" * 300001
    sizes = [len(base64.b64decode(m["event"]["data"]["stdout"])) for m in messages if "data" in m.get("event", {})]
    assert max(sizes) <= 32768
    assert ended(messages)["status"] == "exit status 0"


async def test_large_messages_are_compressed_for_who_asks(envd: EnvdWorld) -> None:
    messages = await envd.run("head -c 100000 /dev/zero", headers={"Connect_Accept_Encoding": "gzip"})
    assert output(messages) == bytes(100000)


async def test_environment_directory_and_user(envd: EnvdWorld) -> None:
    messages = await envd.run("echo $A $E2B_SANDBOX $E2B_SANDBOX_ID $HOME; pwd", process={"envs": {"A": "1"}})
    assert output(messages).decode().split() == ["1", "true", envd.sandbox, str(envd.home), str(envd.home)]
    (envd.home / "inner").mkdir()
    for given, there in (("inner", f"{envd.home}/inner"), ("~/inner/..", str(envd.home)), ("/tmp", "/tmp"), ("~", str(envd.home))):
        assert output(await envd.run("pwd", process={"cwd": given})).decode().strip() == there
    messages = await envd.run("id -un; echo $HOME $USER $LOGNAME", user="nobody")
    assert output(messages).decode().split() == ["nobody", "/nonexistent", "nobody", "nobody"]


@pytest.mark.parametrize(
    ("message", "user", "error"),
    [
        ({"process": {"cmd": "/bin/true", "cwd": "/no/such"}}, "", ("invalid_argument", "cwd '/no/such' does not exist")),
        ({"process": {"cmd": "/no/such"}}, "", ("invalid_argument", "the command could not be started: No such file or directory: /no/such")),
        ({"process": {"cmd": "/bin/true"}}, "root123", ("unauthenticated", "invalid username: 'root123'")),
        ({"process": {}}, "", ("invalid_argument", "a command needs a name")),
        ({"process": {"cmd": "a\0b"}}, "", ("invalid_argument", "argv must be one or more strings without NUL")),
        ({"process": {"cmd": "/bin/true", "cwd": "~other"}}, "", ("invalid_argument", "only the user's own home can be written as ~")),
    ],
)
async def test_what_cannot_be_started_is_told_in_the_streams_end(envd: EnvdWorld, message: Json, user: str, error: tuple[str, str]) -> None:
    async with envd.stream("process.Process/Start", message, user=user) as messages:
        assert await rest(messages) == [{"end": {"error": {"code": error[0], "message": error[1]}}}]


async def test_a_signal_that_ended_it_has_its_name(envd: EnvdWorld) -> None:
    assert ended(await envd.run("kill -9 $$")) == {"exitCode": -1, "status": "signal: killed", "error": "signal: killed"}
    assert ended(await envd.run("kill -TERM $$"))["status"] == "signal: terminated"


@CODECS
async def test_running_commands_are_listed_with_what_they_were_given(envd: EnvdWorld, codec: str) -> None:
    request = {"process": {"cmd": "sleep", "args": ["1000"], "envs": {"K": "v"}, "cwd": "/tmp"}, "tag": "mine", "stdin": False}
    async with envd.stream("process.Process/Start", request, codec=codec) as messages:
        pid = await started(messages)
        found = (await envd.asked("process.Process/List", codec=codec))["processes"]
        config = found[0]["config"]
        assert (len(found), found[0]["pid"], found[0]["tag"], config["cmd"], config["args"], config["cwd"]) == (1, pid, "mine", "sleep", ["1000"], "/tmp")
        assert config["envs"]["K"] == "v"
        os.kill(pid, 0)
        await envd.asked("process.Process/SendSignal", {"process": {"tag": "mine"}, "signal": "SIGNAL_SIGKILL"}, codec=codec)
        assert ended(await rest(messages))["status"] == "signal: killed"
    assert await envd.asked("process.Process/List", codec=codec) == {}
    gone = await envd.call("process.Process/SendSignal", {"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"}, codec=codec)
    assert (gone.status_code, gone.json()["code"]) == (404, "not_found")


@CODECS
async def test_input_arrives_in_order_and_ends(envd: EnvdWorld, codec: str) -> None:
    async with envd.stream("process.Process/Start", {"process": {"cmd": "cat"}}, codec=codec) as messages:
        pid = await started(messages)
        for text in (b"one ", b"two ", b"\xff\n"):
            await envd.asked("process.Process/SendInput", {"process": {"pid": pid}, "input": {"stdin": b64(text)}}, codec=codec)
        await envd.asked("process.Process/CloseStdin", {"process": {"pid": pid}}, codec=codec)
        told = await rest(messages)
    assert output(told) == b"one two \xff\n"
    assert ended(told)["exited"]


@CODECS
async def test_a_stream_of_input(envd: EnvdWorld, codec: str) -> None:
    method = "process.Process/StreamInput"
    async with envd.stream("process.Process/Start", {"process": {"cmd": "cat"}}, codec=codec) as messages:
        pid = await started(messages)
        parts: list[Json] = [{"start": {"process": {"pid": pid}}}, {"data": {"input": {"stdin": b64(b"a" * 200000)}}}, {"keepalive": {}}]
        parts += [{"data": {"input": {"stdin": b64(b"z")}}}]

        async def body() -> Any:
            for part in parts:
                yield enveloped(written(method, part, codec))

        sending = asyncio.create_task(envd.client.post(f"/{method}", content=body(), headers={"Content-Type": f"application/connect+{codec}"}))
        heard = 0
        while heard < 200001:
            heard += len(output([await anext(messages)]))
        answer = await sending
        assert answer.headers["content-type"] == f"application/connect+{codec}"
        assert answer.content.endswith(enveloped(b"{}", 2))
        await envd.asked("process.Process/CloseStdin", {"process": {"pid": pid}})
        assert ended(await rest(messages))["exited"]


async def test_input_where_there_is_none(envd: EnvdWorld) -> None:
    async with envd.stream("process.Process/Start", {"process": {"cmd": "sleep", "args": ["1000"]}, "stdin": False}) as messages:
        process = {"process": {"pid": await started(messages)}}
        for message, code in (
            ({"input": {"stdin": b64(b"x")}}, "internal"),
            ({"input": {"pty": b64(b"x")}}, "internal"),
            ({"input": {}}, "unimplemented"),
        ):
            assert (await envd.call("process.Process/SendInput", process | message)).json()["code"] == code
        assert (await envd.call("process.Process/CloseStdin", process)).json()["code"] == "internal"
        assert (await envd.call("process.Process/Update", process | {"pty": {"size": {"cols": 1, "rows": 1}}})).json()["code"] == "failed_precondition"
        await envd.asked("process.Process/SendSignal", process | {"signal": "SIGNAL_SIGTERM"})
        assert ended(await rest(messages))["status"] == "signal: terminated"
    for message in (process, {"process": {}}, {"process": {"tag": "none"}}):
        assert (await envd.call("process.Process/SendInput", message | {"input": {"stdin": b64(b"x")}})).status_code in (400, 404)


@CODECS
async def test_a_terminal(envd: EnvdWorld, codec: str) -> None:
    request = {"process": {"cmd": "/bin/bash", "args": ["--norc", "-i"]}, "pty": {"size": {"cols": 91, "rows": 33}}}
    async with envd.stream("process.Process/Start", request, codec=codec) as messages:
        process = {"process": {"pid": await started(messages)}}
        told: list[Json] = []

        async def until(text: bytes) -> None:
            while text not in output(told, "pty"):
                told.append(await anext(messages))

        async def type_(text: bytes) -> None:
            await envd.asked("process.Process/SendInput", process | {"input": {"pty": b64(text)}}, codec=codec)

        await type_(b"stty size\n")
        await until(b"33 91")
        await envd.asked("process.Process/Update", process | {"pty": {"size": {"cols": 40, "rows": 20}}}, codec=codec)
        await type_(b"stty size; echo $TERM\n")
        await until(b"20 40")
        await until(b"xterm-256color")
        assert (await envd.call("process.Process/CloseStdin", process)).json()["code"] == "unknown"
        await type_(b"exit 7\n")
        assert ended(told + await rest(messages))["exitCode"] == 7


async def test_who_leaves_leaves_it_running_and_who_comes_hears_what_nobody_did(envd: EnvdWorld) -> None:
    async with envd.stream("process.Process/Start", {"process": {"cmd": "cat"}, "tag": "t"}) as messages:
        pid = await started(messages)
        await envd.asked("process.Process/SendInput", {"process": {"pid": pid}, "input": {"stdin": b64(b"first")}})
        assert output([await anext(messages)]) == b"first"
    await envd.asked("process.Process/SendInput", {"process": {"pid": pid}, "input": {"stdin": b64(b"second")}})
    async with envd.stream("process.Process/Connect", {"process": {"tag": "t"}}) as messages:
        assert await started(messages) == pid
        assert output([await anext(messages)]) == b"second"
        async with envd.stream("process.Process/Connect", {"process": {"pid": pid}}) as others:
            assert await started(others) == pid
            await envd.asked("process.Process/SendInput", {"process": {"pid": pid}, "input": {"stdin": b64(b"third")}})
            assert output([await anext(messages)]) == output([await anext(others)]) == b"third"
            await envd.asked("process.Process/CloseStdin", {"process": {"pid": pid}})
            assert ended(await rest(messages)) == ended(await rest(others))
    async with envd.stream("process.Process/Connect", {"process": {"pid": pid}}) as late:
        assert await started(late) == pid
        assert ended(await rest(late)) == {"exited": True, "status": "exit status 0"}
    async with envd.stream("process.Process/Connect", {"process": {"tag": "other"}}) as none:
        assert (await anext(none))["end"]["error"]["code"] == "not_found"


async def test_the_deadline_kills_the_whole_tree(envd: EnvdWorld) -> None:
    messages = await envd.run("sleep 1000 & echo $! $$; wait", headers={"Connect_Timeout_Ms": "1500"})
    assert messages[-1]["end"]["error"]["code"] == "deadline_exceeded"
    async with asyncio.timeout(100):
        for pid in map(int, output(messages).split()):
            while _alive(pid):
                await asyncio.sleep(0.02)
    assert await envd.asked("process.Process/List") == {}


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_the_deadline_of_a_connect_ends_only_its_stream(envd: EnvdWorld) -> None:
    async with envd.stream("process.Process/Start", {"process": {"cmd": "sleep", "args": ["1000"]}, "stdin": False}) as messages:
        process = {"process": {"pid": await started(messages)}}
        async with envd.stream("process.Process/Connect", process, Connect_Timeout_Ms="300") as others:
            assert (await rest(others))[-1]["end"]["error"]["code"] == "deadline_exceeded"
        os.kill(process["process"]["pid"], 0)
        await envd.asked("process.Process/SendSignal", process | {"signal": "SIGNAL_SIGKILL"})
        assert ended(await rest(messages))["status"] == "signal: killed"


async def test_what_a_command_leaves_behind_is_heard_until_it_ends_too(envd: EnvdWorld) -> None:
    assert output(await envd.run("(sleep 1; echo late) & echo early")) == b"early\nlate\n"


async def test_a_kill_ends_the_stream_though_others_hold_its_pipes(envd: EnvdWorld) -> None:
    async with envd.stream(
        "process.Process/Start", {"process": {"cmd": "bash", "args": ["-c", "setsid sleep 1000 & echo $!; exit 5"]}, "stdin": False}
    ) as messages:
        process = {"process": {"pid": await started(messages)}}
        child = int(output([await anext(messages)]))
        while _alive(process["process"]["pid"]):
            await asyncio.sleep(0.02)
        assert len((await envd.asked("process.Process/List"))["processes"]) == 1
        await envd.asked("process.Process/SendSignal", process | {"signal": "SIGNAL_SIGKILL"})
        assert ended(await rest(messages))["exitCode"] == 5
    if _alive(child):  # without cgroups, as here, what made itself a session of its own is not found
        os.kill(child, signal.SIGKILL)


async def test_keepalives_where_nothing_is_said(envd: EnvdWorld) -> None:
    async with envd.stream("process.Process/Start", {"process": {"cmd": "cat"}}, Keepalive_Ping_Interval="1") as messages:
        process = {"process": {"pid": await started(messages)}}
        assert await anext(messages) == {"event": {"keepalive": {}}}
        await envd.asked("process.Process/CloseStdin", process)
        told = [m for m in await rest(messages) if "keepalive" not in m.get("event", {})]
        assert ended(told)["exited"]


async def test_a_slow_reader_slows_the_command_and_loses_nothing(envd: EnvdWorld) -> None:
    total = 40 << 20
    heard, paused = 0, False
    async with envd.stream(
        "process.Process/Start", {"process": {"cmd": "head", "args": ["-c", str(total), "/dev/zero"]}, "stdin": False}, codec="proto"
    ) as messages:
        async for message in messages:
            heard += len(output([message]))
            if heard > total // 2 and not paused:
                paused = True
                assert len((await envd.asked("process.Process/List"))["processes"]) == 1  # it cannot have written all
    assert heard == total


async def test_a_lost_sandbox_breaks_its_streams_and_is_not_found_afterwards(envd: EnvdWorld) -> None:
    async with envd.stream("process.Process/Start", {"process": {"cmd": "sleep", "args": ["1000"]}, "stdin": False}) as messages:
        pid = await started(messages)
        await envd.end(envd.sandbox)
        with pytest.raises(httpx.RemoteProtocolError):
            await rest(messages)
    os.kill(pid, signal.SIGKILL)
    gone = {"sandboxId": envd.sandbox, "message": "The sandbox was not found", "code": 502}
    for answer in (
        await envd.client.get("/health"),
        await envd.call("process.Process/List"),
        await envd.client.get("/files", params={"path": "x"}),
        await envd.client.post("/process.Process/Start", content=enveloped(b'{"process":{"cmd":"ls"}}'), headers={"Content-Type": "application/connect+json"}),
    ):
        assert (answer.status_code, answer.json()) == (502, gone)
