"""Short-lived tools."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from torpor.model.errors import MissingTool, NoPermission, TimedOut
from torpor.proc import tools


async def test_output_input_and_code() -> None:
    done = await tools.run(["sh", "-c", "cat; echo err >&2; exit 3"], timeout=30, stdin=b"in")
    assert (done.code, done.stdout, done.stderr) == (3, b"in", b"err\n")


async def test_the_environment_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    done = await tools.run(["env"], timeout=30, env={"GIVEN": "y"})
    assert b"GIVEN=y" in done.stdout
    assert b"SECRET" not in done.stdout


async def test_missing_and_forbidden(tmp_path: Path) -> None:
    with pytest.raises(MissingTool, match="no-such-tool"):
        await tools.run(["no-such-tool"], timeout=1)
    (tmp_path / "file").write_text("not a program")
    with pytest.raises(NoPermission):
        await tools.run([str(tmp_path / "file")], timeout=1)


def heard(pipe: int) -> bytes:
    """What has been said so far; nothing is said while nobody has the other end open."""
    try:
        return os.read(pipe, 100)
    except BlockingIOError:
        return b""


@pytest.mark.parametrize("how", ["time-out", "cancel"])
async def test_it_is_killed_with_its_whole_group(tmp_path: Path, how: str) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    argv = ["sh", "-c", f"exec 3> {fifo}; sleep 1000 & echo begun >&3; wait"]
    for seconds in (0.5, 5.0, 50.0):  # a busy machine may not even have begun it after the first
        said, pipe = b"", os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        running = asyncio.ensure_future(tools.run(argv, timeout=seconds if how == "time-out" else 1000))
        if how == "cancel":
            while not said:
                said += heard(pipe)
                await asyncio.sleep(0.01)
            running.cancel()
        with pytest.raises(TimedOut if how == "time-out" else asyncio.CancelledError):
            await running
        os.set_blocking(pipe, True)
        with os.fdopen(pipe, "rb") as rest:
            said += await asyncio.to_thread(rest.read)  # ends when the shell and its child have
        if said:
            break
    assert said == b"begun\n"


async def test_one_that_says_more_than_is_read_is_ended_too() -> None:
    """What is left in a pipe that nobody reads any more must not hide the tool's end."""
    with pytest.raises(TimedOut):
        async with asyncio.timeout(60):
            await tools.run(["yes"], timeout=0.5, on_line=lambda _: None)
