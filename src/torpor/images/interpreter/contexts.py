"""Contexts: a language, a directory, and a kernel that keeps what cells define. Cells of one context run one after another, of several side by side.

A cell whose reader left is interrupted, and again if it goes on; what it says then is thrown away. A kernel that ended is replaced at the next cell, which
begins with nothing defined.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping

from .kernels import Ended, Json, Kernel, KernelFailedError
from .languages import Starter, language
from .reseed import names

_AHEAD = 64
"""Events a cell may be ahead of its reader; then its kernel waits."""
_PATIENCE = 2.0
_INTERRUPTS = 3
Listener = Callable[[Json], None]


class NoContextError(Exception):
    """There is no context of that id."""


class Cell:
    """One run of code. `events` ends after {"event": "done", "ok", "count"}."""

    def __init__(self, code: str, env: Mapping[str, str], *, silent: bool = False) -> None:
        self.code, self.env, self.silent = code, env, silent
        self.count = 0
        self.started = False
        self._queue: asyncio.Queue[Json] = asyncio.Queue(_AHEAD)
        self._left = asyncio.Event()

    @property
    def abandoned(self) -> bool:
        return self._left.is_set()

    def abandon(self) -> None:
        """Nobody reads on: a cell that has not begun does not run, one that runs is interrupted."""
        self._left.set()
        while not self._queue.empty():  # whoever waits to put something in goes on
            self._queue.get_nowait()
        self._queue.put_nowait({"event": "done", "ok": False, "count": self.count})

    async def left(self) -> None:
        await self._left.wait()

    async def put(self, event: Json) -> None:
        if not self.abandoned:
            await self._queue.put(event)

    async def events(self) -> AsyncIterator[Json]:
        while True:
            event = await self._queue.get()
            yield event
            if event["event"] == "done":
                return


class Context:
    """`kernel_name` is what it is called among Jupyter's kernels."""

    def __init__(self, starter: Starter, name: str, cwd: str, kernel_name: str) -> None:
        self.id = str(uuid.uuid4())
        self.language, self.cwd, self.kernel_name = name, cwd, kernel_name
        self.last_activity = time.time()
        self.busy = False
        self.count = 0
        self.listeners: set[Listener] = set()
        self._starter = starter
        self._kernel: Kernel | None = None
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._starting = asyncio.Lock()

    async def start(self) -> Kernel:
        """The kernel, started if there is none. Raises KernelFailedError, NoContextError."""
        async with self._starting:
            if self._closed:
                raise NoContextError(f"The context {self.id} was removed.")
            if self._kernel is None or not self._kernel.alive:
                old, self._kernel = self._kernel, None
                if old is not None:
                    await old.close()
                self.count = 0
                if not os.path.isdir(self.cwd):
                    raise KernelFailedError(f"The context's directory {self.cwd} is not there.")
                self._kernel = await self._starter.start(self.language, self.cwd, names(), self._background)
            return self._kernel

    async def _background(self, event: Json) -> None:
        """Output when no cell runs: of threads and of programs left running."""
        for listener in list(self.listeners):
            listener(event)

    def run(self, cell: Cell) -> None:
        """Has the cell run when it is its turn."""
        task = asyncio.create_task(self._run(cell))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, cell: Cell) -> None:
        ok = False
        async with self._turn:
            self.last_activity = time.time()
            self.busy = True
            watcher = asyncio.create_task(self._interrupt_when_left(cell))
            try:
                if not cell.abandoned:
                    kernel = await self.start()
                    ok = await self._ask(kernel, cell)
            except (Ended, KernelFailedError, NoContextError) as error:
                await cell.put({"event": "error", "name": "KernelDied", "value": str(error), "traceback": []})
            finally:
                watcher.cancel()
                self.busy = False
                self.last_activity = time.time()
        await cell.put({"event": "done", "ok": ok, "count": cell.count})

    async def _ask(self, kernel: Kernel, cell: Cell) -> bool:
        if not cell.silent:
            self.count += 1
        cell.count, cell.started = self.count, True
        await cell.put({"event": "started", "count": cell.count})
        done = await kernel.ask({"op": "run", "code": cell.code, "count": cell.count, "env": dict(cell.env), "silent": cell.silent}, cell.put)
        return bool(done["ok"])

    async def _interrupt_when_left(self, cell: Cell) -> None:
        await cell.left()
        for _ in range(_INTERRUPTS):
            self.interrupt()
            await asyncio.sleep(_PATIENCE)  # the cell's end cancels this

    def interrupt(self) -> None:
        """The running cell; when none runs, nothing."""
        if self.busy and self._kernel is not None:
            self._kernel.interrupt()

    async def complete(self, code: str, cursor: int) -> Json:
        """What could stand at `cursor`; nothing while a cell runs, and for languages that cannot tell."""
        if self.language != "python" or self.busy:
            return {"matches": [], "start": cursor, "end": cursor}
        async with self._turn:
            kernel = await self.start()
            return await kernel.ask({"op": "complete", "code": code, "cursor": cursor}, None)

    async def forget(self) -> None:
        """As new, in the same kernel."""
        async with self._turn:
            await (await self.start()).ask({"op": "forget"}, None)
            self.count = 0

    async def restart(self) -> None:
        """A new kernel; the running cell ends with an error. Raises KernelFailedError."""
        if self._kernel is not None:
            await self._kernel.close()
        await self.start()

    async def close(self) -> None:
        self._closed = True
        async with self._starting:
            if self._kernel is not None:
                await self._kernel.close()


class Contexts:
    """All of them, in the order they were made. The first of a language is its default, made when it is first asked for."""

    def __init__(self, starter: Starter, cwd: str) -> None:
        self._starter = starter
        self.cwd = cwd
        self._contexts: dict[str, Context] = {}
        self._defaults: dict[str, str] = {}

    def list(self) -> list[Context]:
        return list(self._contexts.values())

    def get(self, context_id: str) -> Context:
        """Raises NoContextError."""
        found = self._contexts.get(context_id)
        if found is None:
            raise NoContextError(f"There is no context {context_id[:60]!r}.")
        return found

    def default(self, name: str) -> Context:
        """Raises UnknownLanguageError."""
        known = language(name)
        found = self._contexts.get(self._defaults.get(known, ""))
        if found is None:
            found = self._add(known, self.cwd, "wrenn" if known == "python" else known)
            self._defaults[known] = found.id
        return found

    def _add(self, known: str, cwd: str, kernel_name: str) -> Context:
        context = Context(self._starter, known, cwd, kernel_name)
        self._contexts[context.id] = context
        return context

    async def create(self, name: str = "python", cwd: str = "", kernel_name: str = "") -> Context:
        """A context whose kernel runs. Raises UnknownLanguageError, KernelFailedError; none is left then."""
        known = language(name)
        context = self._add(known, os.path.join(self.cwd, cwd) if cwd else self.cwd, kernel_name or known)
        try:
            await context.start()
        except BaseException:
            with contextlib.suppress(NoContextError):
                await asyncio.shield(self.remove(context.id))
            raise
        return context

    async def remove(self, context_id: str) -> None:
        """Raises NoContextError."""
        context = self.get(context_id)
        del self._contexts[context_id]
        await context.close()

    async def close(self) -> None:
        for context in self.list():
            await self.remove(context.id)
