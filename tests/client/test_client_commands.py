"""Commands and terminals through the client, on both of its faces; with servers that go away in the middle."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pytest
from client_world import Awaited, Restartable

from torpor.client import CommandFailed, Conflict, InputLost, InvalidState, NotFound, Output
from torpor.ports.guest import ExecSpec

COUNT = "i=0; while [ $i -lt 200 ]; do echo line $i; i=$((i+1)); [ -e {gate}/$((i/50)) ] || while [ ! -e {gate}/$((i/50)) ]; do sleep 0.01; done; done; exit 7"


async def test_run_keeps_streams_and_exit_code_apart(client: Any, sandbox: Any) -> None:
    done = await sandbox.commands.run("echo out; echo err >&2; exit 3", envs={"A": "b"}, cwd="/tmp")
    assert (done.exit_code, done.stdout, done.stderr) == (3, "out\n", "err\n")
    done = await sandbox.commands.run(["sh", "-c", 'printf "%s|" "$@"; pwd', "sh", "a b", "", "*"], cwd="/tmp")
    assert done.stdout == "a b||*|/tmp\n"
    with pytest.raises(CommandFailed, match="bad luck") as failed:
        await sandbox.commands.run("echo bad luck >&2; exit 9", check=True)
    assert failed.value.result.exit_code == 9
    with pytest.raises(NotFound):
        await sandbox.commands.run(["/no/such/program"])
    with pytest.raises(ValueError):
        await sandbox.commands.run([])


async def test_bytes_stay_bytes_and_large_streams_whole(client: Any, sandbox: Any, tmp_path: Path) -> None:
    data = bytes(range(256)) * 12_000
    done = await sandbox.commands.run("cat; cat /dev/null", stdin=data)
    assert hashlib.sha256(done.stdout_bytes).digest() == hashlib.sha256(data).digest()
    assert (await sandbox.commands.run("head -c 3", stdin=[b"ab", b"cdef"])).stdout == "abc"
    assert (await sandbox.commands.run("true", stdin=b"x" * 3_000_000)).exit_code == 0


async def test_output_goes_to_functions_as_it_comes(client: Any, sandbox: Any) -> None:
    heard: list[Output] = []
    done = await sandbox.commands.run("echo a; echo b >&2; echo c", on_stdout=heard.append)
    assert (b"".join(piece.data for piece in heard), done.stdout, done.stderr) == (b"a\nc\n", "", "b\n")

    def refuse(_piece: Output) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        await sandbox.commands.run("echo x; exec sleep 1000", tag="refused", on_stdout=refuse)
    assert "refused" not in [process.tag for process in await sandbox.commands.list()]


async def test_a_function_may_use_the_client(client: Any, sandbox: Any) -> None:
    found = []
    if isinstance(sandbox, Awaited):
        await sandbox.commands.run("echo x", on_stdout=lambda _: found.append(len(sandbox.inner.commands.list())))
    else:

        async def look(_: Output) -> None:
            found.append(len(await sandbox.commands.list()))

        await sandbox.commands.run("echo x", on_stdout=look)
    assert len(found) == 1


async def test_a_time_out_kills_the_command_and_all_it_started(client: Any, sandbox: Any) -> None:
    done = await sandbox.commands.run("echo begun; sleep 1000 & exec sleep 1000", timeout=0.5, tag="late")
    assert (done.exit_code, done.timed_out, done.stdout) == (124, True, "begun\n")
    assert await sandbox.commands.list() == []


async def test_talking_to_a_command(client: Any, sandbox: Any) -> None:
    process = await sandbox.commands.start("trap 'echo caught' USR1; echo ready; while read line; do echo \"<$line>\"; done; echo end", stdin=True)
    async with process:
        output = process.output()
        said = (await anext(output)).text
        assert said == "ready\n"
        await process.write("hello\n")
        assert (await anext(output)).text == "<hello>\n"
        await process.signal(10)
        await process.close_stdin()
        rest = "".join([piece.text async for piece in output])
        assert rest.endswith("end\n")
        assert (await process.wait()).exit_code == 0
    killed = await sandbox.commands.start("exec sleep 1000")
    await killed.kill()
    assert (await killed.wait()).signal == 9


async def test_what_is_left_in_the_background_is_found_again(client: Any, sandbox: Any, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    left = await sandbox.commands.background(f"echo first; while [ ! -e {gate} ]; do sleep 0.01; done; echo last; exit 5", tag="job")
    assert [(each.pid, each.tag, each.exit_code) for each in await sandbox.commands.list()] == [(left.pid, "job", None)]
    process = await sandbox.commands.connect("job")
    gate.touch()
    done = await process.wait()
    assert (done.exit_code, done.stdout) == (5, "first\nlast\n")
    again = await (await sandbox.commands.connect(left.pid, stdout_offset=6)).wait()
    assert (again.exit_code, again.stdout) == (5, "last\n")
    assert [each.exit_code for each in await sandbox.commands.list(ended=True) if each.tag == "job"] == [5]
    with pytest.raises(NotFound):
        await sandbox.commands.connect("nobody")
    with pytest.raises(NotFound):
        await sandbox.commands.kill("job")


async def test_what_came_before_the_last_mebibyte_is_said_to_be_lost(client: Any, sandbox: Any) -> None:
    left = await sandbox.commands.background("head -c 3000000 /dev/zero", tag="much")
    while await sandbox.commands.list():
        pass
    process = await sandbox.commands.connect(left.tag)
    pieces = [piece async for piece in process.output()]
    assert pieces[0].lost > 0
    assert pieces[0].lost + sum(len(piece.data) for piece in pieces) == 3_000_000
    assert not any(piece.lost for piece in pieces[1:])


async def test_logs_end_where_the_command_stands(client: Any, sandbox: Any, server: Restartable, tmp_path: Path) -> None:
    async def logs(**how: Any) -> list[str]:
        return [piece.text async for piece in sandbox.commands.logs("talker", **how)]

    gate = tmp_path / "gate"
    process = await sandbox.commands.start(f"printf 'no line end'; while [ ! -e {gate} ]; do sleep 0.01; done; echo .", tag="talker")
    assert (await anext(process.output())).text == "no line end"  # somebody follows it
    assert await logs() == ["no line end"]
    assert await logs(stdout_offset=3) == ["line end"]
    assert await logs(stdout_offset=1000) == []
    await server.restart()
    assert await logs() == ["no line end"]
    gate.touch()
    assert (await process.wait()).stdout == ".\n"
    assert "".join(await logs()) == "no line end.\n"
    with pytest.raises(NotFound):
        [each async for each in sandbox.commands.logs("nobody")]


async def test_logs_of_a_flood_end_too(client: Any, sandbox: Any) -> None:
    left = await sandbox.commands.background(["yes"], tag="flood")
    pieces = [piece async for piece in sandbox.commands.logs(left.tag)]
    assert all(piece.data.replace(b"y\n", b"") == b"" for piece in pieces[1:])
    await sandbox.commands.kill(left.tag)


@pytest.mark.parametrize("how", ["restart", "cut"])
async def test_a_command_is_followed_through_what_happens_to_the_server(client: Any, sandbox: Any, server: Restartable, tmp_path: Path, how: str) -> None:
    """Three times in one command: no byte is lost or doubled."""
    (tmp_path / "0").touch()
    process = await sandbox.commands.start(COUNT.format(gate=tmp_path))
    said, gates = b"", iter("1234")
    async for piece in process.output():
        assert piece.offset == len(said) and piece.lost == 0
        said += piece.data
        lines = said.count(b"\n")
        if lines in (50, 100, 150):
            await (server.restart() if how == "restart" else asyncio.to_thread(lambda: None))
            if how == "cut":
                server.cut()
            (tmp_path / next(gates)).touch()
        elif lines == 200:
            (tmp_path / "4").touch()
    assert said == b"".join(b"line %d\n" % number for number in range(200))
    assert (await process.wait()).exit_code == 7


async def test_input_that_was_taken_is_not_held_against_a_restart(client: Any, sandbox: Any, server: Restartable) -> None:
    process = await sandbox.commands.start('read a; echo "got $a"; read b; echo "got $b"', stdin=True)
    output = process.output()
    await process.write("one\n")
    assert (await anext(output)).text == "got one\n"
    await server.restart()
    await process.write("two\n")
    assert (await anext(output)).text == "got two\n"
    await process.close_stdin()
    assert (await process.wait()).exit_code == 0


async def test_input_on_its_way_when_the_server_goes_ends_the_command(client: Any, sandbox: Any, server: Restartable) -> None:
    process = await sandbox.commands.start("exec sleep 1000", stdin=True, tag="deaf")
    writing = asyncio.create_task(process.write(b"x" * 5_000_000))
    while not (process.inner._inner if isinstance(process, Awaited) else process)._sent:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0)
    server.cut()
    with pytest.raises(InputLost):
        await writing
    with pytest.raises(InputLost):
        await process.wait()
    while await sandbox.commands.list():
        await asyncio.sleep(0.01)


async def test_a_sandbox_that_is_paused_is_not_woken_by_those_who_follow_it(client: Any, sandbox: Any, server: Restartable) -> None:
    process = await sandbox.commands.start("exec sleep 1000")
    await sandbox.pause()
    server.cut()
    with pytest.raises(InvalidState, match="paused"):
        await process.wait()
    assert (await sandbox.refresh()).state == "paused"


async def test_a_terminal(client: Any, sandbox: Any, server: Restartable) -> None:
    terminal = await sandbox.terminals.open(["sh"], cols=100, rows=30, envs={"PS1": "$ "})
    shown = b""
    output = terminal.output()

    async def until(text: bytes) -> None:
        nonlocal shown
        while text not in shown:
            shown += await anext(output)
        shown = shown.partition(text)[2]

    await terminal.write("stty size; echo on''e\n")
    await until(b"30 100\r\n")
    await until(b"one\r\n")
    await terminal.resize(cols=132, rows=50)
    await server.restart()
    await terminal.write("stty size; echo tw''o\n")
    await until(b"50 132\r\n")
    await until(b"two\r\n")
    await terminal.close()
    again = await sandbox.terminals.connect(terminal.tag, offset=terminal.offset)
    await again.write("exit 4\n")
    assert (await again.wait()).exit_code == 4
    with pytest.raises(NotFound):
        await sandbox.terminals.connect("no-terminal")


async def test_a_conflict_of_names_is_none_of_a_followers(client: Any, sandbox: Any, server: Restartable, tmp_path: Path) -> None:
    """A newer command with the same tag is not taken for the one that was followed."""
    first = await sandbox.commands.start(f"echo one; while [ ! -e {tmp_path}/go ]; do sleep 0.01; done", tag="same")
    output = first.output()
    assert (await anext(output)).text == "one\n"
    guest = await server.host.guest(sandbox.id.removeprefix("cl-"))
    await guest.exec(ExecSpec(["sleep", "1000"], tag="same"))  # over the API the name would be taken
    server.cut()
    with pytest.raises((NotFound, Conflict)):
        await first.wait()
