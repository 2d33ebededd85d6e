"""One child as the keeper knows it, and the code that runs in it between clone and exec."""

from __future__ import annotations

import fcntl
import gc
import json
import os
import signal
import socket
from typing import Any

from torpor.proc.keeper import jail, syscalls
from torpor.proc.keeper.cgroups import Cgroups
from torpor.proc.keeper.log import say
from torpor.proc.keeper.output import BoundedOutput

_SAFE = 64  # descriptors are parked from here on while the child's own numbers are filled


class Child:
    """starting -> running (exec happened) -> ended (reaped), or starting -> failed (a step before exec) -> ended."""

    def __init__(self, cgroup: str, message: dict[str, Any]) -> None:
        self.cgroup = cgroup
        self.message = message
        self.pid = 0
        self.start_time = 0
        self.pidfd = -1
        self.output: BoundedOutput | None = None
        self.leash: int | None = None
        self.in_cgroup = False
        self.running = False
        self.ended = False
        self.status = 0
        self.failed: tuple[str, int] | None = None
        self.client: socket.socket | None = None

    def close(self) -> None:
        """Lets go of every descriptor. Idempotent."""
        if self.output is not None:
            self.output.close()
            self.output = None
        for fd in (self.leash, self.pidfd):
            if fd is not None and fd >= 0:
                os.close(fd)
        self.leash, self.pidfd = None, -1

    def record(self, oom_kills: int) -> dict[str, Any]:
        killed = os.WIFSIGNALED(self.status)
        return {
            "code": None if killed else os.WEXITSTATUS(self.status),
            "signal": os.WTERMSIG(self.status) if killed else None,
            "oom": oom_kills > 0 and killed and os.WTERMSIG(self.status) == signal.SIGKILL,
        }

    def write_exit_file(self, record: dict[str, Any]) -> None:
        """Atomic: a reader sees the whole record or none."""
        path = self.message["exit_file"]
        try:
            with open(f"{path}.new", "w") as file:
                json.dump(record, file)
            os.replace(f"{path}.new", path)
        except OSError as error:
            # A full disk or a removed directory: connected daemons are told by message, and the keeper must serve its other children.
            say(f"{path}: {error}")


def run_child(child: Child, cgroups: Cgroups, mode: str, ids: tuple[int, int], fds: list[int], output: int, error: int) -> None:
    """In the child; never returns. A failing step goes to the error pipe as 'errno step'."""
    _error_fd[0] = error
    gc.disable()
    try:
        _prepare(child, cgroups, mode, ids, fds, output, error)
    except OSError as problem:
        os.write(_error_fd[0], f"{problem.errno or 5} {jail.Step.name}".encode("utf-8", "surrogateescape"))
    except BaseException as problem:
        os.write(_error_fd[0], f"5 {jail.Step.name}: {problem!r}".encode("utf-8", "surrogateescape"))
    os._exit(127)


_error_fd = [2]


def _prepare(child: Child, cgroups: Cgroups, mode: str, ids: tuple[int, int], fds: list[int], output: int, error: int) -> None:
    message = child.message
    jail.Step.name = "descriptors"
    _error_fd[0] = error = _park(error)
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    passed = [_park(fd) for fd in fds]
    confined = message["jail"]
    netns = passed.pop() if confined is not None and confined["netns"] is not None else None
    if child.in_cgroup:
        jail.Step.name = "enter cgroup"
        cgroups.enter(child.cgroup)
    if confined is not None:
        jail.confine(confined, mode, ids, netns)
    jail.Step.name = "descriptors"
    null = os.open("/dev/null", os.O_RDWR)
    output = _park(output)
    os.dup2(null, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    highest = 2
    for number, fd in zip(message["fds"], passed, strict=True):
        os.dup2(fd, number)
        highest = max(highest, number)
    syscalls.close_on_exec_from(highest + 1)
    for unused in set(range(3, highest + 1)) - set(message["fds"]):
        try:
            os.close(unused)
        except OSError:
            continue  # it was not open
    jail.Step.name = f"exec {message['argv'][0]}"
    os.execve(message["argv"][0], message["argv"], message["env"])  # noqa: S606 - no shell is the point


def _park(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _SAFE)
