"""Commands, through the real agent and the real host end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
from pathlib import Path

import pytest

from patience import gone
from torpor.guestlink.guest import RemoteGuest
from torpor.guestlink.process import RemoteProcess
from torpor.model.errors import Denied, GuestOSError, InvalidInput, NotFound
from torpor.ports.guest import ExecSpec, Exited, StreamName, Terminal


async def collect(process: RemoteProcess) -> tuple[bytes, bytes]:
    """(stdout, stderr), checking that offsets are gapless from the first piece on."""
    parts: dict[StreamName, bytes] = {StreamName.STDOUT: b"", StreamName.STDERR: b""}
    starts: dict[StreamName, int] = {}
    async for piece in process.output():
        start = starts.setdefault(piece.stream, piece.offset)
        assert piece.offset == start + len(parts[piece.stream])
        parts[piece.stream] += piece.data
    return parts[StreamName.STDOUT], parts[StreamName.STDERR]


async def run(guest: RemoteGuest, *argv: str, **fields: object) -> tuple[Exited, bytes, bytes]:
    process = await guest.exec(ExecSpec(argv, **fields))  # type: ignore[arg-type]
    out, err = await collect(process)
    return await process.wait(), out, err


async def test_output_and_code(guest: RemoteGuest) -> None:
    assert await run(guest, "sh", "-c", "echo out; echo err >&2; exit 7") == (Exited(7), b"out\n", b"err\n")


async def test_the_rehearsal_at_boot_leaves_nothing(guest: RemoteGuest) -> None:
    assert list(await guest.processes()) == []
    assert (await guest.exec(ExecSpec(["true"]))).exec_id == "p1"


async def test_commands_one_after_the_other(guest: RemoteGuest) -> None:
    """Each finds the next one prepared, or not yet."""
    for number in range(60):
        assert await run(guest, "sh", "-c", f"echo {number}; echo no {number} >&2; exit {number}") == (
            Exited(number),
            f"{number}\n".encode(),
            f"no {number}\n".encode(),
        )


async def test_a_command_beside_one_that_runs_and_one_after_it(guest: RemoteGuest) -> None:
    """With a process of the user's there, which could hold the start up, a thread starts the command; without one the loop does."""
    for _ in range(3):
        sleeper = await guest.exec(ExecSpec(["sleep", "1000"]))
        assert (await run(guest, "echo", "beside"))[1] == b"beside\n"
        await sleeper.kill_tree()
        assert (await sleeper.wait()).signal == signal.SIGKILL
        assert (await run(guest, "echo", "after"))[1] == b"after\n"


async def test_output_that_ends_before_its_command(guest: RemoteGuest) -> None:
    process = await guest.exec(ExecSpec(["sh", "-c", "echo out; exec >&- 2>&-; sleep 0.05; exit 3"]))
    assert await collect(process) == (b"out\n", b"")
    assert await process.wait() == Exited(3)


async def test_programs_are_looked_up_in_the_commands_own_path_and_folder(guest: RemoteGuest, tmp_path: Path) -> None:
    for folder, said in (("a", "first"), ("b", "second")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "tool").write_text(f"#!/bin/sh\necho {said}\n")
    (tmp_path / "b" / "tool").chmod(0o755)
    assert (await run(guest, "tool", env={"PATH": f"{tmp_path}/a:{tmp_path}/b"}))[1] == b"second\n"
    assert (await run(guest, "tool", env={"PATH": "b"}, cwd=str(tmp_path)))[1] == b"second\n"
    assert (await run(guest, "./b/tool", cwd=str(tmp_path)))[1] == b"second\n"
    with pytest.raises(GuestOSError) as caught:
        await run(guest, "tool", env={"PATH": f"{tmp_path}/a"})
    assert caught.value.errno == errno.EACCES


async def test_environment_and_folder(guest: RemoteGuest, tmp_path: object) -> None:
    _, out, _ = await run(guest, "sh", "-c", 'echo "$A $HOME"; pwd', env={"A": "ü b"}, cwd="/usr")
    assert out.decode().splitlines()[0].startswith("ü b /")
    assert out.decode().splitlines()[1] == "/usr"


async def test_only_standard_descriptors_are_open(guest: RemoteGuest) -> None:
    _, out, _ = await run(guest, "ls", "/proc/self/fd")
    assert out.split() == [b"0", b"1", b"2", b"3"]  # 3 is the folder that ls reads
    _, out, _ = await run(guest, "grep", "-E", "SigBlk|SigIgn", "/proc/self/status")
    assert out.split()[1::2] == [b"0" * 16] * 2


async def test_a_script_without_interpreter_line_runs_in_the_shell(guest: RemoteGuest) -> None:
    _, home, _ = await run(guest, "pwd")
    path = home.decode().strip() + "/script"
    await guest.write_file(path, b"echo script $1\n", mode=0o755)
    assert (await run(guest, path, "x"))[1] == b"script x\n"


async def test_stdin_streams_and_closes(guest: RemoteGuest) -> None:
    data = os.urandom(1_000_000)
    process = await guest.exec(ExecSpec(["cat"], stdin=True))

    async def write() -> None:
        await process.write(data)
        await process.close_stdin()

    writing = asyncio.create_task(write())
    assert await collect(process) == (data, b"")
    await writing
    assert await process.wait() == Exited(0)


async def test_writing_without_stdin_is_denied(guest: RemoteGuest) -> None:
    process = await guest.exec(ExecSpec(["sleep", "100"]))
    with pytest.raises(Denied):
        await process.write(b"x")
    await process.kill_tree()


async def test_writing_to_who_does_not_read_is_a_broken_pipe(guest: RemoteGuest) -> None:
    process = await guest.exec(ExecSpec(["sh", "-c", "exec 0<&-; echo closed; sleep 100"], stdin=True))
    output = process.output()
    assert (await anext(output)).data == b"closed\n"

    async def write_on() -> None:
        while True:
            await process.write(b"x" * 1000)
            await guest.ping()

    with pytest.raises(GuestOSError) as caught:
        await write_on()
    assert caught.value.name == "EPIPE"
    await process.kill_tree()


async def test_terminal(guest: RemoteGuest) -> None:
    process = await guest.exec(ExecSpec(["sh", "-c", "tty >&2; stty size; read line; stty size; echo got $line; test -t 0"], terminal=Terminal(33, 101)))
    output = process.output()
    seen = b""
    while b"33 101" not in seen:
        seen += (await anext(output)).data
    await process.resize(Terminal(5, 7))
    await process.write(b"word\n")
    async for piece in output:
        seen += piece.data
        assert piece.stream is StreamName.STDOUT
    assert b"/dev/pts/" in seen
    assert b"5 7" in seen
    assert b"got word" in seen
    assert await process.wait() == Exited(0)


async def test_end_of_file_on_a_terminal(guest: RemoteGuest) -> None:
    process = await guest.exec(ExecSpec(["cat"], terminal=Terminal()))
    await process.write(b"line\n")
    await process.close_stdin()
    out, _ = await collect(process)
    assert out == b"line\r\nline\r\n"
    assert await process.wait() == Exited(0)


async def test_ctrl_c_on_a_terminal_interrupts(guest: RemoteGuest) -> None:
    process = await guest.exec(ExecSpec(["cat"], terminal=Terminal()))
    await process.write(b"up\n")
    output = process.output()
    seen = b""
    while seen.count(b"up") < 2:  # the terminal's echo, and cat's
        seen += (await anext(output)).data
    await process.write(b"\x03")
    assert await process.wait() == Exited(None, signal.SIGINT)


async def test_the_deadline_kills_the_tree(guest: RemoteGuest) -> None:
    for seconds in (0.5, 5.0, 50.0):  # a busy machine may not even have begun the command after the first
        process = await guest.exec(ExecSpec(["sh", "-c", "sleep 1000 & echo $!; wait"], timeout=seconds))
        out, _ = await collect(process)
        ended = await process.wait()
        assert (ended.timed_out, ended.shell_code) == (True, 124)
        if out:
            break
    await gone(int(out))


async def test_kill_tree_reaches_children_in_other_groups(guest: RemoteGuest) -> None:
    process = await guest.exec(ExecSpec(["sh", "-c", "exec 2>/dev/null; set -m; sleep 1000 & echo $!; wait"]))
    pid = int((await anext(process.output())).data)
    await process.kill_tree()
    await process.kill_tree()
    assert (await process.wait()).signal == signal.SIGKILL
    await gone(pid)


async def test_signals_go_to_the_group(guest: RemoteGuest) -> None:
    process = await guest.exec(ExecSpec(["sh", "-c", "trap 'echo caught; exit 5' TERM; echo up; sleep 1000 & wait"]))
    output = process.output()
    assert (await anext(output)).data == b"up\n"
    await process.signal(signal.SIGTERM)
    assert (await anext(output)).data == b"caught\n"
    assert await process.wait() == Exited(5)
    await process.signal(signal.SIGTERM)
    with pytest.raises(InvalidInput):
        await process.signal(1000)
    await process.kill_tree()


async def test_a_daemon_does_not_hold_the_output_open(guest: RemoteGuest) -> None:
    process = await guest.exec(ExecSpec(["sh", "-c", "sleep 1000 & echo $!"]))
    out, _ = await collect(process)
    assert await process.wait() == Exited(0)
    os.kill(int(out), signal.SIGKILL)


@pytest.mark.parametrize(
    ("argv", "fields", "name"), [(["no-such-program"], {}, "ENOENT"), (["/etc/passwd"], {}, "EACCES"), (["true"], {"cwd": "/none"}, "ENOENT")]
)
async def test_what_cannot_start_says_why(guest: RemoteGuest, argv: list[str], fields: dict[str, str], name: str) -> None:
    with pytest.raises(GuestOSError) as caught:
        await guest.exec(ExecSpec(argv, **fields))  # type: ignore[arg-type]
    assert caught.value.name == name


@pytest.mark.parametrize("spec", [ExecSpec([]), ExecSpec(["true"], user="nobody-here"), ExecSpec(["a\0b"]), ExecSpec(["true"], env={"A=B": "x"})])
async def test_senseless_commands_are_invalid(guest: RemoteGuest, spec: ExecSpec) -> None:
    with pytest.raises(InvalidInput):
        await guest.exec(spec)


async def test_arguments_beyond_one_frame(guest: RemoteGuest) -> None:
    words = ["x" * 1000] * 500
    _, out, _ = await run(guest, "sh", "-c", "echo $# $1", "sh", *words)
    assert out.decode() == f"500 {words[0]}\n"
    with pytest.raises(InvalidInput):
        await guest.exec(ExecSpec(["true", "x" * (5 << 20)]))


async def test_attach_replays_from_an_offset(guest: RemoteGuest) -> None:
    first = await guest.exec(ExecSpec(["sh", "-c", "echo 0123456789; read x; echo more"], stdin=True))
    assert (await anext(first.output())).data == b"0123456789\n"
    first.detach()
    second = await guest.attach(first.exec_id, stdout_offset=4)
    output = second.output()
    piece = await anext(output)
    assert (piece.offset, piece.data) == (4, b"456789\n")
    await second.write(b"\n")
    assert [p.data async for p in output] == [b"more\n"]
    assert await first.wait() == await second.wait() == Exited(0)
    third = await guest.attach(first.exec_id)
    assert await collect(third) == (b"0123456789\nmore\n", b"")
    assert await third.wait() == Exited(0)


async def test_an_earlier_attachment_ends(guest: RemoteGuest) -> None:
    first = await guest.exec(ExecSpec(["sh", "-c", "read x; echo late"], stdin=True))
    second = await guest.attach(first.exec_id)
    assert await collect(first) == (b"", b"")
    await second.write(b"\n")
    assert await collect(second) == (b"late\n", b"")


async def test_detached_output_keeps_the_newest_bytes(guest: RemoteGuest) -> None:
    process = await guest.exec(ExecSpec(["sh", "-c", "seq 1 200000"], output_limit=65536))
    process.detach()
    assert await process.wait() == Exited(0)
    again = await guest.attach(process.exec_id)
    pieces = [piece async for piece in again.output()]
    data = b"".join(p.data for p in pieces)
    whole = "".join(f"{n}\n" for n in range(1, 200001)).encode()
    assert 0 < len(data) <= 65536
    assert pieces[0].offset + len(data) == len(whole)
    assert whole.endswith(data)


async def test_a_slow_reader_stops_the_command_and_loses_nothing(guest: RemoteGuest, tmp_path: object) -> None:
    mark = f"{tmp_path}/done"
    process = await guest.exec(ExecSpec(["sh", "-c", f"head -c 3000000 /dev/zero; touch {mark}"], output_limit=65536))
    output = process.output()
    size = len((await anext(output)).data)
    for _ in range(20):
        await guest.ping()
    assert not os.path.exists(mark)
    async for piece in output:
        size += len(piece.data)
    assert size == 3_000_000
    assert await process.wait() == Exited(0)


async def test_the_list_and_forgetting(guest: RemoteGuest) -> None:
    done = await guest.exec(ExecSpec(["true"], tag="a"))
    running = await guest.exec(ExecSpec(["sleep", "100"], tag="b"))
    await done.wait()
    listed = {p.exec_id: p for p in await guest.processes()}
    assert (listed[done.exec_id].tag, listed[done.exec_id].exited) == ("a", Exited(0))
    assert (listed[running.exec_id].argv, listed[running.exec_id].exited) == (("sleep", "100"), None)
    await guest.forget(done.exec_id)
    with pytest.raises(NotFound):
        await guest.forget(done.exec_id)
    with pytest.raises(Denied):
        await guest.forget(running.exec_id)
    with pytest.raises(NotFound):
        await guest.attach("p999")
    await running.kill_tree()
    await running.wait()


async def test_a_cancelled_exec_leaves_nothing_running(guest: RemoteGuest) -> None:
    task = asyncio.create_task(guest.exec(ExecSpec(["sleep", "1000"], tag="orphan")))
    await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    while not any(p.tag == "orphan" and p.exited is not None for p in await guest.processes()):
        await guest.ping()


async def test_many_commands_at_once(guest: RemoteGuest) -> None:
    results = await asyncio.gather(*[run(guest, "sh", "-c", f"echo {n}; exit {n}") for n in range(40)])
    assert [(r[0].code, r[1]) for r in results] == [(n, f"{n}\n".encode()) for n in range(40)]


async def test_signals_reach_a_command_without_taking_its_output(guest: RemoteGuest) -> None:
    process = await guest.exec(ExecSpec(["sh", "-c", "trap 'echo caught; exit 5' TERM; echo up; while :; do sleep 0.01; done"]))
    pieces = process.output()
    assert (await anext(pieces)).data == b"up\n"
    await guest.signal(process.exec_id, signal.SIGTERM)
    said = b"".join([piece.data async for piece in pieces])  # the shell may tell first that the signal ended its sleep
    assert b"caught\n" in said
    assert await process.wait() == Exited(5)
    endless = await guest.exec(ExecSpec(["sleep", "1000"]))
    await guest.kill_tree(endless.exec_id)
    assert (await endless.wait()).signal == signal.SIGKILL
    with pytest.raises(NotFound):
        await guest.signal("p999", signal.SIGTERM)
    assert guest.default_home.startswith("/")
