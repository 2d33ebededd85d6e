"""The agent's entry: `main()` as PID 1 of a microVM, `serve_socket(path)` for tests on a host."""

from __future__ import annotations

import gc
import os
import select
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from torpor.guest import boot
from torpor.guest.cgroups import Cgroups
from torpor.guest.commands import Commands
from torpor.guest.conversation import Conversation, Request
from torpor.guest.faults import Refusal
from torpor.guest.files import Files
from torpor.guest.kernel import Kernel
from torpor.guest.loop import Loop
from torpor.guest.pump import Pump
from torpor.guest.rehearsal import Rehearsal
from torpor.guest.session import Operation, Session
from torpor.guest.tcp import Connections
from torpor.guest.upload import Upload
from torpor.guest.wake import Identity, Waker, prepare, set_clock
from torpor.guest.watch import Watches
from torpor.wire import guest as wire

Json = dict[str, Any]


class Agent:
    """Wires the parts together. `machine` False leaves out what only a microVM has: cgroups, clock, power."""

    def __init__(self, *, machine: bool) -> None:
        self.machine = machine
        self.loop = Loop(self._report)
        self.groups = Cgroups()
        if machine:
            boot.prepare(self.groups)
        self.template = boot.template()
        self.commands = Commands(self.loop, self.groups, lambda: self.template["user"], lambda: self.template["home"])
        self.kernel = Kernel(self.groups, lambda: self.commands.present, machine=machine)
        self.waker = Waker(self.loop, self.kernel, self._identity() if machine else None, self.commands.run_hook)
        self.session = Session(self.loop, self._operations(), self._welcome, self.commands.resumed)
        self.loop.after = self.session.flush
        self._reports = 0
        children = boot.child_signals()
        self.loop.register(children, select.EPOLLIN, lambda _events: self._children(children))
        for _ in range(2):
            self.loop.threads.grow()

    @staticmethod
    def _identity() -> Identity:
        identity = Identity()
        try:
            identity.bind()
            prepare()
        except OSError as error:
            boot.say(f"boot: {error}")
        return identity

    def _report(self, error: BaseException) -> None:
        """A fault of the agent's own: on the console, at most 100 of them, and the agent goes on."""
        self._reports += 1
        if self._reports <= 100:
            boot.say("".join(traceback.format_exception(error)))

    def _children(self, fd: int) -> None:
        try:
            os.read(fd, 128 * 64)
        except BlockingIOError:
            return  # a command's output ended in the same turn, and its end was waited for there
        self.commands.reap()

    def _operations(self) -> dict[str, Operation]:
        files, watches, connections = Files(self.loop, lambda: self.template["user"]), Watches(self.loop), Connections(self.loop)
        commands = self.commands

        def write(request: Request) -> None:
            Upload(files, request)

        return {
            "ping": lambda _request: {},
            "exec": commands.exec,
            "attach": commands.attach,
            "processes": self._processes,
            "forget": commands.forget,
            "signal": commands.signal,
            "kill": commands.kill,
            "resize": commands.resize,
            "input": commands.input,
            "close_input": commands.close_input,
            "read": files.read,
            "write": write,
            "stat": files.stat,
            "list": files.list,
            "mkdir": files.mkdir,
            "move": files.move,
            "remove": files.remove,
            "symlink": files.symlink,
            "chmod": files.chmod,
            "chown": files.chown,
            "get_xattrs": files.get_xattrs,
            "set_xattr": files.set_xattr,
            "watch": watches.watch,
            "connect": connections.connect,
            "metrics": lambda request: self._in_thread(request, self.kernel.metrics),
            "quiesce": self._quiesce,
            "thaw": self._thaw,
            "grow": lambda request: self._in_thread(request, lambda: {"bytes": self.kernel.grow()}),
            "sync": lambda request: self._in_thread(request, _sync),
            "shutdown": self._shutdown,
        }

    def _in_thread(self, request: Request, work: Callable[[], Json]) -> None:
        self.loop.in_thread(work, lambda result, error: request.fail(error) if error is not None else request.reply(**(result or {})))

    def _processes(self, request: Request) -> None:
        lines = b"".join(wire.to_json(info) + b"\n" for info in self.commands.list())
        request.reply()
        Pump(self.loop, request.stream(sender=wire.Sender()), lambda: b"").first(lines)

    def _welcome(self, generation: int, hello: Json, done: Any) -> None:
        """A hello with a wake makes its generation ours; without one it must name ours, or 0 for any."""
        before = self.session.conversation
        about = self.template | {"agent": _VERSION, "level": wire.LEVEL}

        def greet(result: Json) -> None:
            self.session.generation = self.waker.generation
            if not (before.alive and before.link == hello.get("link") and before.generation == self.session.generation):
                self.commands.drop_conversation(before)
            done(about | result)

        if isinstance(hello.get("wake"), dict):
            self.waker.wake(generation, hello["wake"], greet)
        elif generation not in (0, self.waker.generation):
            raise Refusal("generation", f"this is generation {self.waker.generation}, not {generation}")
        else:
            greet({})

    def _quiesce(self, request: Request) -> None:
        """On the loop's thread: a thread's end would be in the snapshot, and go on in every guest made of it, before the wake."""
        request.reply(**self.kernel.quiesce())
        request.conversation.quiet = True

    def _thaw(self, request: Request) -> Json:
        if self.machine and request.args.get("clock"):
            set_clock(float(request.args["clock"]))
        self.kernel.thaw()
        request.conversation.speak()
        return {}

    def _shutdown(self, request: Request) -> Json:
        """Answers first; the power goes once the answer was written."""
        self.loop.later(0.0, lambda: self._off())
        return {}

    def _off(self) -> None:
        self.session.flush()
        if self.machine:
            boot.power_off(self.groups)
        self.loop.stop()

    def rehearse(self) -> None:
        """At boot, before the port is opened: what hosts ask of every guest is done a few times, so that nothing of it is done for the first time later."""
        self.waker.rehearsing = True
        Rehearsal(self.loop, self.session).play()
        self.waker.rehearsing = False
        self.waker.begin_anew()
        self.session.generation, self.session.conversation = 0, Conversation(0, 0)
        self.commands.forget_all()

    @staticmethod
    def settle() -> None:
        """Just before the first hello: what was allocated so far will live for ever, and is looked at by the collector no more; nor does it look often."""
        gc.collect()
        gc.freeze()
        gc.set_threshold(_COLLECT_AFTER)


_VERSION = sys.version.split()[0]
_COLLECT_AFTER = 20000
"""Objects. A collection right after a restore would cost milliseconds, and little of the agent's garbage has cycles."""


def _sync() -> Json:
    os.sync()
    return {}


def main() -> None:
    """PID 1. Does not return and does not raise: the end of PID 1 is a kernel panic."""
    while True:
        try:
            agent = Agent(machine=True)
            boot.lock_memory()
            boot.come_first()
            agent.rehearse()
            agent.session.use_port(boot.open_port(), is_socket=False)
            agent.settle()
            boot.say("agent ready")
            agent.loop.run()
        except BaseException as error:
            boot.say("".join(traceback.format_exception(error)))
            time.sleep(1)  # nobody to wait for: keeps a broken boot from flooding the console


def serve_socket(path: str, user: str, home: str) -> None:
    """The same agent on a unix socket, as the present user, without what only a microVM has. Each new connection takes the place of the one before."""
    agent = Agent(machine=False)
    agent.template = {"user": user, "home": home, "name": "test"}
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(4)
    listener.setblocking(False)
    agent.rehearse()

    def accept(_events: int) -> None:
        connection, _ = listener.accept()
        connection.setblocking(False)
        agent.session.use_port(connection.detach(), is_socket=True)

    agent.loop.register(listener.fileno(), select.EPOLLIN, accept)
    boot.say("agent ready")
    agent.loop.run()
