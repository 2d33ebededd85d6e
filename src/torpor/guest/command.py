"""One command the agent started, from its spawn to the last of its output. commands.py has the states."""

from __future__ import annotations

import os
import select
import signal
import time
from typing import Any, Protocol

from torpor.guest import cgroups, users
from torpor.guest.cgroups import Cgroups, Group
from torpor.guest.conversation import Conversation, Request
from torpor.guest.loop import Loop, Timer
from torpor.guest.stdio import Input, Output

GRACE = 0.2
_CHILD = frozenset({signal.SIGCHLD})
_MOMENT = 0.002
"""Seconds for which the end of a command's output may hold the agent up, waiting for the command itself to end: then one turn and one write tell all."""
_MIN_RING = 65536
_MAX_RING = 64 << 20
_MOST_SHOWN = 65536
"""Characters of a command's own variables up to which lists show them."""
Json = dict[str, Any]


class Host(Protocol):
    """All commands, as one of them sees them."""

    loop: Loop
    cgroups: Cgroups

    def reap(self) -> None: ...

    def gone(self) -> None: ...


class Command:
    """One command the agent started."""

    def __init__(self, host: Host, exec_id: str, args: Json, user: users.User, cwd: str) -> None:
        self.host = host
        self.loop = host.loop
        self.exec_id = exec_id
        self.argv: list[str] = args["argv"]
        self.user, self.cwd = user, cwd
        self.tag = str(args.get("tag", ""))
        self.budget = min(_MAX_RING, max(_MIN_RING, int(args.get("limit", 1 << 20))))
        self.timeout = float(args.get("timeout") or 0)
        self.linger = bool(args.get("linger"))
        """Output ends with its pipes alone, however long after the main process."""
        self.env: dict[str, str] = args.get("env") or {}
        self.has_input = bool(args.get("stdin") or args.get("terminal"))
        self.started_at = time.time()
        self.pid = 0
        self.exited: Json | None = None
        self.timed_out = False
        self.terminal = bool(args.get("terminal"))
        self.terminal_fd = self._master = -1
        self.outputs: list[Output] = []
        self.input = Input(self, -1)
        self.group: Group | None = None
        self._waited = False
        self.deadline: Timer | None = None
        self.listeners: dict[int, Conversation] = {}

    def listen(self, request: Request) -> None:
        """The host is told how the command ends under this request's number."""
        self.listeners[request.id] = request.conversation

    def tell(self, **fields: Any) -> None:
        for request, conversation in self.listeners.items():
            conversation.event(request, **fields)

    def trim(self) -> None:
        """Keeps both rings together within the budget, the larger one giving first."""
        over = sum(len(o.ring.data) for o in self.outputs) - self.budget
        if over <= 0:
            return
        for output in sorted(self.outputs, key=lambda o: -len(o.ring.data)):
            over -= output.ring.shrink(over)

    def end(self, status: int) -> None:
        """The main process was reaped."""
        end = os.waitstatus_to_exitcode(status)
        code, number = (end, None) if end >= 0 else (None, -end)
        killed = number == signal.SIGKILL and not self.timed_out and self.group is not None and self.group.oom_kills() > 0
        self.exited = {"code": code, "signal": number, "timed_out": self.timed_out, "oom": killed}
        self.tell(exited=self.exited)
        if self._master >= 0:
            os.close(self._master)
        for output in self.outputs:
            output.read()
        if self.terminal_fd < 0:
            self.input.close()
        if not self.linger or not self.open:
            self._close_soon()
        self.loop.idle(self._clean_group)

    @property
    def open(self) -> bool:
        """Whether there may be more output."""
        return any(not output.ring.ended for output in self.outputs)

    def _close_soon(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
        for output in self.outputs:
            if not output.ring.ended:
                self.loop.later(GRACE, self._settle)
                break

    def stop_lingering(self) -> None:
        """It was told to end: what holds its pipes after it counts no more."""
        if self.linger:
            self.linger = False
            if self.exited is not None:
                self._close_soon()

    def _settle(self) -> None:
        settled = [o.settle() for o in self.outputs]
        if not all(settled):
            self.loop.later(GRACE, self._settle)

    def output_closed(self) -> None:
        """Mostly a command's last act but one."""
        if self.exited is None and not self._waited:
            self._waited = True
            if signal.sigtimedwait(_CHILD, _MOMENT) is not None:
                self.host.reap()
        elif self.linger and self.deadline is not None and not self.open:
            self.deadline.cancel()

    def close_terminal(self) -> None:
        """Nobody has the terminal open any more. Closing its master hangs up, which would kill a command that has closed its descriptors and is about to end:
        it stays until then."""
        self.input.close()
        fd, self.terminal_fd = self.terminal_fd, -1
        if self.exited is None:
            self._master = fd
        else:
            os.close(fd)

    def _clean_group(self) -> None:
        """Gives the cgroup back once its last process is gone."""
        group, loop = self.group, self.loop
        if group is None:
            self.host.gone()
            return

        def changed(_events: int) -> None:
            if group.empty():
                loop.unregister(group.events)
                give_back()

        def give_back() -> None:
            self.group = None
            self.host.cgroups.give(group)
            self.host.gone()

        if group.empty():
            give_back()
        else:
            loop.register(group.events, select.EPOLLPRI, changed)
            changed(0)

    def kill_tree(self) -> None:
        if self.group is not None:
            self.group.kill()
        elif self.host.cgroups.root is None and self.pid:
            cgroups.kill_session(self.pid)

    def expire(self) -> None:
        if self.exited is None or (self.linger and self.open):
            self.timed_out = True
            self.kill_tree()
            self.stop_lingering()

    def info(self) -> Json:
        return {
            "exec_id": self.exec_id,
            "pid": self.pid,
            "argv": self.argv,
            "cwd": self.cwd,
            "user": self.user.name,
            "tag": self.tag,
            "terminal": bool(self.terminal),
            "started_at": self.started_at,
            "exited": self.exited,
            "open": self.open,
            "env": self.env if sum(len(name) + len(value) for name, value in self.env.items()) < _MOST_SHOWN else {},
        }
