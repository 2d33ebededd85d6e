"""A Python kernel: runs cells one after another and says what they show.

    in:   {"op": "run", "code", "count", "env", "silent"}   {"op": "complete", "code", "cursor"}   {"op": "forget"}       one JSON per line, over the
    out:  result, display, update, clear, error, and at the end of each operation {"event": "done", ...}                  control socket

What cells print goes to descriptors 1 and 2, which are pipes; it is flushed before every event, so that a reader who empties the pipes when an event
arrives has the order right. What the code after it may print waits: an event in the middle of a cell says "ack", and {"op": "ack"} answers it. Between
cells asyncio's tasks run on. A cell without a top-level await runs outside the loop, so asyncio.run() works in it.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import io
import json
import os
import random
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Coroutine, Iterator, Mapping
from typing import Any

from IPython.core.completer import provisionalcompleter, rectify_completions

from .reseed import Generation, names, reseed
from .shell import Json, Shell

_FLUSH_SECONDS = 0.1


def _set(readable: asyncio.Future[None]) -> None:
    if not readable.done():
        readable.set_result(None)


class Printer(io.TextIOWrapper):
    """Text for a pipe: written out at the end of a line, and in between when nothing was for a while, so that progress shows. A text that begins a line waits
    for the next: print() writes its newline on its own."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(io.BufferedWriter(io.FileIO(descriptor, "w", closefd=False), 8192), encoding="utf-8", errors="backslashreplace", line_buffering=True)
        self._flushed = 0.0
        self._begun = False

    def write(self, text: str) -> int:
        count = super().write(text)
        if "\n" in text:
            self._begun, self._flushed = False, time.monotonic()
        elif not self._begun:
            self._begun = True
        elif time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()
            self._flushed = time.monotonic()
        return count


class Kernel:
    """Owns the process after the fork. `generation`: the file that rises in every wake."""

    def __init__(self, shell: Shell, control: socket.socket, generation: str) -> None:
        self._shell = shell
        self._control = control
        self._rest = b""
        self._lock = threading.Lock()
        self._running = False
        self._stale = False
        self._unanswered = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._generation = Generation(generation)
        self._names = os.path.join(os.path.dirname(generation), "names")
        shell.send = self._send
        shell.loop_runner = self._await
        sys.stdout, sys.stderr = Printer(1), Printer(2)
        builtins.input = no_input
        signal.signal(signal.SIGINT, self._interrupted)
        self._generation.call_on_wake(self._woken)
        self._renew()  # its maker's randomness is another's too; and a wake before this line went unheard

    def _interrupted(self, _number: int, _frame: object) -> None:
        """An interrupt that comes when no cell runs is meant for one that has ended."""
        if self._running:
            raise KeyboardInterrupt

    def _woken(self) -> None:
        """`random` at once: other threads run beside. Not numpy's generator while it is at work: its lock is ours then, and would be waited for for ever. The
        next cell makes up for it."""
        random.seed()
        numpy = sys.modules.get("numpy.random")
        lock = numpy.mtrand._rand._bit_generator.lock if numpy is not None else None
        if lock is not None:
            if not lock.acquire(blocking=False):
                self._stale = True
                return
            lock.release()
        self._generation.changed()
        self._renew()

    def _renew(self) -> None:
        self._stale = False
        reseed()
        os.environ.update(names(self._names))

    def _send(self, event: Json) -> None:
        amid = self._running and event["event"] in ("display", "update", "clear")
        with self._lock:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):  # the user's own stream: what it does is no reason to lose an event
                    stream.flush()
            said = event | {"ack": True} if amid else event
            self._unanswered += amid
            self._control.sendall(json.dumps(said, default=str, separators=(",", ":")).encode("utf-8", "surrogatepass") + b"\n")
            while amid and self._unanswered and self._next_line() is not None:
                self._unanswered -= 1

    def serve(self) -> None:
        """Until the control socket ends."""
        while (line := self._line()) is not None:
            request = json.loads(line)
            if request["op"] == "ack":  # of an event whose cell was interrupted while it waited
                self._unanswered -= 1
                continue
            operation = {"run": self._run, "complete": self._complete, "forget": self._forget}[request["op"]]
            operation(request)

    def _line(self) -> bytes | None:
        if b"\n" not in self._rest:
            self._wait()
        return self._next_line()

    def _next_line(self) -> bytes | None:
        """None at the end."""
        while b"\n" not in self._rest:
            piece = self._control.recv(1 << 16)
            if not piece:
                return None
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _wait(self) -> None:
        """Until the control socket can be read. Tasks that cells left go on meanwhile."""
        loop = self._loop
        if loop is None or loop.is_closed() or not asyncio.all_tasks(loop):
            return
        if select.select([self._control], [], [], 0)[0]:
            return
        readable = loop.create_future()
        loop.add_reader(self._control, _set, readable)
        try:
            loop.run_until_complete(readable)
        finally:
            loop.remove_reader(self._control)

    def _await(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Runs a cell that awaits. An interrupt cancels what it waits for."""
        if self._loop is None or self._loop.is_closed():
            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
        task = self._loop.create_task(work)
        try:
            return self._loop.run_until_complete(task)
        except KeyboardInterrupt:
            if not task.done():
                task.cancel()
                self._running = False
                self._loop.run_until_complete(asyncio.wait([task], timeout=1.0))
            raise

    def _run(self, request: Json) -> None:
        shell = self._shell
        if self._generation.changed() or self._stale:
            self._renew()
        shell.execution_count = request["count"]
        silent = request.get("silent", False)
        ok = True
        try:
            self._running = True
            with environment(request.get("env") or {}):
                ok = shell.run_cell(request["code"], store_history=not silent, silent=silent).success
        except KeyboardInterrupt:
            ok = False
            self._send({"event": "error", "name": "KeyboardInterrupt", "value": "", "traceback": []})
        finally:
            self._running = False
        self._send({"event": "done", "ok": ok})

    def _complete(self, request: Json) -> None:
        code, cursor = request["code"], request["cursor"]
        with provisionalcompleter():
            found = list(rectify_completions(code, self._shell.Completer.completions(code, cursor)))
        start, end = (found[0].start, found[0].end) if found else (cursor, cursor)
        self._send({"event": "done", "ok": True, "matches": [one.text for one in found], "start": start, "end": end})

    def _forget(self, _request: Json) -> None:
        """As if nothing had ever run."""
        self._shell.reset(new_session=True)
        self._send({"event": "done", "ok": True})


def no_input(prompt: object = "") -> str:
    """In the place of input()."""
    raise EOFError("There is nobody to answer input(): write the answer into the code.")


@contextlib.contextmanager
def environment(added: Mapping[str, str]) -> Iterator[None]:
    """Variables of one call; afterwards those of these names are as before."""
    before = {name: os.environ.get(name) for name in added}
    os.environ.update(added)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
