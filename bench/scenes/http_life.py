"""S1 without the pool, S3, S4 and S5 over HTTP: create, first command, commands after it, a stream, pause, resume. The floor's round and the server's take
turns."""

from __future__ import annotations

import asyncio
import base64
import json

import websockets

from floor import SHELL_TRUE as BARE_SHELL_TRUE
from floor import TRUE, Clock
from serving import Api, Server
from stage import SHELL_TRUE, Stage, change, run, sandbox

COMMANDS = 8
BYTES = 20


async def measure(stage: Stage) -> None:
    async with stage.server(TORPOR_POOL_SIZE="0") as server, server.api() as api:
        async with sandbox(api) as (capsule, _):  # what is imported at the first use is no part of any figure
            await run(api, capsule, SHELL_TRUE)
        for number in range(stage.counts.idle):
            stage.say(f"create, exec, pause, resume: round {number + 1} of {stage.counts.idle}")
            await stage.bare(lambda: _bare(stage))
            async with stage.attempt("h_create"):
                await _round(stage, server, api)


def _bare(stage: Stage) -> None:
    samples, floor = stage.samples, stage.small
    vm, start = floor.start()
    first = floor.run(vm, BARE_SHELL_TRUE)
    samples.add("h_create", floor=start)
    samples.add("h_first_exec", floor=first)
    samples.add("h_first_result", floor=start + first)
    floor.run(vm, TRUE)
    for took in floor.spawn(vm, COMMANDS + 1)[1:]:
        samples.add("h_exec_true", floor=took)
    for _ in range(COMMANDS):
        samples.add("h_exec_engine", floor=floor.run(vm, TRUE))
    floor.kill(vm)


async def _round(stage: Stage, server: Server, api: Api) -> None:
    samples = stage.samples
    async with sandbox(api) as (capsule, start):
        first, _ = await run(api, capsule, SHELL_TRUE)
        samples.add("h_create", start)
        samples.add("h_first_exec", first)
        samples.add("h_first_result", start + first)
        samples.add("h_resume", floor=start)
        await run(api, capsule, TRUE)
        for _ in range(COMMANDS):
            took, _ = await run(api, capsule, TRUE)
            samples.add("h_exec_true", took)
            samples.add("h_exec_engine", took)
        await _stream(stage, server, capsule)
        samples.add("h_pause", await change(api, capsule, "pause"))
        samples.add("h_resume", await change(api, capsule, "resume"))


async def _stream(stage: Stage, server: Server, capsule: str) -> None:
    """A byte to `cat` and back: twice the way of a first byte of output, so that no clock of the guest's is needed."""
    url = f"ws://127.0.0.1:{server.port}/v1/capsules/{capsule}/exec/stream"
    async with websockets.connect(url, additional_headers={"X-API-Key": server.key}, compression=None) as socket:
        await socket.send(json.dumps({"type": "start", "cmd": "/bin/cat", "stdin": True, "encoding": "base64"}))
        await _frame(socket, "start")
        for number in range(BYTES):
            data = base64.b64encode(b"x").decode()
            clock = Clock()
            await socket.send(json.dumps({"type": "stdin", "data": data}))
            await _frame(socket, "stdout")
            if number:
                stage.samples.add("h_first_byte", clock())
        await socket.send(json.dumps({"type": "stdin_close"}))
        await _frame(socket, "exit")


async def _frame(socket: websockets.ClientConnection, kind: str) -> None:
    async with asyncio.timeout(10):
        while json.loads(await socket.recv())["type"] != kind:
            pass
