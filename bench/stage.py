"""What the scenes over HTTP work with: servers on one home, bare VMs beside them, and the steps that they share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from figures import Samples
from floor import Clock, Floor
from serving import WAIT, Api, Refused, Server
from setting import LIMIT, SMALL, Counts
from torpor.model.shapes import Shape

TEMPLATE = "base"
"""What `torpor serve` keeps ready in its pool."""
INTERPRETER = "code-interpreter-v1"
SHELL_TRUE = ("/bin/sh", "-c", "true")
T = TypeVar("T")


@dataclass(frozen=True)
class Stage:
    """`small` and `large` are the floors for setting.SMALL and LARGE, on the same template."""

    home: Path
    small: Floor
    large: Floor
    counts: Counts
    samples: Samples
    say: Callable[[str], None]

    @asynccontextmanager
    async def server(self, **variables: str) -> AsyncIterator[Server]:
        server = Server(self.home, **variables)
        await asyncio.to_thread(server.start)
        try:
            yield server
        finally:
            await asyncio.to_thread(server.stop)

    async def bare(self, work: Callable[[], T]) -> T:
        """Runs a bare measurement in a thread."""
        return await asyncio.to_thread(work)

    @asynccontextmanager
    async def attempt(self, key: str) -> AsyncIterator[None]:
        """Another answer than was wanted, or none within LIMIT, counts as a failed attempt at `key`; the run goes on."""
        try:
            async with asyncio.timeout(LIMIT):
                yield
        except (Refused, TimeoutError, OSError, asyncio.IncompleteReadError) as error:
            self.samples.fail(key, error)
            self.say(f"  {key} failed: {error}")


async def create(api: Api, shape: Shape = SMALL, **fields: Any) -> str:
    """The id of a running sandbox."""
    body = {"template": TEMPLATE, "vcpus": shape.vcpus, "memory_mb": shape.memory_mib} | fields
    tree = (await api.call("POST", "/v1/capsules", body, WAIT)).tree(201)
    return str(tree["id"])


async def kill(api: Api, *capsules: str) -> None:
    for capsule in capsules:
        (await api.call("DELETE", f"/v1/capsules/{capsule}", None, WAIT)).tree(204)


@asynccontextmanager
async def sandbox(api: Api, shape: Shape = SMALL, **fields: Any) -> AsyncIterator[tuple[str, float]]:
    """A new one, and the milliseconds its create took. It is killed at the end."""
    clock = Clock()
    capsule = await create(api, shape, **fields)
    took = clock()
    try:
        yield capsule, took
    finally:
        await kill(api, capsule)


async def run(api: Api, capsule: str, argv: Sequence[str], **fields: Any) -> tuple[float, str]:
    """One command to its end: milliseconds, and what it said."""
    clock = Clock()
    answer = await api.call("POST", f"/v1/capsules/{capsule}/exec", {"cmd": argv[0], "args": list(argv[1:])} | fields)
    took = clock()
    tree = answer.tree(200)
    if tree["exit_code"]:
        raise Refused(f"{argv}: {tree}")
    return took, str(tree["stdout"])


async def change(api: Api, capsule: str, verb: str, body: Any = None) -> float:
    """`pause`, `resume`, ... to its end; milliseconds."""
    clock = Clock()
    answer = await api.call("POST", f"/v1/capsules/{capsule}/{verb}", body, WAIT)
    took = clock()
    answer.tree(200, 201)
    return took
