"""The client against the real application, whose guests are the real agent, on a server that can be stopped and started again at the same address; and one
way to write a scenario for both faces of the client."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn

sys.path.append(str(Path(__file__).parents[1] / "api"))  # its worlds

from api_world import app_on, no_signals, running_agent
from plane_world import AgentHost, cheap

from torpor.apps.control import Wired, control_plane
from torpor.apps.serve import Listening, configuration, listen
from torpor.client import AsyncClient, Client
from torpor.hostlink.local import LocalHosts


class Restartable:
    """`url` and `key` are the same over all restarts. `home` is the home of the guest's user."""

    def __init__(self, folder: Path, agent: Path) -> None:
        self.home = folder / "home"
        self.host = AgentHost(agent, self.home)
        self.key = ""
        self.port = 0
        self._folder = folder
        self._stack = AsyncExitStack()
        self._server: uvicorn.Server
        self.wired: Wired

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self.wired = await self._stack.enter_async_context(control_plane(LocalHosts(self.host), self._folder / "records.db", people=cheap()))
        if self.wired.first is not None:
            self.key = self.wired.first.key
        where = Listening("127.0.0.1", self.port)
        listener = listen(where)
        self.port = listener.getsockname()[1]
        self._app = app_on(self.wired.services)
        self._server = uvicorn.Server(configuration(self._app, where))
        self._server.capture_signals = no_signals  # type: ignore[method-assign]
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]))

    async def stop(self) -> None:
        """As on SIGTERM: streams are told to end, open requests are given a moment."""
        self._server.should_exit = True
        self._app.state.stopping.set()
        await self._task
        await self._stack.aclose()
        self._stack = AsyncExitStack()
        await self.host.close()

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    def cut(self) -> None:
        """Breaks every connection, as a network does; the server stays."""
        for connection in list(self._server.server_state.connections):
            transport = getattr(connection, "transport", None)
            if transport is not None:
                transport.abort()


@asynccontextmanager
async def restartable(folder: Path) -> AsyncIterator[Restartable]:
    with running_agent(folder) as agent:
        server = Restartable(folder, agent)
        await server.start()
        try:
            yield server
        finally:
            await server.stop()


class Awaited:
    """A plain object of the client, used as its asynchronous counterpart: each call in a thread."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.inner, name)
        if not callable(value):
            return _awaited(value)
        if str(value.__annotations__.get("return", "")).startswith("Iterator["):
            return lambda *words, **named: _items(value, words, named)
        return lambda *words, **named: _call(value, words, named)

    async def __aenter__(self) -> Awaited:
        await asyncio.to_thread(self.inner.__enter__)
        return self

    async def __aexit__(self, *error: object) -> None:
        await asyncio.to_thread(self.inner.__exit__, *error)


def _awaited(value: Any) -> Any:
    if isinstance(value, list):
        return [_awaited(each) for each in value]
    return Awaited(value) if type(value).__module__ == "torpor.client.synchronous" else value


async def _call(function: Callable[..., Any], words: Any, named: Any) -> Any:
    return _awaited(await asyncio.to_thread(function, *words, **named))


async def _items(function: Callable[..., Any], words: Any, named: Any) -> AsyncIterator[Any]:
    found = function(*words, **named)
    nothing = object()
    try:
        while (item := await asyncio.to_thread(lambda: next(found, nothing))) is not nothing:
            yield _awaited(item)
    finally:
        await asyncio.to_thread(found.close)


def open_face(face: str, url: str, key: str, **how: Any) -> Any:
    """A context of the asynchronous client, or of the plain one used like it."""
    return AsyncClient(url, key, **how) if face == "async" else Awaited(Client(url, key, **how))
