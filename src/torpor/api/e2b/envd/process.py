"""process.Process: commands and terminals, by the guest's own functions.

A command belongs to the sandbox: a client that leaves leaves it running, and another may connect to it by pid or tag. The deadline of the call that started it
is its own: then it and all its descendants are killed, by the guest. Its stream ends when it has ended and nobody holds its output open any more.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from torpor.api.e2b.envd.connect import Method, Methods
from torpor.api.e2b.envd.faults import Fault
from torpor.api.e2b.envd.messages import PROCESS, Message
from torpor.api.e2b.envd.running import KEPT_OUTPUT, Key, Running
from torpor.api.e2b.envd.session import Session
from torpor.api.errors import clean
from torpor.api.follow import Follower, Hub
from torpor.model.errors import Denied, DenyReason, GuestOSError, InvalidInput, NotFound
from torpor.ports.guest import ExecSpec, Exited, Guest, Output, ProcessInfo, Terminal

_PIECE = 32768
_PTY_PIECE = 16384
_SIGNALS = {15: 15, 9: 9}
_SIGNAL_NAMES = {
    1: "hangup",
    2: "interrupt",
    3: "quit",
    4: "illegal instruction",
    5: "trace/breakpoint trap",
    6: "aborted",
    7: "bus error",
    8: "floating point exception",
    9: "killed",
    10: "user defined signal 1",
    11: "segmentation fault",
    12: "user defined signal 2",
    13: "broken pipe",
    14: "alarm clock",
    15: "terminated",
}
"""As the protocol's first server, a Go program, words them (Go's syscall package)."""
_SHORTAGE = (errno.EAGAIN, errno.ENOMEM, errno.ENOSPC)


class Processes:
    """The service. `hub`: of all who follow commands in this server."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._running = Running()

    def methods(self) -> Methods:
        words, event = PROCESS, PROCESS["ProcessEvent"]
        quiet = event(keepalive=PROCESS["ProcessEvent.KeepAlive"]())
        return {
            "List": Method(words["ListRequest"], unary=self.list),
            "Start": Method(words["StartRequest"], server=self.start, keepalive=words["StartResponse"](event=quiet)),
            "Connect": Method(words["ConnectRequest"], server=self.connect, keepalive=words["ConnectResponse"](event=quiet)),
            "Update": Method(words["UpdateRequest"], unary=self.update),
            "SendInput": Method(words["SendInputRequest"], unary=self.send_input),
            "StreamInput": Method(words["StreamInputRequest"], client=self.stream_input),
            "SendSignal": Method(words["SendSignalRequest"], unary=self.send_signal),
            "CloseStdin": Method(words["CloseStdinRequest"], unary=self.close_stdin),
        }

    async def list(self, session: Session, request: Message) -> Message:
        async with session.guest("a list of commands") as guest:
            found = [each for each in await guest.processes() if _lives(each)]
        return PROCESS["ListResponse"](processes=[_shown(each) for each in found])

    async def start(self, session: Session, request: Message) -> AsyncGenerator[Message, None]:
        async with session.guest("a command") as guest:
            spec = await _spec(session, guest, request)
            try:
                process = await guest.exec(spec)
            except GuestOSError as error:
                raise _not_started(error, spec) from None
            except InvalidInput as error:
                if spec.user and "no user" in error.message:
                    raise Fault("unauthenticated", f"invalid username: '{spec.user[:100]}'") from None
                raise
            follower = self._hub.begin(session.sandbox.id, guest, process)
            key = (session.sandbox.id, process.exec_id, process.pid)
            self._running.begin(key)
            async for event in self._told(guest, follower, key, spec.terminal is not None):
                yield PROCESS["StartResponse"](event=event)

    async def connect(self, session: Session, request: Message) -> AsyncGenerator[Message, None]:
        async with session.guest("a command") as guest:
            found = await _select(guest, request.process, ended=True)
            key = (session.sandbox.id, found.exec_id, found.pid)
            stdout, stderr = self._running.offsets(key)
            follower = await self._hub.listen(session.sandbox.id, guest, found.exec_id, stdout_offset=stdout, stderr_offset=stderr)
            async for event in self._told(guest, follower, key, found.terminal):
                yield PROCESS["ConnectResponse"](event=event)

    async def _told(self, guest: Guest, follower: Follower, key: Key, terminal: bool) -> AsyncGenerator[Message, None]:
        event = PROCESS["ProcessEvent"]
        try:
            yield event(start=PROCESS["ProcessEvent.StartEvent"](pid=follower.pid))
            async for piece in follower.output():
                for data in _cut(piece, terminal):
                    yield event(data=data)
                self._running.tell(key, piece)
            exited = await follower.wait()
        finally:
            follower.leave()
        self._running.ended(key, guest)
        if exited.timed_out:
            raise Fault("deadline_exceeded", "the command was killed at its deadline")
        yield event(end=_end(exited))

    async def update(self, session: Session, request: Message) -> Message:
        async with session.guest("a terminal's size") as guest:
            found = await _select(guest, request.process)
            if request.HasField("pty"):
                if not found.terminal:
                    raise Fault("failed_precondition", "the process has no pty")
                await guest.resize(found.exec_id, _terminal(request.pty))
        return PROCESS["UpdateResponse"]()

    async def send_input(self, session: Session, request: Message) -> Message:
        async with session.guest("input") as guest:
            found = await _select(guest, request.process)
            await _type(guest, found, _input(found, request.input))
        return PROCESS["SendInputResponse"]()

    async def stream_input(self, session: Session, messages: AsyncIterator[Message]) -> Message:
        """What is sent goes into the command as it comes, in its order."""
        first = await anext(messages, None)
        if first is None or not first.HasField("start"):
            raise Fault("invalid_argument", "a stream of input begins with the process it is for")
        async with session.guest("input") as guest:
            found = await _select(guest, first.start.process)

            async def source() -> AsyncIterator[bytes]:
                async for message in messages:
                    if message.HasField("data"):
                        yield _input(found, message.data.input)
                    elif not message.HasField("keepalive"):
                        raise Fault("invalid_argument", "a stream of input goes to one process")

            await _type(guest, found, source())
        return PROCESS["StreamInputResponse"]()

    async def send_signal(self, session: Session, request: Message) -> Message:
        number = _SIGNALS.get(request.signal)
        if number is None:
            raise Fault("unimplemented", f"signal {request.signal} cannot be sent; SIGTERM and SIGKILL can")
        async with session.guest("a signal") as guest:
            found = await _select(guest, request.process)
            if number == 9 or found.exited is not None:
                await guest.kill_tree(found.exec_id)
            else:
                await guest.signal(found.exec_id, number)
        return PROCESS["SendSignalResponse"]()

    async def close_stdin(self, session: Session, request: Message) -> Message:
        async with session.guest("the end of input") as guest:
            found = await _select(guest, request.process)
            if found.terminal:
                raise Fault("unknown", "the stdin of a pty cannot be closed; send it the end-of-file character")
            try:
                await guest.close_input(found.exec_id)
            except Denied as error:
                raise _no_input(error) from None
        return PROCESS["CloseStdinResponse"]()


async def _spec(session: Session, guest: Guest, request: Message) -> ExecSpec:
    config = request.process
    if not config.cmd:
        raise Fault("invalid_argument", "a command needs a name")
    account = await session.account(guest)
    if session.timeout is not None and session.timeout <= 0:
        raise TimeoutError
    return ExecSpec(
        argv=[config.cmd, *config.args],
        env=session.environment() | dict(config.envs),
        cwd=account.path(config.cwd) if config.cwd else "",
        user=account.given,
        stdin=request.stdin if request.HasField("stdin") else True,
        terminal=_terminal(request.pty) if request.HasField("pty") else None,
        timeout=session.timeout,
        tag=request.tag,
        output_limit=KEPT_OUTPUT,
        linger=True,
    )


def _terminal(pty: Any) -> Terminal:
    size = pty.size
    if size.rows > 0xFFFF or size.cols > 0xFFFF:
        raise Fault("invalid_argument", "a terminal has 65535 rows and columns at most")
    return Terminal(size.rows or 24, size.cols or 80)


def _not_started(error: GuestOSError, spec: ExecSpec) -> Fault:
    if error.errno in _SHORTAGE:
        return Fault("resource_exhausted", f"the command could not be started: {error.message}")
    if spec.cwd and error.path == spec.cwd:
        missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
        return Fault("invalid_argument", f"cwd '{spec.cwd}' does not exist" if missing else f"cwd '{spec.cwd}' cannot be entered: {error.message}")
    return Fault("invalid_argument", f"the command could not be started: {error.message}")


def _lives(found: ProcessInfo) -> bool:
    return found.exited is None or found.open


async def _select(guest: Guest, selector: Any, *, ended: bool = False) -> ProcessInfo:
    """The command that is meant; among several of that pid or tag, the latest, living ones first. Raises NotFound, Fault."""
    which = selector.WhichOneof("selector")
    if which is None:
        raise Fault("invalid_argument", "no process is selected")
    matching = [each for each in await guest.processes() if (each.pid == selector.pid if which == "pid" else bool(each.tag) and each.tag == selector.tag)]
    living = [each for each in matching if _lives(each)]
    candidates = living or (matching if ended else [])
    if not candidates:
        raise NotFound(f"process with {which} {selector.pid if which == 'pid' else selector.tag[:100]} not found")
    return max(candidates, key=lambda each: each.started_at)


def _shown(found: ProcessInfo) -> Message:
    config = PROCESS["ProcessConfig"](
        cmd=clean(found.argv[0]),
        args=[clean(each) for each in found.argv[1:]],
        envs={clean(name): clean(value) for name, value in found.env.items()},
        cwd=clean(found.cwd),
    )
    return PROCESS["ProcessInfo"](config=config, pid=found.pid, **({"tag": found.tag} if found.tag else {}))


def _cut(piece: Output, terminal: bool) -> list[Message]:
    name = "pty" if terminal else piece.stream.value
    size = _PTY_PIECE if terminal else _PIECE
    return [PROCESS["ProcessEvent.DataEvent"](**{name: piece.data[at : at + size]}) for at in range(0, len(piece.data), size)]


def _end(exited: Exited) -> Message:
    if exited.code is not None:
        status = f"exit status {exited.code}"
        fields: dict[str, Any] = {"exit_code": exited.code, "exited": True, "status": status}
    else:
        status = f"signal: {_SIGNAL_NAMES.get(exited.signal or 0, f'signal {exited.signal}')}"
        fields = {"exit_code": -1, "exited": False, "status": status}
    return PROCESS["ProcessEvent.EndEvent"](**fields, **({"error": status} if exited.code != 0 else {}))


def _input(found: ProcessInfo, given: Any) -> bytes:
    """The bytes meant for this command. Raises Fault."""
    which = given.WhichOneof("input")
    if which is None:
        raise Fault("unimplemented", "input is for stdin or for a pty")
    if (which == "pty") != found.terminal:
        raise Fault("internal", "the process has a pty: its input goes there" if found.terminal else "the process has no pty: its input goes to stdin")
    data: bytes = getattr(given, which)
    return data


async def _type(guest: Guest, found: ProcessInfo, source: AsyncIterator[bytes] | bytes) -> None:
    try:
        await guest.send_input(found.exec_id, source)
    except Denied as error:
        raise _no_input(error) from None
    except GuestOSError as error:
        if error.errno == errno.EPIPE:
            raise Fault("internal", "the process reads no input any more") from None
        raise


def _no_input(error: Denied) -> Fault:
    if error.reason is DenyReason.TOO_OLD:
        return Fault("failed_precondition", str(error))
    return Fault("internal", "stdin is not enabled, or the process is over")
