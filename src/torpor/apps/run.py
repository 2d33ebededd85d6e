"""`torpor run`: one command in a fresh microVM, its streams passed through, its exit code kept.

The process becomes the home's agent for its own lifetime, or uses the one that runs. When that one ends in the middle, the command runs on in its
microVM; we become
the agent (or find the next), attach where the output broke off, and nobody notices.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from torpor.apps.console import SIGNALS, Stdin, on_terminal, raw, size, write_all
from torpor.apps.engine import Engine
from torpor.apps.local import AgentGone, LocalClient, LocalServer, find_tagged
from torpor.apps.settings import Settings
from torpor.host.agent import CreateSpec
from torpor.host.home import HomeWatch
from torpor.model.errors import GuestOSError, HomeBusy, InvalidInput, NotFound
from torpor.model.sandbox import NetworkMode
from torpor.model.shapes import Shape
from torpor.ports.guest import ExecSpec, Exited, GuestProcess, StreamName, Terminal
from torpor.ports.images import Progress

TAG = "torpor run"
"""Tells our command from others in the sandbox, when the answer that named it was lost."""


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What `torpor run` was asked. `timeout` seconds or None. `capture`: keep the output instead of passing it on."""

    argv: Sequence[str]
    template: str = "base"
    shape: Shape = field(default_factory=Shape)
    network: NetworkMode = NetworkMode.OFF
    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str = ""
    user: str = ""
    timeout: float | None = None
    capture: bool = False


@dataclass(slots=True)
class RunResult:
    """How it went. `stdout` and `stderr` are filled with `capture` only."""

    sandbox_id: str
    exit_code: int
    timed_out: bool = False
    oom: bool = False
    stdout: bytearray = field(default_factory=bytearray)
    stderr: bytearray = field(default_factory=bytearray)


class Backend(Protocol):
    """The home's agent, here or behind its socket."""

    async def create(self, spec: RunSpec, leash: tuple[int, int]) -> str: ...

    async def exec(self, sandbox_id: str, spec: ExecSpec) -> GuestProcess: ...

    async def find(self, sandbox_id: str, tag: str) -> str | None:
        """The id of the command with this tag."""
        ...

    async def attach(self, sandbox_id: str, exec_id: str, stdout: int, stderr: int) -> GuestProcess: ...

    async def kill(self, sandbox_id: str) -> None: ...


class Here:
    """We are the agent."""

    def __init__(self, engine: Engine, progress: Progress) -> None:
        self._engine = engine
        self._progress = progress

    async def create(self, spec: RunSpec, leash: tuple[int, int]) -> str:
        await self._engine.ensure(spec.template, self._progress)
        create = CreateSpec(spec.template, spec.shape, spec.network, leash=leash)
        return (await self._engine.agent.create(create)).id

    async def exec(self, sandbox_id: str, spec: ExecSpec) -> GuestProcess:
        return await (await self._engine.agent.guest(sandbox_id)).exec(spec)

    async def find(self, sandbox_id: str, tag: str) -> str | None:
        return find_tagged(await (await self._engine.agent.guest(sandbox_id)).processes(), tag)

    async def attach(self, sandbox_id: str, exec_id: str, stdout: int, stderr: int) -> GuestProcess:
        return await (await self._engine.agent.guest(sandbox_id)).attach(exec_id, stdout_offset=stdout, stderr_offset=stderr)

    async def kill(self, sandbox_id: str) -> None:
        await self._engine.agent.kill(sandbox_id)


class There:
    """Another process is the agent."""

    def __init__(self, client: LocalClient) -> None:
        self._client = client

    async def create(self, spec: RunSpec, leash: tuple[int, int]) -> str:
        shape = {"vcpus": spec.shape.vcpus, "memory_mib": spec.shape.memory_mib, "disk_mib": spec.shape.disk_mib}
        made = await self._client.call("create", source=spec.template, shape=shape, network=spec.network.value, leash=leash)
        return str(made["id"])

    async def exec(self, sandbox_id: str, spec: ExecSpec) -> GuestProcess:
        terminal = {"rows": spec.terminal.rows, "columns": spec.terminal.columns} if spec.terminal else None
        plain = {"argv": list(spec.argv), "env": dict(spec.env), "cwd": spec.cwd, "user": spec.user, "stdin": spec.stdin, "timeout": spec.timeout}
        return await self._client.start("exec", sandbox=sandbox_id, spec=plain | {"terminal": terminal, "tag": spec.tag})

    async def find(self, sandbox_id: str, tag: str) -> str | None:
        found: str | None = await self._client.call("find", sandbox=sandbox_id, tag=tag)
        return found

    async def attach(self, sandbox_id: str, exec_id: str, stdout: int, stderr: int) -> GuestProcess:
        return await self._client.start("attach", sandbox=sandbox_id, exec=exec_id, stdout=stdout, stderr=stderr)

    async def kill(self, sandbox_id: str) -> None:
        await self._client.call("kill", sandbox=sandbox_id)


@asynccontextmanager
async def backend(settings: Settings, progress: Progress) -> AsyncIterator[Backend]:
    """The running agent of the home, or ourselves. Between two owners of a home there is a moment with neither; whoever gets the lock is the next."""
    settings.home.mkdir(mode=0o711, parents=True, exist_ok=True)
    with HomeWatch(settings.home) as watch:
        found = await _owner(settings, watch)
    if isinstance(found, LocalClient):
        try:
            yield There(found)
        finally:
            await found.close()
        return
    async with found as engine, LocalServer(engine, settings.home):
        yield Here(engine, progress)


async def _owner(settings: Settings, watch: HomeWatch) -> Engine | LocalClient:
    while True:
        engine = Engine(settings)
        try:
            engine.lock()
        except HomeBusy:
            try:
                return await LocalClient.connect(settings.home)
            except OSError:
                await watch.changed()
        else:
            return engine


def main(spec: RunSpec, settings: Settings, progress: Progress) -> RunResult:
    """`run`, from a program without an event loop."""
    return asyncio.run(run(spec, settings, progress))


async def run(spec: RunSpec, settings: Settings, progress: Progress) -> RunResult:
    """Runs it. Raises InvalidInput and what the engine raises; whatever happens, the sandbox is gone afterwards. SIGINT, SIGTERM and SIGHUP end the command,
    and the exit code is then 128 + the signal's number; from then on they are ignored."""
    if spec.timeout is not None and not spec.timeout > 0:
        raise InvalidInput(f"--timeout {spec.timeout:g}: more than 0 seconds.")
    session = _Session(spec)
    loop = asyncio.get_running_loop()
    working = asyncio.create_task(_work(session, settings, progress))
    for number in SIGNALS:
        loop.add_signal_handler(number, session.interrupt, number, working)
    try:
        return await working
    except (asyncio.CancelledError, BrokenPipeError):  # with the signal that a terminal sends when it hangs up, its output breaks
        if not session.interrupted:
            raise
        return RunResult(session.sandbox_id, 128 + session.interrupted)
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)
            if session.interrupted:  # the process is about to end: another Ctrl-C must not spoil that
                signal.signal(number, signal.SIG_IGN)


async def _work(session: _Session, settings: Settings, progress: Progress) -> RunResult:
    while True:
        try:
            async with backend(settings, progress) as agent:
                return await session.go(agent)
        except AgentGone:
            continue


class _Session:
    """One run, over as many agents as it takes."""

    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec
        self._asked = False
        self._exec_id = ""
        self._offsets = {StreamName.STDOUT: 0, StreamName.STDERR: 0}
        self._stdin: _Feed | None = None
        self._process: GuestProcess | None = None
        self._exited: Exited | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._result = RunResult("", 0)
        self.interrupted = 0
        self.sandbox_id = ""

    def interrupt(self, number: int, working: asyncio.Task[RunResult]) -> None:
        """A signal came: ends the command, or, when there is none, the work around it. Those that follow do not cut short the clearing up after the first."""
        first, self.interrupted = not self.interrupted, self.interrupted or number
        if self._process is not None:
            self._beside(self._process.kill_tree())
        elif first:
            working.cancel()

    def _beside(self, work: Coroutine[Any, Any, None]) -> None:
        """Something for the command that it may no longer be there for."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        task.add_done_callback(self._tasks.discard)

    async def go(self, agent: Backend) -> RunResult:
        if not self.sandbox_id:
            self.sandbox_id = await agent.create(self._spec, (os.getpid(), _start_time()))
            self._result.sandbox_id = self.sandbox_id
        try:
            if self._exited is None:
                with _console(self._spec) as terminal:
                    self._exited = await self._follow(await self._start(agent, terminal), terminal)
        except AgentGone:
            raise
        except BaseException:
            await asyncio.shield(agent.kill(self.sandbox_id))
            raise
        await agent.kill(self.sandbox_id)
        exited = self._exited
        self._result.exit_code = 128 + self.interrupted if self.interrupted else exited.shell_code
        self._result.timed_out, self._result.oom = exited.timed_out, exited.oom
        return self._result

    async def _start(self, agent: Backend, terminal: Terminal | None) -> GuestProcess:
        """Starts the command once, whatever answers were lost, or attaches where the output broke off."""
        if self._asked and not self._exec_id:
            self._exec_id = await agent.find(self.sandbox_id, TAG) or ""
        if self._exec_id:
            stdout, stderr = self._offsets[StreamName.STDOUT], self._offsets[StreamName.STDERR]
            return await agent.attach(self.sandbox_id, self._exec_id, stdout, stderr)
        spec = self._spec
        self._asked = True
        process = await agent.exec(
            self.sandbox_id,
            ExecSpec(spec.argv, spec.env, spec.workdir, spec.user, stdin=True, terminal=terminal, timeout=spec.timeout, tag=TAG),
        )
        self._exec_id = process.exec_id
        return process

    async def _follow(self, process: GuestProcess, terminal: Terminal | None) -> Exited:
        if self._stdin is None:
            self._stdin = _Feed()
        loop = asyncio.get_running_loop()
        if terminal is not None:
            loop.add_signal_handler(signal.SIGWINCH, lambda: self._beside(_resize(process)))
            if _terminal_size() != terminal:
                self._beside(_resize(process))
        feeding = asyncio.create_task(self._stdin.to(process))
        self._process = process
        if self.interrupted:
            await process.kill_tree()
        try:
            async for piece in process.output():
                await self._write(piece.stream, piece.data)
                self._offsets[piece.stream] = piece.offset + len(piece.data)
            return await process.wait()
        finally:
            self._process = None
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
            loop.remove_signal_handler(signal.SIGWINCH)

    async def _write(self, stream: StreamName, data: bytes) -> None:
        if self._spec.capture:
            (self._result.stdout if stream is StreamName.STDOUT else self._result.stderr).extend(data)
        else:
            await asyncio.to_thread(write_all, 1 if stream is StreamName.STDOUT else 2, data)


async def _resize(process: GuestProcess) -> None:
    await process.resize(_terminal_size())


class _Feed:
    """Our standard input on its way to the command, over all who are its agent meanwhile: what one of them did not take the next one gets."""

    def __init__(self) -> None:
        self._source = Stdin()
        self._left = b""

    async def to(self, process: GuestProcess) -> None:
        """Passes pieces on until the end of input. A command that no longer reads is no error of ours."""
        while True:
            self._left = self._left or await self._source.next()
            if not self._left:
                await process.close_stdin()
                return
            try:
                await process.write(self._left)
            except (GuestOSError, NotFound):
                return
            self._left = b""


@contextmanager
def _console(spec: RunSpec) -> Iterator[Terminal | None]:
    """With a terminal on both ends: raw mode inside, and the guest gets a PTY of the same size. Else nothing."""
    if spec.capture or not on_terminal():
        yield None
        return
    with raw():
        yield _terminal_size()


def _terminal_size() -> Terminal:
    """Raises OSError when it has hung up."""
    columns, rows = size()
    return Terminal(rows, columns)


def _start_time() -> int:
    with open("/proc/self/stat", encoding="ascii", errors="replace") as stat:
        return int(stat.read().rpartition(")")[2].split()[19])
