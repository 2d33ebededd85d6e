"""Commands: started, streamed, kept in a list with the last of their output, re-attached, signalled, killed with all their descendants.

    started --main process ends--> exited --pipes end, or the grace is over--> drained --forget, or 256 newer ones ended--> gone

Output goes into one ring per stream. While a host is attached nothing it has not consumed is dropped: a full ring stops the reading and so, at last, the
command; it holds at least one window then. With nobody attached the oldest bytes go. Output of daemons that outlive the main process is part of the streams
for GRACE seconds more; then the streams end, and what such daemons still write is read and thrown away, so that they neither block nor die of SIGPIPE.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import struct
import termios
from collections.abc import Callable
from typing import Any

from torpor.guest import libc, spawn, users
from torpor.guest.cgroups import Cgroups
from torpor.guest.command import Command
from torpor.guest.conversation import Conversation, Request
from torpor.guest.faults import Refusal
from torpor.guest.loop import Loop
from torpor.guest.ready import Ready
from torpor.guest.stdio import Input, Output, Pipes, Ring
from torpor.wire import guest as wire

_KEEP_ENDED = 256
Json = dict[str, Any]


class Commands:
    """All commands of the sandbox, and the reaper. `default_user` says who '' is."""

    def __init__(self, loop: Loop, groups: Cgroups, default_user: Callable[[], str], home: Callable[[], str]) -> None:
        self.loop = loop
        self.cgroups = groups
        self._default_user = default_user
        self._home = home
        self._commands: dict[str, Command] = {}
        self._by_pid: dict[int, Command] = {}
        self._starting = 0
        self._unclaimed: dict[int, int] = {}
        self._waiters: dict[int, Callable[[int], None]] = {}
        self._number = 0
        self._ended_ones: dict[str, Command] = {}
        self._ready: Ready | None = None
        self._present = 0
        """Commands that may have processes."""

    # Reaping

    def reap(self) -> None:
        """Collects every child that ended, orphans too."""
        while True:
            pid, status = libc.reap()
            if pid == 0:
                return
            command = self._by_pid.pop(pid, None)
            waiter = self._waiters.pop(pid, None)
            if command is not None:
                self._ended(command, status)
            elif waiter is not None:
                waiter(status)
            elif self._starting:
                self._unclaimed[pid] = status

    def _claim(self, pid: int) -> int | None:
        """The exit status of a child that ended before its start was known here."""
        self._starting -= 1
        status = self._unclaimed.pop(pid, None)
        if not self._starting:
            self._unclaimed.clear()
        return status

    def run_hook(self, work: Callable[[], int], done: Callable[[int, BaseException | None], None], started: Callable[[int], None]) -> None:
        """Runs a program of the agent's own: `work` spawns it in a thread; `started(pid)`, later `done(status, error)`."""
        self._starting += 1

        def spawned(pid: int | None, error: BaseException | None) -> None:
            status = self._claim(pid or 0)
            if error is not None or pid is None:
                done(-1, error)
                return
            started(pid)
            if status is not None:
                done(status, None)
            else:
                self._waiters[pid] = lambda s: done(s, None)

        self.loop.in_thread(work, spawned)

    # Starting

    def exec(self, request: Request) -> None:
        args = request.args
        argv, extra = _checked(args)
        default = self._default_user()
        user = users.find(args.get("user") or default)
        home = self._home() if user.name == default or not args.get("user") else user.home
        self.loop.catch_up()
        if self._present == 0 and not self.cgroups.asked and self._start_ready(request, argv, extra, user, home):
            return
        cwd = args.get("cwd") or home
        if not args.get("cwd") and not os.path.isdir(cwd):
            cwd = "/"
        command = self._command(args, user, cwd)
        env = spawn.environment(user, home)
        if args.get("terminal"):
            env["TERM"] = "xterm-256color"
        env |= extra
        pipes = Pipes(self.loop, args)
        pipes.own(user)
        try:
            command.group = self.cgroups.take()
        except OSError:
            pipes.close_child()
            pipes.close_ours()
            raise
        self._present += 1
        self._starting += 1

        def work() -> int:
            group = command.group.fd if command.group is not None else None
            if pipes.slave is not None:
                return spawn.spawn(argv, env, cwd, user, cgroup=group, terminal=pipes.slave)
            return spawn.spawn(argv, env, cwd, user, cgroup=group, stdin=pipes.stdin, stdout=pipes.child[0], stderr=pipes.child[1])

        self.loop.in_thread(work, lambda pid, error: self._started(request, command, pipes, pid, error))

    def _command(self, args: Json, user: users.User, cwd: str) -> Command:
        self._number += 1
        return Command(self, f"p{self._number}", args, user, cwd)

    @property
    def present(self) -> bool:
        """Whether there may be user processes."""
        return self._present > 0

    def gone(self) -> None:
        """No process of some command's is left."""
        self._present -= 1

    def _start_ready(self, request: Request, argv: list[str], extra: dict[str, str], user: users.User, home: str) -> bool:
        """Starts the prepared command if it is the one that is asked for. On the loop's thread: no process of the user's is there that could hold it up."""
        ready = self._ready
        if ready is None or not ready.fits(request.args, user, home):
            return False
        command = self._command(request.args, user, ready.cwd)
        try:
            pid = ready.start(argv, extra)
        except OSError:
            self._number -= 1
            return False  # the long way finds out why, and tells
        self._ready = None
        self._present += 1
        command.group = ready.group
        self._launched(request, command, ready.pipes, pid)
        ready.free()
        return True

    def make_ready(self) -> None:
        """Prepares the next command, as the default user would most likely have it. Where that cannot be, commands start without."""
        try:
            user, home = users.find(self._default_user()), self._home()
            if self._ready is not None and not self._ready.serves(user, home):
                self._ready.discard(self.cgroups)
                self._ready = None
            if self._ready is None:
                self._ready = Ready(self.loop, self.cgroups, user, home)
        except (OSError, Refusal):
            return

    def _started(self, request: Request, command: Command, pipes: Pipes, pid: int | None, error: BaseException | None) -> None:
        status = self._claim(pid or 0)
        if error is not None or pid is None:
            pipes.close_child()
            pipes.close_ours()
            if command.group is not None:
                self.cgroups.give(command.group)
            self.gone()
            request.fail(error or RuntimeError("no process"))
            return
        self._launched(request, command, pipes, pid)
        if status is not None:
            del self._by_pid[pid]
            self._ended(command, status)

    def _launched(self, request: Request, command: Command, pipes: Pipes, pid: int) -> None:
        """The process exists."""
        pipes.close_child()
        command.pid = pid
        self._by_pid[pid] = command
        self._commands[command.exec_id] = command
        if pipes.slave is not None:
            command.terminal_fd = pipes.ours[0]
            command.outputs = [Output(command, wire.MAIN, pipes.ours[0])]
            command.input = Input(command, pipes.ours[0])
        else:
            command.outputs = [Output(command, wire.MAIN, pipes.ours[0]), Output(command, wire.STDERR, pipes.ours[1])]
            command.input = Input(command, pipes.ours[2] if len(pipes.ours) > 2 else -1)
        for output in command.outputs:
            output.begin()
        if command.timeout:
            command.deadline = self.loop.later(command.timeout, command.expire)
        self._attach(request, command, [0, 0])

    def _ended(self, command: Command, status: int) -> None:
        command.end(status)
        self._ended_ones[command.exec_id] = command
        if len(self._ended_ones) > _KEEP_ENDED:
            for old in list(self._ended_ones.values())[:-_KEEP_ENDED]:
                if all(o.stream is None for o in old.outputs):
                    self._drop(old)
        self.loop.idle(self.make_ready)

    # The host's view

    def _attach(self, request: Request, command: Command, offsets: list[int]) -> None:
        starts = []
        for output, offset in zip(command.outputs, offsets, strict=False):
            if output.stream is not None:
                earlier = output.stream
                earlier.release()
                output.detach(earlier)
                earlier.conversation.send(wire.encode(wire.CLOSE, earlier.number, earlier.conversation.generation))
            starts.append(output.ring.attach(offset))
        command.listen(request)
        tops = [output.ring.top for output in command.outputs]
        about = {"exec_id": command.exec_id, "pid": command.pid, "exited": command.exited, "terminal": command.terminal}
        request.reply(**about, starts=starts, tops=tops, stdin=command.input.fd >= 0)
        for output in command.outputs:
            receiver = wire.Receiver() if output.channel == wire.MAIN else None
            stream = request.stream(output.channel, sender=output.ring, receiver=receiver)
            if receiver is not None:
                stream.on_data = lambda data, s=stream: command.input.take(data, s)
                stream.on_end = command.input.finish
            output.attach(stream)

    def attach(self, request: Request) -> None:
        args = request.args
        command = self._find(args)
        for output in command.outputs:
            output.catch_up()
        self._attach(request, command, [int(args.get("stdout", 0)), int(args.get("stderr", 0))])

    def resumed(self, conversation: Conversation) -> None:
        """After a reconnect: says again what may have been lost."""
        for command in self._commands.values():
            for request, listener in command.listeners.items():
                if listener is conversation and command.exited is not None:
                    conversation.event(request, exited=command.exited)
                if listener is conversation and command.input.broken:
                    conversation.event(request, stdin="broken")

    def drop_conversation(self, conversation: Conversation) -> None:
        for command in self._commands.values():
            command.listeners = {r: c for r, c in command.listeners.items() if c is not conversation}

    def _find(self, args: Json) -> Command:
        command = self._commands.get(str(args.get("exec_id")))
        if command is None:
            raise Refusal("not_found", f"no command {args.get('exec_id')!r}")
        return command

    def list(self) -> list[Json]:
        return [c.info() for c in self._commands.values()]

    def forget(self, request: Request) -> Json:
        command = self._find(request.args)
        if command.exited is None:
            raise Refusal("denied", f"command {command.exec_id} still runs", "in_use")
        self._drop(command)
        return {}

    def _drop(self, command: Command) -> None:
        """Out of the list, rings freed. What daemons still hold open is read on into nothing, until they close it."""
        self._commands.pop(command.exec_id, None)
        self._ended_ones.pop(command.exec_id, None)
        for output in command.outputs:
            output.end()
            if output.stream is not None:
                stream = output.stream
                stream.release()
                output.detach(stream)
            output.ring = Ring()
            output.ring.end()

    def forget_all(self) -> None:
        """At boot, after the rehearsal: no command was, and numbers begin anew. One that did not end is killed."""
        for command in list(self._commands.values()):
            if command.exited is None:
                command.kill_tree()
            self._drop(command)
        self._number = 0

    def signal(self, request: Request) -> Json:
        command, number = self._find(request.args), int(request.args["number"])
        if not 0 < number <= signal.SIGRTMAX:
            raise Refusal("invalid", f"{number} is no signal")
        if command.exited is None:
            try:
                os.killpg(command.pid, number)
            except ProcessLookupError:
                pass  # it is ending just now: no error, as for one that has ended
        if number in (signal.SIGTERM, signal.SIGKILL):
            command.stop_lingering()
        return {}

    def kill(self, request: Request) -> Json:
        command = self._find(request.args)
        command.kill_tree()
        command.stop_lingering()
        return {}

    def input(self, request: Request) -> None:
        """Bytes for stdin or the terminal, whoever is attached: answers when the command's pipe took the last of them."""
        _Typing(request, self._input_of(request))

    def close_input(self, request: Request) -> Json:
        self._input_of(request).input.finish()
        return {}

    def _input_of(self, request: Request) -> Command:
        command = self._find(request.args)
        if not command.has_input:
            raise Refusal("denied", f"command {command.exec_id} was started without stdin", "not_running")
        return command

    def resize(self, request: Request) -> Json:
        command = self._find(request.args)
        if command.terminal_fd < 0:
            raise Refusal("denied", f"command {command.exec_id} has no terminal", "ended" if command.exited else "not_running")
        size = struct.pack("HHHH", int(request.args["rows"]), int(request.args["columns"]), 0, 0)
        fcntl.ioctl(command.terminal_fd, termios.TIOCSWINSZ, size)
        return {}


class _Typing:
    """One request for input under way."""

    def __init__(self, request: Request, command: Command) -> None:
        self._request, self._command = request, command
        self._over = False
        self._discarded = command.input.discarded
        stream = request.stream(receiver=wire.Receiver())
        stream.on_data = lambda data: command.input.take(data, stream)
        stream.on_end = lambda: command.input.take(b"", self)
        stream.on_close = self._given_up

    def consumed(self, _count: int) -> None:
        """All before the end has gone."""
        if self._over:
            return
        self._over = True
        if self._command.input.discarded > self._discarded:
            self._request.fail(BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)))
        else:
            self._request.reply()

    def _given_up(self) -> None:
        if not self._over:
            self._over = True
            self._request.fail(OSError(errno.ECANCELED, os.strerror(errno.ECANCELED)))


def _checked(args: Json) -> tuple[list[str], dict[str, str]]:
    """argv and the further variables of a request. Raises Refusal."""
    argv = args.get("argv")
    if not isinstance(argv, list) or not argv:
        raise Refusal("invalid", "argv must be one or more strings without NUL")
    for argument in argv:
        if not isinstance(argument, str) or "\0" in argument:
            raise Refusal("invalid", "argv must be one or more strings without NUL")
    extra = args.get("env") or {}
    for name, value in extra.items():
        if "\0" in name + value or "=" in name or not name:
            raise Refusal("invalid", "a variable's name is empty or holds '=' or NUL")
    return argv, extra
