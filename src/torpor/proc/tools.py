"""Short-lived tools: argument lists, a scrubbed environment, always reaped."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torpor.model.errors import MissingTool, NoPermission, TimedOut
from torpor.ports.processes import Completed

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BASE_ENVIRONMENT = {"PATH": PATH, "LC_ALL": "C.UTF-8"}


OnLine = Callable[[bytes], None]


async def run(
    argv: Sequence[str],
    *,
    timeout: float,
    stdin: bytes | None = None,
    env: Mapping[str, str] | None = None,
    on_line: OnLine | None = None,
) -> Completed:
    """ports.Processes.run."""
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=BASE_ENVIRONMENT if env is None else dict(env),
            start_new_session=True,
        )
    )
    try:
        process = await asyncio.shield(starting)
    except asyncio.CancelledError:
        # asyncio's own cleanup would kill the tool alone and leave what it has started already
        await _finish(starting)
        if starting.exception() is None:
            await _end(starting.result())
        raise
    except FileNotFoundError as error:
        raise MissingTool(f"There is no program {argv[0]}.") from error
    except PermissionError as error:
        raise NoPermission(f"{argv[0]} may not be run: {error.strerror}.") from error
    try:
        async with asyncio.timeout(timeout):
            stdout, stderr = await _talk(process, stdin, on_line)
    except TimeoutError as error:
        await _end(process)
        raise TimedOut(f"{' '.join(argv)} did not end within {timeout:g} s.") from error
    except BaseException:
        await _end(process)
        raise
    assert process.returncode is not None
    return Completed(process.returncode, stdout, stderr)


async def _talk(process: asyncio.subprocess.Process, stdin: bytes | None, on_line: OnLine | None) -> tuple[bytes, bytes]:
    """As communicate, with each line told as it comes."""
    if on_line is None:
        return await process.communicate(stdin)
    assert process.stdout is not None
    assert process.stderr is not None
    readers = [asyncio.ensure_future(_lines(stream, on_line)) for stream in (process.stdout, process.stderr)]
    try:
        if process.stdin is not None:
            process.stdin.write(stdin or b"")
            process.stdin.close()
        stdout, stderr = await asyncio.gather(*readers)
        await process.wait()
    finally:
        for reader in readers:
            reader.cancel()
            await _finish(reader)
    return stdout, stderr


async def _lines(stream: asyncio.StreamReader, on_line: OnLine) -> bytes:
    whole, rest = bytearray(), b""
    while data := await stream.read(65536):
        whole += data
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            on_line(line)
    if rest:
        on_line(rest)
    return bytes(whole)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kills the tool's whole process group and reaps it, also when cancelled meanwhile."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it ended by itself in this moment
    await _finish(asyncio.ensure_future(_reap(process)))


async def _reap(process: asyncio.subprocess.Process) -> None:
    """Takes out what the tool still said: asyncio tells its end after that of its pipes, and reads no more of a pipe whose reader left much behind."""
    for stream in (process.stdout, process.stderr):
        while stream is not None and await stream.read(65536):
            continue
    await process.wait()


async def _finish(task: asyncio.Future[Any]) -> None:
    """Waits until `task` is done, however often cancelled: it ends at once, and the caller raises what it has to raise."""
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            continue
