"""Kernels as the server sees them: a control socket, the pipes of stdout and stderr, and the end of the process.

One task per kernel reads all three. When something is on the control socket, the pipes are emptied first: a kernel flushes what was printed before it says
anything, so the order is that of the code. A slow reader of a cell's events slows the kernel down; when no cell runs, output goes to `background`.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import IO, Any, TypeVar

Json = dict[str, Any]
Sink = Callable[[Json], Awaitable[None]]
T = TypeVar("T")
_PIECE = 1 << 16
_MOST_BEFORE_CONTROL = 1 << 20
"""Bytes read from a pipe before the control socket is looked at; what was printed before the event is at most a pipe full."""


def settle(future: asyncio.Future[T], value: T) -> None:
    """Sets a result unless there is one: what was waited for may come twice, or too late."""
    if not future.done():
        future.set_result(value)


def fail(future: asyncio.Future[Any], error: Exception) -> None:
    """As `settle`, with an error."""
    if not future.done():
        future.set_exception(error)


class KernelFailedError(Exception):
    """A kernel did not start."""


class Ended(Exception):
    """The kernel's process is no more; says how."""


class Plumbing:
    """The descriptors between server and one kernel: ours in `control`, `out`, `err`; the kernel's in `theirs`, to be closed once it has them."""

    def __init__(self) -> None:
        self.control, other = socket.socketpair()
        self.out, out = os.pipe2(os.O_CLOEXEC)
        self.err, err = os.pipe2(os.O_CLOEXEC)
        self.theirs = (other.detach(), out, err)
        self.control.setblocking(False)
        os.set_blocking(self.out, False)
        os.set_blocking(self.err, False)

    def handed_over(self) -> None:
        for descriptor in self.theirs:
            os.close(descriptor)

    def close(self) -> None:
        self.control.close()
        os.close(self.out)
        os.close(self.err)


class Kernel:
    """A running kernel process, leader of a process group of its own. `ended` is done when it is reaped, with its exit code (negative: a signal)."""

    def __init__(self, pid: int, plumbing: Plumbing, ended: asyncio.Future[int], background: Sink) -> None:
        self.pid = pid
        self._plumbing = plumbing
        self._ended = ended
        self._background = background
        self._sink: Sink | None = None
        self._finished: asyncio.Future[Json] | None = None
        self._rest = bytearray()
        self._closed = False
        decoder = codecs.getincrementaldecoder("utf-8")
        self._decoders = {plumbing.out: ("stdout", decoder("replace")), plumbing.err: ("stderr", decoder("replace"))}
        self._open = {plumbing.out, plumbing.err, plumbing.control.fileno()}
        self._reader = asyncio.create_task(self._read())
        self.stdin: IO[bytes] | None = None

    @property
    def alive(self) -> bool:
        return not self._ended.done()

    async def ask(self, request: Json, sink: Sink | None) -> Json:
        """Sends a request and passes what the kernel says on to `sink` (None: thrown away) until it is done; returns the `done`. One at a time.
        Raises Ended when the kernel ends first."""
        finished: asyncio.Future[Json] = asyncio.get_running_loop().create_future()
        self._sink, self._finished = sink, finished
        try:
            if not self.alive:
                raise Ended(self._how())
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # its end will tell
                await self._write(request)
            both: set[asyncio.Future[Any]] = {finished, self._ended}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not finished.done():
                await asyncio.wait({self._reader}, timeout=1.0)  # what it said last
            if finished.done():
                return finished.result()
            raise Ended(self._how())
        finally:
            self._sink = self._finished = None

    def quiet(self) -> None:
        """Nobody reads the running cell's events any more."""
        self._sink = None

    async def _write(self, request: Json) -> None:
        await asyncio.get_running_loop().sock_sendall(self._plumbing.control, self.encode(request))

    async def type_in(self, line: bytes) -> None:
        """Writes to the program's standard input; it reads one line at a time, so this may take as long as the pipe is full."""
        assert self.stdin is not None
        await asyncio.get_running_loop().run_in_executor(None, _write_all, self.stdin.fileno(), line)

    def encode(self, request: Json) -> bytes:
        return json.dumps(request).encode("utf-8", "surrogatepass") + b"\n"

    def decode(self, line: bytes) -> list[Json]:
        """The events that a line from the kernel stands for."""
        return [json.loads(line)]

    def _how(self) -> str:
        code = self._ended.result() if self._ended.done() else 0
        if code >= 0:
            return f"The kernel ended with exit code {code}."
        name = signal.Signals(-code).name if -code in signal.valid_signals() else str(-code)
        why = ": the machine may have run out of memory" if -code == signal.SIGKILL else ""
        return f"The kernel was ended by {name}{why}."

    def interrupt(self) -> None:
        """SIGINT to the kernel and what it started."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGINT)

    async def close(self) -> None:
        """SIGKILL, and returns when it is gone. Repeatable."""
        if self._closed:
            return
        self._closed = True
        if self.alive:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            await asyncio.wait({self._ended})
        self._reader.cancel()
        await asyncio.wait({self._reader})
        if self.stdin is not None:
            self.stdin.close()
        self._plumbing.close()

    # -- reading ---------------------------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        control = self._plumbing.control.fileno()
        while control in self._open:
            await self._readable()
            said = self._receive()
            for descriptor in (self._plumbing.out, self._plumbing.err):
                await self._drain(descriptor)
            for line in said:
                for event in self.decode(line):
                    await self._deliver(event)
                    if event.pop("ack", False):
                        with contextlib.suppress(OSError):  # a dozen bytes find room, or the kernel is gone
                            self._plumbing.control.send(b'{"op": "ack"}\n')
        for descriptor in (self._plumbing.out, self._plumbing.err):
            await self._drain(descriptor)

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        ready = loop.create_future()
        for descriptor in self._open:
            loop.add_reader(descriptor, settle, ready, None)
        try:
            await ready
        finally:
            for descriptor in self._open:
                loop.remove_reader(descriptor)

    def _receive(self) -> list[bytes]:
        """Whole lines that have come; none when there is nothing."""
        try:
            while piece := self._plumbing.control.recv(_PIECE):
                self._rest += piece
                if len(piece) < _PIECE:
                    break
            else:
                self._open.discard(self._plumbing.control.fileno())
        except BlockingIOError:
            pass
        except ConnectionResetError:
            self._open.discard(self._plumbing.control.fileno())
        *lines, rest = self._rest.split(b"\n")
        self._rest = bytearray(rest)
        return [bytes(line) for line in lines]

    async def _drain(self, descriptor: int) -> None:
        taken = 0
        name, decoder = self._decoders[descriptor]
        while descriptor in self._open and taken < _MOST_BEFORE_CONTROL:
            try:
                piece = os.read(descriptor, _PIECE)
            except BlockingIOError:
                return
            taken += len(piece)
            text = decoder.decode(piece, final=not piece)
            if text:
                await self._deliver({"event": name, "text": text})
            if not piece:
                self._open.discard(descriptor)

    async def _deliver(self, event: Json) -> None:
        if event["event"] == "done":
            if self._finished is not None and not self._finished.done():
                self._finished.set_result(event)
            self._sink = None
        elif self._finished is None:
            await self._background(event)
        elif self._sink is not None:
            await self._sink(event)


def _write_all(descriptor: int, content: bytes) -> None:
    with contextlib.suppress(BrokenPipeError):  # the program's end will tell
        while content:
            content = content[os.write(descriptor, content) :]


class Forks:
    """Makes Python kernels: starts the fork server and asks it. `ready` is done when it is."""

    def __init__(self, generation: str) -> None:
        self._generation = generation
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[int]] = {}
        self._ends: dict[int, asyncio.Future[int]] = {}
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = loop.create_future()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        package = __package__ or ""
        program = f"import sys; sys.path.insert(0, {root!r}); from {package.rpartition('.')[2]}.forkserver import main; main({theirs.fileno()}, {generation!r})"
        self._process = subprocess.Popen([sys.executable, "-P", "-c", program], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True)
        theirs.close()
        loop.add_reader(self._socket, self._read)

    def _read(self) -> None:
        try:
            message = self._socket.recv(1 << 16)
        except BlockingIOError:
            return
        except ConnectionResetError:
            message = b""
        if not message:
            self._over()
            return
        event = json.loads(message)
        if event["event"] == "ready":
            settle(self.ready, None)
        elif event["event"] == "forked":
            asked = self._asked.pop(event["id"])
            if "pid" in event:
                self._ends[event["pid"]] = asyncio.get_running_loop().create_future()
                settle(asked, event["pid"])
            else:
                fail(asked, KernelFailedError(f"No process for a kernel: {event['error']}"))
        elif (end := self._ends.pop(event["pid"], None)) is not None:
            settle(end, event["status"])

    def _over(self) -> None:
        """The fork server is gone; kernels it made live on, but nobody tells of their ends any more: they count as ended."""
        asyncio.get_running_loop().remove_reader(self._socket)
        error = KernelFailedError("The fork server of the Python kernels ended.")
        fail(self.ready, error)
        for asked in self._asked.values():
            fail(asked, error)
        for end in self._ends.values():
            settle(end, -signal.SIGKILL)
        self._asked.clear()
        self._ends.clear()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    async def start(self, cwd: str, env: Mapping[str, str], background: Sink) -> Kernel:
        """A kernel in directory `cwd`. Raises KernelFailedError."""
        await asyncio.shield(self.ready)
        number = next(self._numbers)
        plumbing = Plumbing()
        asked: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._asked[number] = asked
        try:
            order = json.dumps({"op": "fork", "id": number, "cwd": cwd, "env": dict(env)}).encode()
            socket.send_fds(self._socket, [order], plumbing.theirs)
        except OSError as error:
            self._asked.pop(number, None)
            plumbing.close()
            raise KernelFailedError(f"The fork server cannot be asked: {error}") from error
        finally:
            plumbing.handed_over()
        try:
            pid = await asked
        except BaseException:
            plumbing.close()
            raise
        return Kernel(pid, plumbing, self._ends[pid], background)

    def close(self) -> None:
        self._socket.close()
        self._process.wait(10)


async def start_program(argv: Sequence[str], cwd: str, env: Mapping[str, str], background: Sink, kind: type[Kernel]) -> Kernel:
    """A kernel that is a program of its own; `{control}` in its arguments and variables stands for the number of its control socket.
    Raises KernelFailedError."""
    plumbing = Plumbing()
    control, out, err = plumbing.theirs

    def numbered(word: str) -> str:
        return word.replace("{control}", str(control))

    try:
        process = subprocess.Popen(
            [numbered(word) for word in argv],
            cwd=cwd,
            env={**os.environ, **{name: numbered(value) for name, value in env.items()}},
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=err,
            pass_fds=[control],
            start_new_session=True,
        )
    except OSError as error:
        plumbing.close()
        raise KernelFailedError(f"{argv[0]} does not start: {error}") from error
    finally:
        plumbing.handed_over()
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()
    watch = os.pidfd_open(process.pid)

    def reap() -> None:
        loop.remove_reader(watch)
        os.close(watch)
        ended.set_result(process.wait())

    loop.add_reader(watch, reap)
    kernel = kind(process.pid, plumbing, ended, background)
    kernel.stdin = process.stdin
    return kernel
