"""Long-lived children: born, ended, adopted, bounded, leashed. Real processes under a real keeper; no jail, so no root."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from torpor.model.errors import HostError, MissingTool
from torpor.ports.processes import ChildSpec, ExitRecord
from torpor.proc import LocalProcesses
from torpor.proc.children import read_exit_file
from torpor.proc.keeper import protocol
from torpor.proc.link import connect
from torpor.proc.processes import _spawn_message
from torpor.testing.conformance.cancel import cancel_everywhere


@pytest.fixture
async def processes(tmp_path: Path) -> AsyncIterator[LocalProcesses]:
    home = LocalProcesses(tmp_path)
    yield home
    home.close()


def spec(tmp_path: Path, script: str, name: str = "child") -> ChildSpec:
    return ChildSpec(name, ["/bin/sh", "-c", script], tmp_path / f"{name}.exit", tmp_path / f"{name}.out")


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


async def test_exit_code_output_and_exit_file(processes: LocalProcesses, tmp_path: Path) -> None:
    child = await processes.spawn(spec(tmp_path, "echo out; echo err >&2; exit 3"))
    assert await child.wait() == ExitRecord(3, None, False)
    assert (tmp_path / "child.out").read_text() == "out\nerr\n"
    assert read_exit_file(tmp_path / "child.exit") == ExitRecord(3, None, False)


async def test_a_killed_child_is_reaped_and_killing_it_again_is_no_error(processes: LocalProcesses, tmp_path: Path) -> None:
    child = await processes.spawn(spec(tmp_path, "exec sleep 1000"))
    child.kill(signal.SIGTERM)
    assert await child.wait() == ExitRecord(None, signal.SIGTERM, False)
    assert not Path(f"/proc/{child.pid}").exists()
    child.kill(signal.SIGKILL)


async def test_many_wait_and_a_cancelled_wait_changes_nothing(processes: LocalProcesses, tmp_path: Path) -> None:
    child = await processes.spawn(spec(tmp_path, "read line; exit 5"))
    # /dev/null is its input, so it ends at once; whoever waits, before or after, learns the same
    first, second = asyncio.ensure_future(child.wait()), asyncio.ensure_future(child.wait())
    first.cancel()
    assert (await second).code == 5
    assert (await child.wait()).code == 5


async def test_the_environment_is_scrubbed(processes: LocalProcesses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "leaked")
    child = await processes.spawn(replace(spec(tmp_path, "env"), env={"GIVEN": "yes"}))
    await child.wait()
    lines = (tmp_path / "child.out").read_text().splitlines()
    assert "GIVEN=yes" in lines
    assert not [line for line in lines if "SECRET" in line]


async def test_descriptors_arrive_under_their_numbers_and_no_others(processes: LocalProcesses, tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    child = await processes.spawn(replace(spec(tmp_path, "echo through >&7; ls /proc/$$/fd"), fds={7: write_end}))
    os.close(write_end)
    await child.wait()
    assert os.read(read_end, 100) == b"through\n"
    os.close(read_end)
    # 10 is dash's own copy of nothing here; only the standard three and ours may be open
    assert (tmp_path / "child.out").read_text().split() == ["0", "1", "2", "7"]


async def test_a_missing_program_is_named(processes: LocalProcesses, tmp_path: Path) -> None:
    with pytest.raises(MissingTool, match="/no/such/program"):
        await processes.spawn(replace(spec(tmp_path, ""), argv=["/no/such/program"]))
    assert not (tmp_path / "child.exit").exists()


async def test_an_impossible_output_file_is_an_error_that_leaves_nothing(processes: LocalProcesses, tmp_path: Path) -> None:
    with pytest.raises(HostError, match="output file"):
        await processes.spawn(replace(spec(tmp_path, "true"), output=tmp_path / "no" / "directory"))
    child = await processes.spawn(spec(tmp_path, "true"))
    assert (await child.wait()).code == 0


async def test_a_flood_is_cut_to_its_first_and_last_part(processes: LocalProcesses, tmp_path: Path) -> None:
    script = "echo first; i=0; while [ $i -lt 20000 ]; do echo line-$i; i=$((i+1)); done; echo last"
    child = await processes.spawn(replace(spec(tmp_path, script), output_limit=4096))
    await child.wait()
    text = (tmp_path / "child.out").read_text()
    assert len(text) < 5000
    assert text.startswith("first\nline-0\n")
    assert "bytes left out" in text


async def test_a_leashed_child_dies_with_its_leash(processes: LocalProcesses, tmp_path: Path) -> None:
    holder = subprocess.Popen(["sleep", "1000"])
    child = await processes.spawn(replace(spec(tmp_path, "exec sleep 1000"), leash=holder.pid))
    holder.kill()
    holder.wait()
    assert (await child.wait()).signal == signal.SIGKILL


async def test_a_child_outlives_the_connection_and_is_adopted(processes: LocalProcesses, tmp_path: Path) -> None:
    child = await processes.spawn(spec(tmp_path, "exec sleep 1000"))
    processes.close()
    later = LocalProcesses(tmp_path)
    adopted = await later.adopt("child", child.pid, child.start_time, tmp_path / "child.exit")
    assert not isinstance(adopted, ExitRecord)
    adopted.kill(signal.SIGKILL)
    assert (await adopted.wait()).signal == signal.SIGKILL
    later.close()


async def test_an_end_that_no_daemon_saw_is_on_file(processes: LocalProcesses, tmp_path: Path) -> None:
    """Nobody is connected when it ends: the keeper writes the record, then has nothing left to do and goes."""
    child = await processes.spawn(spec(tmp_path, "exec sleep 1000"))
    keeper = os.pidfd_open(parent_of(child.pid))
    processes.close()
    os.kill(child.pid, signal.SIGTERM)
    gone = asyncio.Event()
    asyncio.get_running_loop().add_reader(keeper, gone.set)
    await gone.wait()
    asyncio.get_running_loop().remove_reader(keeper)
    os.close(keeper)
    later = LocalProcesses(tmp_path)
    assert await later.adopt("child", child.pid, child.start_time, tmp_path / "child.exit") == ExitRecord(None, signal.SIGTERM, False)
    later.close()


async def test_a_killed_keeper_loses_exit_codes_but_no_child(processes: LocalProcesses, tmp_path: Path) -> None:
    child = await processes.spawn(spec(tmp_path, "exec sleep 1000"))
    os.kill(parent_of(child.pid), signal.SIGKILL)
    other = await _spawn_with_a_new_keeper(processes, tmp_path)
    child.kill(signal.SIGTERM)
    assert await child.wait() == ExitRecord(None, None, False)
    assert read_exit_file(tmp_path / "child.exit") == ExitRecord(None, None, False)
    assert (await other.wait()).code == 0


async def _spawn_with_a_new_keeper(processes: LocalProcesses, tmp_path: Path):  # type: ignore[no-untyped-def]
    """The first try may still reach the dying keeper; that is an error, and the next one starts a new keeper."""
    while True:
        try:
            return await processes.spawn(spec(tmp_path, "exit 0", "other"))
        except HostError:
            continue


async def test_a_recycled_pid_is_not_adopted(processes: LocalProcesses, tmp_path: Path) -> None:
    me = os.getpid()
    record = await processes.adopt("ghost", me, protocol.start_time(me) - 1, tmp_path / "ghost.exit")
    assert record == ExitRecord(None, None, False)
    assert read_exit_file(tmp_path / "ghost.exit") == record


async def test_a_spawn_cancelled_anywhere_leaves_no_process(processes: LocalProcesses, tmp_path: Path) -> None:
    await processes.open()
    argv = ["/bin/sleep", f"1000.{os.getpid()}"]  # no shell: it would have another command line until its own exec
    mark = " ".join(argv)

    def marked() -> list[str]:
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                except (FileNotFoundError, ProcessLookupError):
                    continue
                if command.startswith(mark):
                    found.append(command)
        return found

    async def nothing_left() -> None:
        assert marked() == []
        (tmp_path / "child.exit").unlink(missing_ok=True)

    async def completed(child) -> None:  # type: ignore[no-untyped-def]
        assert len(marked()) == 1
        child.kill(signal.SIGKILL)
        await child.wait()

    assert await cancel_everywhere(lambda: processes.spawn(replace(spec(tmp_path, ""), argv=argv)), completed, nothing_left) > 0


async def test_a_home_with_a_long_path(tmp_path: Path) -> None:
    home = tmp_path / ("long" * 40)
    home.mkdir()
    processes = LocalProcesses(home)
    child = await processes.spawn(spec(home, "exit 4"))
    assert (await child.wait()).code == 4
    processes.close()


async def test_a_foreign_packet_costs_the_sender_its_connection_only(processes: LocalProcesses, tmp_path: Path) -> None:
    await processes.open()
    from torpor.proc.link import connect

    rogue = connect(tmp_path)
    assert rogue is not None
    rogue.send(b"this is not JSON")
    assert rogue.recv(100) == b""
    rogue.close()
    child = await processes.spawn(spec(tmp_path, "exit 0"))
    assert (await child.wait()).code == 0


async def test_who_waits_for_a_child_that_was_let_go_is_cancelled_and_the_child_runs_on(processes: LocalProcesses, tmp_path: Path) -> None:
    child = await processes.spawn(spec(tmp_path, "exec sleep 1000"))
    waiting = asyncio.ensure_future(child.wait())
    await asyncio.sleep(0)
    processes.close()
    await asyncio.wait({waiting})
    assert waiting.cancelled()
    later = LocalProcesses(tmp_path)
    adopted = await later.adopt("child", child.pid, child.start_time, tmp_path / "child.exit")
    assert not isinstance(adopted, ExitRecord)
    adopted.kill(signal.SIGKILL)
    await adopted.wait()
    later.close()


async def test_a_child_born_after_its_daemon_left_is_killed(processes: LocalProcesses, tmp_path: Path) -> None:
    """Nobody knows of it: the daemon hung up before it heard the child's number."""
    await processes.open()
    read_end, write_end = os.pipe()
    leaving = connect(tmp_path)
    assert leaving is not None
    message = {**_spawn_message(replace(spec(tmp_path, "exec sleep 1000"), fds={3: write_end})), "id": 1}
    socket.send_fds(leaving, [protocol.encode(message)], [write_end])
    leaving.close()
    os.close(write_end)
    async with asyncio.timeout(60):
        assert await asyncio.to_thread(os.read, read_end, 1) == b""  # its copy of the other end went with it
    os.close(read_end)
