"""`torpor exec, shell, ps, logs` and `cp`: streams, exit codes, signals, terminals, and servers that restart in the middle."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from client_world import Restartable
from command_world import Terminal, begun, ended, torpor

from patience import PATIENCE


@pytest.fixture
async def box(server: Restartable) -> str:
    """The name of a running sandbox."""
    assert (await torpor(server, "create", "-q", "--name", "box", "--env", "FROM=create")).code == 0
    return "box"


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    with contextlib.closing(Terminal(30, 100)) as made:
        before = made.modes()
        yield made
        assert made.modes() == before, "the terminal is as it was"


async def test_streams_and_exit_codes_pass_through(server: Restartable, box: str) -> None:
    done = await torpor(server, "exec", box, "--", "sh", "-c", "cat; echo $FROM $MORE; echo err >&2; exit 3", stdin=b"in\xff\x00", env={"MORE": "here"})
    assert (done.code, done.out, done.err) == (3, b"in\xff\x00create\n", "err\n")
    done = await torpor(server, "exec", "--env", "MORE=1", "--workdir", "/tmp", box, "sh", "-c", "echo $MORE $PWD --json")
    assert (done.code, done.out) == (0, b"1 /tmp --json\n")
    assert (await torpor(server, "exec", "--timeout", "1", box, "sleep", "1000")).code == 124
    assert (await torpor(server, "exec", box, "sh", "-c", "kill -9 $$")).code == 137
    tree = (await torpor(server, "exec", "--json", box, "sh", "-c", "echo a; echo b >&2; exit 2")).tree
    assert (tree["stdout"], tree["stderr"], tree["exit_code"]) == ("a\n", "b\n", 2)
    missing = await torpor(server, "exec", box, "/no/such/program")
    assert (missing.code, "/no/such/program" in missing.err) == (125, True)
    assert (await torpor(server, "exec", box)).code == 125
    large = os.urandom(3_000_000)
    assert (await torpor(server, "exec", box, "cat", stdin=large)).out == large


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_ends_the_command_with_us(server: Restartable, box: str, number: signal.Signals) -> None:
    async with begun(server, "exec", box, "--", "sh", "-c", "trap '' INT TERM HUP; echo ready; exec sleep 1000") as process:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert await process.wait() == 128 + number
    assert (await torpor(server, "ps", "-q", box)).words == []


async def test_a_reader_that_leaves_ends_the_command(server: Restartable, box: str) -> None:
    async with begun(server, "exec", box, "--", "yes") as process:
        assert process.stdout is not None
        await process.stdout.readline()
        process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]
        assert await process.wait() == 141
    assert (await torpor(server, "ps", "-q", box)).words == []


async def test_what_is_detached_has_logs(server: Restartable, box: str, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    script = f"echo odd >&2; echo first; while [ ! -e {gate} ]; do sleep 0.01; done; echo last; exit 5"
    assert (await torpor(server, "exec", "-d", "--tag", "job", box, "sh", "-c", script)).words == ["job"]
    assert "job" in (await torpor(server, "ps", box)).words
    async with begun(server, "logs", "-f", box) as following:
        assert following.stdout is not None
        assert await following.stdout.readline() == b"first\n"
        so_far = await torpor(server, "logs", box, "job")
        assert (so_far.code, so_far.out, so_far.err) == (0, b"first\n", "odd\n")
        recalled = (await torpor(server, "logs", "--json", box, "job")).tree
        assert recalled == {"process": "job", "stdout": "first\n", "stderr": "odd\n"}
        await server.restart()
        gate.touch()
        assert await following.stdout.read() == b"last\n"
        assert await following.wait() == 0
    assert (await torpor(server, "ps", "-q", box)).words == []
    assert "ended: 5" in (await torpor(server, "ps", "-a", box)).out.decode()
    assert "capsule.created" in (await torpor(server, "logs", "--events", box)).words


async def test_exec_goes_on_through_a_restart(server: Restartable, box: str, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with begun(server, "exec", box, "--", "sh", "-c", f"echo one; while [ ! -e {gate} ]; do sleep 0.01; done; echo two; exit 6") as process:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"one\n"
        await server.restart()
        gate.touch()
        assert await process.stdout.read() == b"two\n"
        assert await process.wait() == 6


async def test_a_shell_is_talked_to_as_by_a_person_and_survives_a_restart(server: Restartable, box: str, terminal: Terminal) -> None:
    with terminal.running(server, "shell", box, "--", "sh") as process:
        terminal.type(b"stty size; echo on''e\n")
        await terminal.until(b"30 100\r\n")
        await terminal.until(b"one\r\n")
        assert terminal.raw
        await server.restart()
        terminal.resize(50, 132)
        terminal.type(b'sh -c \'trap "echo cau""ght; exit 9" INT; echo ru""ns; while :; do sleep 0.01; done\'\n')
        await terminal.until(b"runs\r\n")
        terminal.type(b"\x03")
        await terminal.until(b"caught\r\n")
        terminal.type(b"stty size; exit 7\n")
        await terminal.until(b"50 132\r\n")
        assert await ended(process) == 7


async def test_a_shell_whose_terminal_goes_away_ends(server: Restartable, box: str) -> None:
    terminal = Terminal()
    with terminal.running(server, "shell", box, "--", "sh", "-c", "echo ready; exec sleep 1000") as process:
        await terminal.until(b"ready\r\n")
        terminal.close()
        assert await ended(process) == 129
    assert (await torpor(server, "ps", "-q", box)).words == []


async def test_a_terminal_that_was_left_is_taken_up_again(server: Restartable, box: str) -> None:
    terminal = Terminal()
    with terminal.running(server, "shell", box, "--", "sh") as process:
        terminal.type(b"X=kept; echo rea''dy\n")
        await terminal.until(b"ready\r\n")
        process.kill()
        await ended(process)
    (tag,) = (await torpor(server, "ps", "-q", box)).words
    other = Terminal()
    with other.running(server, "shell", "--attach", tag, box) as process:
        await other.until(b"ready\r\n")
        other.type(b"echo $X; exit 4\n")
        await other.until(b"kept\r\n")
        assert await ended(process) == 4
    other.close()
    terminal.close()


async def test_cp_both_ways(server: Restartable, box: str, tmp_path: Path) -> None:
    here = tmp_path / "here"
    (here / "sub").mkdir(parents=True)
    (here / "sub" / "file").write_bytes(os.urandom(300_000))
    assert (await torpor(server, "cp", "here", f"{box}:tree", cwd=tmp_path)).code == 0
    assert (server.home / "tree" / "sub" / "file").read_bytes() == (here / "sub" / "file").read_bytes()
    assert (await torpor(server, "cp", "here", f"{box}:tree", cwd=tmp_path)).code == 0
    assert (server.home / "tree" / "here" / "sub" / "file").exists(), "into a directory that is there"
    assert (await torpor(server, "cp", f"{box}:tree/sub/file", "got", cwd=tmp_path)).code == 0
    assert (tmp_path / "got").read_bytes() == (here / "sub" / "file").read_bytes()
    assert (await torpor(server, "cp", f"{box}:tree", "back", cwd=tmp_path)).code == 0
    assert (tmp_path / "back" / "sub" / "file").exists()
    assert (await torpor(server, "cp", "got", f"{box}:tree/", cwd=tmp_path)).code == 0
    assert (server.home / "tree" / "got").exists()
    piped = await torpor(server, "cp", "-", f"{box}:piped", stdin=b"through\n")
    assert piped.code == 0 and (await torpor(server, "cp", f"{box}:piped", "-")).out == b"through\n"
    for words in (["cp", f"{box}:nothing", "x"], ["cp", "nothing", f"{box}:x"], ["cp", f"{box}:tree", "got"], ["cp", "here", f"{box}:piped"]):
        done = await torpor(server, *words, cwd=tmp_path)
        assert (done.code, "Traceback" in done.err) == (125, False)


async def test_cp_stays_where_it_was_told(server: Restartable, box: str, tmp_path: Path) -> None:
    """Names that a hostile sandbox may have."""
    tree = server.home / "bad"
    tree.mkdir()
    (tree / "good").write_text("good")
    (tree / "out").symlink_to("../../outside")
    (tree / "abs").symlink_to("/etc")
    target = tmp_path / "a" / "target"
    target.mkdir(parents=True)
    done = await torpor(server, "cp", f"{box}:bad", ".", cwd=target)
    assert done.code == 1 and done.err.count("left out") == 2
    assert sorted(str(path.relative_to(tmp_path / "a")) for path in (tmp_path / "a").rglob("*")) == ["target", "target/bad", "target/bad/good"]
    for number, path in enumerate(("bad/sub/..", "bad/.")):
        (tree / "sub").mkdir(exist_ok=True)
        place = tmp_path / "b" / str(number)
        place.mkdir(parents=True)
        await torpor(server, "cp", f"{box}:{path}", ".", cwd=place)
        assert (place / "good").exists(), "a path without a name of its own copies what is in it"
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["0", "1"]


async def test_an_interrupted_copy_leaves_what_was_there(server: Restartable, box: str, tmp_path: Path) -> None:
    with (server.home / "big").open("wb") as file:
        file.truncate(1 << 40)  # nothing is through with it before the signal comes, however long that takes
    (tmp_path / "big").write_text("old")
    async with begun(server, "cp", f"{box}:big", "big", cwd=tmp_path) as process:
        while not any(path.name.startswith(".big.") and path.stat().st_size for path in tmp_path.iterdir()):
            await asyncio.sleep(0.01)
            assert process.returncode is None
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), PATIENCE) == 130
    assert (tmp_path / "big").read_text() == "old"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".big.")]
