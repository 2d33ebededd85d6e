"""Commands over plain requests: run one to its end, start one in the background, list and signal what runs."""

from __future__ import annotations

import asyncio
import base64
import binascii
import secrets
import signal
import time
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Path, Query
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from torpor.api.errors import body_of, clean, row_of
from torpor.api.follow import Follower, Hub
from torpor.api.middleware import request_id_of
from torpor.api.native.common import CapsuleId, Given, Inside, Runner, hub_of, router
from torpor.api.native.ids import Prefix, inner, show, stamp
from torpor.api.native.models import Background, Exec, ExecAnswer, Processes
from torpor.api.native.paths import absolute
from torpor.api.services import Services
from torpor.model.errors import Conflict, InvalidInput, NotFound, TimedOut
from torpor.ports.guest import ExecSpec, Exited, Guest, ProcessInfo, StreamName
from torpor.service.caller import Caller

commands = router("commands", kind=Inside)

DEFAULT_SECONDS = 30
MOST_OUTPUT = 8 << 20
"""Bytes of each stream that an answer holds. What comes beyond is counted, and the answer says `truncated`."""
_MOST_PID = 1 << 32
Selector = Annotated[str, Path(max_length=256, description="A pid in decimal digits, or a tag.")]


@dataclass(slots=True)
class Kept:
    """The first bytes of a stream, and how many came in all."""

    data: bytearray = field(default_factory=bytearray)
    total: int = 0

    def add(self, piece: bytes) -> None:
        self.total += len(piece)
        self.data += piece[: MOST_OUTPUT - len(self.data)]


async def environment(services: Services, caller: Caller, sandbox_id: str, given: Mapping[str, str] | None) -> dict[str, str]:
    """The variables of a command: the sandbox's own, then those that came with it."""
    return {**(await services.sandboxes.get(caller, sandbox_id)).env, **(given or {})}


def spec_of(body: Exec, env: Mapping[str, str], guest: Guest, *, timeout: float | None, tag: str = "") -> ExecSpec:
    return ExecSpec(
        argv=[body.cmd, *(body.args or ())],
        env=env,
        cwd=absolute(body.cwd, guest.default_home) if body.cwd else "",
        user=body.user or "",
        stdin=body.stdin is not None,
        timeout=timeout,
        tag=tag,
    )


@commands.post("/capsules/{capsule_id}/exec", response_model=ExecAnswer, responses={202: {"model": Background, "description": "Started in the background."}})
async def execute(request: Request, capsule_id: CapsuleId, body: Exec, caller: Runner, services: Given) -> Response:
    """Runs a command to its end and answers with its output. At the time-out, or when the caller leaves, it and all it started are killed. In the background
    it is left alone, and the answer comes at once."""
    sandbox_id, given = inner(Prefix.SANDBOX, capsule_id), _stdin(body)
    async with services.sandboxes.use(caller, sandbox_id, "exec") as guest:
        env = await environment(services, caller, sandbox_id, body.envs)
        if body.background:
            async with alone(hub_of(request), sandbox_id, guest, body.tag):
                return JSONResponse(await _start(guest, sandbox_id, body, env, given), 202)
        seconds = DEFAULT_SECONDS if body.timeout_sec is None else body.timeout_sec
        begin = time.monotonic()
        async with alone(hub_of(request), sandbox_id, guest, body.tag):
            process = await guest.exec(spec_of(body, env, guest, timeout=seconds if seconds > 0 else None, tag=body.tag or ""))
        follower = hub_of(request).begin(sandbox_id, guest, process)
        kept = {StreamName.STDOUT: Kept(), StreamName.STDERR: Kept()}
        try:
            exited = await _unless_gone(request, follower, _to_the_end(follower, kept, given))
        finally:
            follower.leave()
        if exited is None:
            return Response(status_code=499)
        tree = _tree(sandbox_id, body.cmd, kept, exited, time.monotonic() - begin)
        if not exited.timed_out:
            return JSONResponse(tree)
        late = TimedOut(f"The command ran longer than {seconds} s and was killed, with all it started.")
        return JSONResponse(body_of(late, request_id_of(request.scope)) | tree, row_of(late).status)


@asynccontextmanager
async def alone(hub: Hub, sandbox_id: str, guest: Guest, tag: str | None) -> AsyncIterator[None]:
    """Around the start of a command with a tag of the caller's: no other one of this tag runs. Raises Conflict."""
    if not tag:
        yield
        return
    async with hub.naming(sandbox_id, tag):
        if any(info.tag == tag and info.exited is None for info in await guest.processes()):
            raise Conflict(f"A command with the tag {tag[:80]!r} runs already.")
        yield


def _stdin(body: Exec) -> bytes | None:
    if body.stdin is None:
        return None
    if body.stdin_encoding == "utf-8":
        return body.stdin.encode()
    try:
        return base64.b64decode(body.stdin, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput("stdin is no base64.") from None


async def _start(guest: Guest, sandbox_id: str, body: Exec, env: Mapping[str, str], given: bytes | None) -> dict[str, Any]:
    """A background command. Without a tag it gets one; what it reads must fit what a pipe takes at once, for nobody stays to feed it."""
    if given is not None and len(given) > 65536:
        raise InvalidInput("A background command may be given 65536 bytes of stdin; use a stream for more.")
    tag = body.tag or f"proc-{secrets.token_hex(4)}"
    timeout = body.timeout_sec if body.timeout_sec is not None and body.timeout_sec > 0 else None
    process = await guest.exec(spec_of(body, env, guest, timeout=timeout, tag=tag))
    if given is not None:
        await process.write(given)
        await process.close_stdin()
    process.detach()
    return {"sandbox_id": show(Prefix.SANDBOX, sandbox_id), "cmd": body.cmd, "pid": process.pid, "tag": tag, "exec_id": process.exec_id}


async def _to_the_end(process: Follower, kept: dict[StreamName, Kept], given: bytes | None) -> Exited:
    feeding = asyncio.create_task(_feed(process, given)) if given is not None else None
    try:
        async for piece in process.output():
            kept[piece.stream].add(piece.data)
        return await process.wait()
    finally:
        if feeding is not None:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)


async def _feed(process: Follower, given: bytes) -> None:
    """A command that does not read all of its input is its own affair: the error of this task is dropped with it."""
    await process.write(given)
    await process.close_stdin()


async def _unless_gone(request: Request, process: Follower, work: Coroutine[Any, Any, Exited]) -> Exited | None:
    """The result of `work`, or None when the caller left before: then the command is killed with all it started. When this is cancelled (the server stops) it
    runs on, and may be followed by its tag from the next server."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_left(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return await working
        await asyncio.shield(process.kill_tree())
        return None
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _tree(sandbox_id: str, cmd: str, kept: dict[StreamName, Kept], exited: Exited, seconds: float) -> dict[str, Any]:
    out, err = kept[StreamName.STDOUT], kept[StreamName.STDERR]
    encoding, stdout, stderr = encode(bytes(out.data), bytes(err.data))
    tree = {
        "sandbox_id": show(Prefix.SANDBOX, sandbox_id),
        "cmd": cmd,
        "stdout": stdout,
        "stderr": stderr,
        "exit_code": exited.shell_code,
        "duration_ms": int(seconds * 1000),
        "encoding": encoding,
        "truncated": max(out.total, err.total) > MOST_OUTPUT,
        "stdout_bytes": out.total,
        "stderr_bytes": err.total,
    }
    if exited.oom:
        tree["oom"] = True
    return tree


def encode(stdout: bytes, stderr: bytes) -> tuple[str, str, str]:
    """(encoding, stdout, stderr): as text when both are UTF-8, else both as base64. A character that the cut at MOST_OUTPUT split does not count."""
    try:
        return "utf-8", _decoded(stdout), _decoded(stderr)
    except UnicodeDecodeError:
        return "base64", base64.b64encode(stdout).decode(), base64.b64encode(stderr).decode()


def _decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        if len(data) == MOST_OUTPUT and error.reason == "unexpected end of data":
            return data[: error.start].decode()
        raise


# What runs


def process_tree(info: ProcessInfo) -> dict[str, Any]:
    tree: dict[str, Any] = {
        "pid": info.pid,
        "cmd": clean(info.argv[0]),
        "args": [clean(word) for word in info.argv[1:]],
        "exec_id": info.exec_id,
        "cwd": clean(info.cwd),
        "user": clean(info.user),
        "terminal": info.terminal,
        "started_at": stamp(info.started_at),
    }
    if info.tag:
        tree["tag"] = clean(info.tag)
    if info.exited is not None:
        tree["exit_code"] = info.exited.shell_code
    return tree


def select(processes: Sequence[ProcessInfo], selector: str, *, ended: bool = False) -> ProcessInfo:
    """The command with this pid or tag: a running one, else, with `ended`, the latest that ended. Raises NotFound."""
    pid = int(selector) if selector.isascii() and selector.isdigit() and len(selector) <= 10 else None
    found = [info for info in processes if (info.pid == pid if pid is not None and pid < _MOST_PID else info.tag == selector)]
    running = [info for info in found if info.exited is None]
    if running or (ended and found):
        return max(running or found, key=lambda info: info.started_at)
    raise NotFound(f"No process {selector[:80]!r} runs in this sandbox.")


@commands.get("/capsules/{capsule_id}/processes", response_model=Processes)
async def processes(
    capsule_id: CapsuleId,
    caller: Runner,
    services: Given,
    ended: Annotated[bool, Query(description="Ended ones too, as far as they are remembered.")] = False,
) -> Response:
    """The commands that were started through the API and run."""
    async with services.sandboxes.use(caller, inner(Prefix.SANDBOX, capsule_id), "processes") as guest:
        found = [info for info in await guest.processes() if ended or info.exited is None]
    return JSONResponse({"processes": [process_tree(info) for info in found]})


@commands.delete("/capsules/{capsule_id}/processes/{selector}", status_code=204, response_class=Response)
async def kill(
    capsule_id: CapsuleId,
    selector: Selector,
    caller: Runner,
    services: Given,
    signal_: Annotated[str, Query(alias="signal", max_length=20, description="SIGTERM; anything else kills the command and all it started.")] = "SIGKILL",
) -> Response:
    """Signals a command."""
    async with services.sandboxes.use(caller, inner(Prefix.SANDBOX, capsule_id), "kill") as guest:
        info = select(await guest.processes(), selector)
        if signal_ == "SIGTERM":
            await guest.signal(info.exec_id, signal.SIGTERM)
        else:
            await guest.kill_tree(info.exec_id)
    return Response(status_code=204)
