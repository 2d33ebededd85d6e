"""The keeper's loop: one epoll over the listening socket, the daemons, SIGCHLD, the children's outputs and leashes. No threads, no waiting anywhere else.

    spawn:  cgroup made -> clone into the jail's namespaces -> (child: confine, exec; its error pipe closes on exec) -> answer
    end:    SIGCHLD -> reaped -> OOM counter read -> cgroup removed -> exit file written -> every daemon told

It ends when no daemon is connected, no child lives and no cgroup waits to be removed.
"""

from __future__ import annotations

import errno
import gc
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from torpor.proc.keeper import jail, protocol, syscalls
from torpor.proc.keeper.cgroups import Cgroups
from torpor.proc.keeper.child import Child, run_child
from torpor.proc.keeper.log import say
from torpor.proc.keeper.output import BoundedOutput

_TICK = 0.1  # seconds between two reads of a flooded pipe
_FIRST_CLIENT = 30.0  # seconds to wait for whoever started it


def detect_mode() -> str:
    """'root', 'user' when a user namespace can be made and furnished, else 'none'."""
    if os.geteuid() == 0:
        return "root"
    ids = (os.getuid(), os.getgid())
    plain: dict[str, Any] = {"binds": [], "devices": [], "uid": None, "gid": None, "netns": None}
    try:
        pid = syscalls.clone(jail.clone_flags(plain, "user"))
    except OSError:
        return "none"
    if pid == 0:
        try:
            jail.confine(plain, "user", ids, None)
        except OSError:
            os._exit(1)
        os._exit(0)
    return "user" if os.waitpid(pid, 0)[1] == 0 else "none"


def own_cgroups() -> Cgroups:
    """The cgroups, with this process settled in them. A keeper of another home that leaves at this moment may remove what was just made; then once more."""
    while True:
        try:
            cgroups = Cgroups()
            cgroups.settle()
        except FileNotFoundError:
            continue
        return cgroups


class Keeper:
    """Owns the children of one home."""

    def __init__(self, home: str, listener: socket.socket) -> None:
        self._home = home
        self._listener = listener
        self._mode = detect_mode()
        self._cgroups = own_cgroups()
        self._cgroups.sweep(protocol.cgroup_name(home, ""))
        self._children: dict[int, Child] = {}
        self._clients: dict[int, socket.socket] = {}
        self._lingering: set[str] = set()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._flooded: set[int] = set()
        self._poll = select.epoll()
        self._had_client = False
        self._next_tick = 0.0

    # --- the loop

    def run(self) -> None:
        signal_read, signal_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(signal_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for harmless in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(harmless, signal.SIG_IGN)
        self._watch(self._listener.fileno(), self._accept)
        self._watch(signal_read, lambda: self._on_children(signal_read))
        while not self._idle():
            if not self._turn() and not self._had_client:
                return
        os.unlink(os.path.join(self._home, protocol.socket_name()))
        self._cgroups.leave()

    def _turn(self) -> bool:
        """One round; False when nothing happened in the time it waited."""
        timeout = max(0.0, self._next_tick - time.monotonic()) if self._flooded else None if self._had_client else _FIRST_CLIENT
        ready = self._poll.poll(timeout)
        for fd, _ in ready:
            handler = self._handlers.get(fd)
            if handler is not None:
                handler()
        if self._flooded and time.monotonic() >= self._next_tick:
            self._tick()
        return bool(ready) or bool(self._flooded)

    def _idle(self) -> bool:
        return self._had_client and not (self._clients or self._children or self._lingering)

    def _watch(self, fd: int, handler: Callable[[], None]) -> None:
        self._handlers[fd] = handler
        self._poll.register(fd, select.EPOLLIN)

    def _unwatch(self, fd: int) -> None:
        if self._handlers.pop(fd, None) is not None:
            self._poll.unregister(fd)

    # --- daemons

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        self._had_client = True
        self._clients[client.fileno()] = client
        self._watch(client.fileno(), lambda: self._on_client(client))

    def _on_client(self, client: socket.socket) -> None:
        fds: list[int] = []
        try:
            packet, fds, _, _ = socket.recv_fds(client, protocol.PACKET, protocol.MAX_FDS)
            if not packet:
                self._drop_client(client)
                return
            self._handle(client, protocol.decode(packet), fds)
        except (ConnectionError, ValueError, KeyError) as error:
            say(f"dropped a daemon: {error!r}")
            self._drop_client(client)
        finally:
            for fd in fds:
                os.close(fd)

    def _drop_client(self, client: socket.socket) -> None:
        if self._clients.pop(client.fileno(), None) is not None:
            self._unwatch(client.fileno())
            client.close()

    def _handle(self, client: socket.socket, message: dict[str, Any], fds: list[int]) -> None:
        if message["op"] == "hello":
            answer = {"op": "hello", "version": protocol.VERSION, "mode": self._mode, "problems": self._cgroups.problems, "cgroups": self._cgroups.usable}
            self._send(client, answer)
        elif message["op"] == "find":
            child = self._children.get(message["pid"])
            alive = child is not None and child.start_time == message["start_time"]
            self._send(client, {"op": "found", "id": message["id"], "alive": alive})
        elif message["op"] == "within":
            inside = [child for child in self._children.values() if os.path.dirname(child.message["exit_file"]) == message["directory"]]
            known = [
                {"name": child.message["name"], "pid": child.pid, "start_time": child.start_time, "exit_file": child.message["exit_file"]} for child in inside
            ]
            self._send(client, {"op": "inside", "id": message["id"], "children": known})
        elif message["op"] == "spawn":
            self._spawn(client, message, fds)
        else:
            raise ValueError(f"unknown op {message['op']!r}")

    def _send(self, client: socket.socket, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
        try:
            socket.send_fds(client, [protocol.encode(message)], fds)
        except OSError:
            self._drop_client(client)

    # --- births

    def _spawn(self, client: socket.socket, message: dict[str, Any], fds: list[int]) -> None:
        child = Child(protocol.cgroup_name(self._home, message["name"]), message)
        jail.Step.name = "output file"
        try:
            self._start(client, child, fds)
        except OSError as error:
            child.close()
            if child.pid == 0:
                self._remove_cgroup(child)
            self._send(client, {"op": "failed", "id": message["id"], "step": jail.Step.name, "errno": error.errno or errno.EIO})

    def _start(self, client: socket.socket, child: Child, fds: list[int]) -> None:
        message = child.message
        read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        error_read, error_write = os.pipe2(os.O_CLOEXEC)
        try:
            child.output = BoundedOutput(message["output"], read_end, message["output_limit"])
            if message["leash"] is not None:
                jail.Step.name = "leash"
                child.leash = os.pidfd_open(message["leash"])
            confined = message["jail"]
            if confined is not None:
                jail.Step.name = "cgroup"
                child.in_cgroup = True
                self._cgroups.make(child.cgroup, *confined["limits"])
            jail.Step.name = "clone"
            ids = (os.getuid(), os.getgid())
            pid = self._clone(child) if child.in_cgroup else syscalls.clone(0)
            if pid == 0:
                run_child(child, self._cgroups, self._mode, ids, fds, write_end, error_write)
        except OSError:
            os.close(error_read)
            if child.output is None:
                os.close(read_end)
            raise
        finally:
            os.close(write_end)
            os.close(error_write)
        child.pid, child.start_time = pid, protocol.start_time(pid)
        child.pidfd = os.pidfd_open(pid)
        self._children[pid] = child
        self._watch(error_read, lambda: self._on_started(client, child, error_read))

    def _clone(self, child: Child) -> int:
        cgroup = self._cgroups.open_unified(child.cgroup)
        try:
            return syscalls.clone(jail.clone_flags(child.message["jail"], self._mode), cgroup)
        finally:
            if cgroup >= 0:
                os.close(cgroup)

    def _on_started(self, client: socket.socket, child: Child, error_read: int) -> None:
        """The error pipe closed: by exec, or with a report of the step that failed."""
        report = os.read(error_read, 4096).decode("utf-8", "surrogateescape")
        self._unwatch(error_read)
        os.close(error_read)
        if report:
            number, _, step = report.partition(" ")
            child.failed = (step, int(number))
            child.client = client
            if child.ended:
                self._report_failure(child)
            return
        child.running = True
        if child.output is not None:
            self._watch(child.output.fd, lambda: self._on_output(child))
        if child.leash is not None:
            self._watch(child.leash, lambda: self._on_leash(child))
        started = {"op": "spawned", "id": child.message["id"], "pid": child.pid, "start_time": child.start_time}
        self._send(client, started, (child.pidfd,))
        if client.fileno() < 0:
            signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)  # who asked for it left, and nobody else knows of it
        if child.ended:
            self._finish(child)

    def _report_failure(self, child: Child) -> None:
        assert child.failed is not None
        del self._children[child.pid]
        child.close()
        self._remove_cgroup(child)
        if child.client is not None and child.client.fileno() >= 0:
            step, number = child.failed
            self._send(child.client, {"op": "failed", "id": child.message["id"], "step": step, "errno": number})

    # --- life

    def _on_leash(self, child: Child) -> None:
        assert child.leash is not None
        self._unwatch(child.leash)
        signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)

    def _on_output(self, child: Child) -> None:
        output = child.output
        if output is None:
            return
        if not output.drain():
            self._unwatch(output.fd)
            self._flooded.discard(child.pid)
            output.flush()
        elif output.flooding:
            self._unwatch(output.fd)
            if not self._flooded:
                self._next_tick = time.monotonic() + _TICK
            self._flooded.add(child.pid)

    def _tick(self) -> None:
        """Reads once from every flooded pipe; those that were quiet are watched again."""
        for pid in list(self._flooded):
            child = self._children.get(pid)
            self._flooded.discard(pid)
            if child is None or child.output is None:
                continue
            child.output.drain()
            child.output.flush()
            self._watch(child.output.fd, lambda child=child: self._on_output(child))  # type: ignore[misc]

    # --- ends

    def _on_children(self, signal_read: int) -> None:
        os.read(signal_read, 4096)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            child = self._children.get(pid)
            if child is not None:
                child.ended, child.status = True, status
                if child.failed is not None:
                    self._report_failure(child)
                elif child.running:
                    self._finish(child)
        self._lingering = {name for name in self._lingering if not self._cgroups.remove(name)}

    def _finish(self, child: Child) -> None:
        """The child is reaped: everything of it goes, its record is written, then told."""
        record = child.record(self._cgroups.oom_kills(child.cgroup) if child.in_cgroup else 0)
        self._flooded.discard(child.pid)
        if child.output is not None:
            self._unwatch(child.output.fd)
            child.output.drain()  # one piece is as much as a pipe holds
        if child.leash is not None:
            self._unwatch(child.leash)
        child.close()
        self._remove_cgroup(child)
        child.write_exit_file(record)
        del self._children[child.pid]
        told = {"op": "exit", "name": child.message["name"], "pid": child.pid, "start_time": child.start_time, "record": record}
        for client in list(self._clients.values()):
            self._send(client, told)

    def _remove_cgroup(self, child: Child) -> None:
        if child.in_cgroup and not self._cgroups.remove(child.cgroup):
            self._lingering.add(child.cgroup)


def main() -> None:
    """argv: home, number of the listening socket's descriptor. Forks once, so that whoever started it can reap it at once."""
    home, listener = sys.argv[1], socket.socket(fileno=int(sys.argv[2]))
    if os.fork():
        os._exit(0)
    os.setsid()
    os.chdir("/")
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    listener.set_inheritable(False)
    keeper = Keeper(home, listener)
    gc.freeze()  # a collection would touch, and so copy, memory that a child shares with its parent
    keeper.run()
