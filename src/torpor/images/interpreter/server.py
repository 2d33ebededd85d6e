"""The service: both ports, one set of contexts. It answers on /health with 200 once the default Python kernel has run cells through both ports.

python3 -c 'from torpor_code.server import main; main()' [--address A] [--e2b-port N] [--jupyter-port N] [--cwd DIR] [--generation FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import signal
import sys

from tornado.httpclient import AsyncHTTPClient, HTTPRequest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.websocket import websocket_connect

from . import e2b, jupyter
from .contexts import Contexts
from .kernels import Forks, KernelFailedError
from .languages import Starter
from .reseed import GENERATION

_ROUNDS = 12
_ROUNDS_AGAIN = 4


async def serve(options: argparse.Namespace) -> int:
    """Until SIGTERM. Returns the exit code: not 0 when the fork server ended first."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    loop.add_signal_handler(signal.SIGINT, stopped.set)
    forks = Forks(options.generation)
    contexts = Contexts(Starter(forks, options.generation), options.cwd)
    ready = asyncio.Event()
    servers = []

    async def again() -> bool:
        """Nothing ran here but rehearsals."""
        if not ready.is_set() or len(contexts.list()) != 1 or contexts.list()[0].count or contexts.list()[0].busy:
            return False
        await rehearse(contexts, options, _ROUNDS_AGAIN)
        return True

    services = (
        (options.e2b_port, e2b.application(contexts, ready=ready.is_set, rehearse=again)),
        (options.jupyter_port, jupyter.application(contexts)),
    )
    for port, application in services:
        server = HTTPServer(application, max_body_size=e2b.LARGEST_BODY, max_buffer_size=e2b.LARGEST_BODY)
        server.add_sockets(bind_sockets(port, options.address, backlog=512))
        servers.append(server)
    code = 0
    waiting = asyncio.create_task(stopped.wait())
    starting = asyncio.create_task(prepare(contexts, forks, options))
    try:
        await asyncio.wait({waiting, starting}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            ready.set()
            print("ready", flush=True)
            await waiting
    except KernelFailedError as error:
        print(f"code interpreter: {error}", file=sys.stderr, flush=True)
        code = 1
    finally:
        for server in servers:
            server.stop()
        await contexts.close()
        forks.close()
    return code


async def prepare(contexts: Contexts, forks: Forks, options: argparse.Namespace) -> None:
    """The default kernel, exercised. Raises KernelFailedError."""
    await forks.ready
    await contexts.default("python").start()
    await rehearse(contexts, options, _ROUNDS)
    gc.collect()
    gc.freeze()


async def rehearse(contexts: Contexts, options: argparse.Namespace, rounds: int) -> None:
    """A few cells through each port as clients send them; nothing of it is left. Raises KernelFailedError."""
    context = contexts.default("python")
    host = options.address.replace("0.0.0.0", "127.0.0.1")
    client = AsyncHTTPClient()
    for _ in range(rounds):
        for code in ("1+1", "print(1)"):
            body = json.dumps({"code": code, "context_id": None, "language": None, "env_vars": None})
            await client.fetch(
                HTTPRequest(f"http://{host}:{options.e2b_port}/execute", "POST", {"Content-Type": "application/json"}, body, request_timeout=300)
            )
    await client.fetch(f"http://{host}:{options.e2b_port}/contexts", request_timeout=300)
    await client.fetch(f"http://{host}:{options.jupyter_port}/api/kernels", request_timeout=300)
    socket = await websocket_connect(f"ws://{host}:{options.jupyter_port}/api/kernels/{context.id}/channels")
    for number in range(rounds):
        header = {"msg_id": str(number), "msg_type": "execute_request", "session": "", "username": "", "version": "5.3"}
        content = {"code": "1+1", "silent": False}
        await socket.write_message(json.dumps({"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}))
        while True:
            message = await socket.read_message()
            if message is None:
                raise KernelFailedError("The kernel's WebSocket closed.")
            said = json.loads(message)
            if said["msg_type"] == "status" and said["content"]["execution_state"] == "idle":
                break
    socket.close()
    await context.forget()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="code-interpreter", description="Serves code interpreter clients.")
    parser.add_argument("--address", default="0.0.0.0", help="where both ports listen")
    parser.add_argument("--e2b-port", type=int, default=49999)
    parser.add_argument("--jupyter-port", type=int, default=8888)
    parser.add_argument("--cwd", default=os.path.expanduser("~"), help="the directory of contexts that name none")
    parser.add_argument("--generation", default=GENERATION, help="the file that rises when the machine wakes")
    sys.exit(asyncio.run(serve(parser.parse_args(arguments))))
