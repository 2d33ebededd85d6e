"""The code interpreter: the first cell after a create beside the tenth, without a pool and from one."""

from __future__ import annotations

import json

import h11

from floor import Clock
from setting import SMALL, Bench
from torpor.host.agent import CreateSpec
from torpor.host.pool import Kind
from torpor.model.sandbox import NetworkMode
from torpor.ports.guest import Guest

NAME = "code-interpreter-v1"
PORT = 49999
CELLS = 10
_BODY = json.dumps({"code": "1+1", "context_id": None, "language": None, "env_vars": None}).encode()


async def measure(bench: Bench) -> None:
    """Needs an engine with a pool. Adds `cell_first` and `cell_pooled`, each beside the tenth cell of the same sandbox as its floor."""
    agent = bench.engine.agent
    await bench.engine.ensure(NAME, lambda what, done: bench.say(f"{done:4.0%} {what}"))
    await agent.warm(NAME, SMALL)
    agent.pool.stock(Kind(NAME, SMALL, NetworkMode.OFF))
    for number in range(bench.counts.pooled):
        bench.say(f"code interpreter: {number + 1} of {bench.counts.pooled}")
        for key, pooled in (("cell_first", False), ("cell_pooled", True)):
            await agent.pool.filled()
            async with bench.attempt(key):
                sandbox = await agent.create(CreateSpec(NAME, SMALL, NetworkMode.OFF, pooled=pooled))
                took = [await cell(await sandbox.guest()) for _ in range(CELLS)]
                bench.samples.add(key, took[0], floor=took[-1])
                await agent.kill(sandbox.id)


async def cell(guest: Guest) -> float:
    """Milliseconds from the request to the end of the answer, on a connection of its own. Raises AssertionError for a wrong answer."""
    clock = Clock()
    stream = await guest.connect(PORT)
    ours = h11.Connection(h11.CLIENT)
    headers = [("Host", "guest"), ("Content-Type", "application/json"), ("Content-Length", str(len(_BODY)))]
    sent = [ours.send(h11.Request(method="POST", target="/execute", headers=headers)), ours.send(h11.Data(_BODY)), ours.send(h11.EndOfMessage())]
    await stream.write(b"".join(piece or b"" for piece in sent))
    received = b""
    while not isinstance(event := ours.next_event(), h11.EndOfMessage):
        if event is h11.NEED_DATA:
            ours.receive_data(await stream.read())
        elif isinstance(event, h11.Data):
            received += bytes(event.data)
    took = clock()
    stream.close()
    assert b'"text": "2"' in received, received
    return took
