"""User processes in cgroup v2: one group `user` for all of them, frozen and thawed as a whole, one below it per command, killed as a whole.

Without a writable cgroup2 root (tests on a host) `Cgroups.root` is None: then there is no freezing, and a command's processes are found by their session.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time

ROOT = "/sys/fs/cgroup"
_MIB = 1 << 20
_SPARES = 16


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _read(path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096).decode()
    finally:
        os.close(fd)


def field(text: str, name: str) -> int:
    """A value of a flat keyed file such as memory.events; 0 when it is not there."""
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


class Group:
    """The cgroup of one command. Used again by later ones once it is empty: making and removing one costs more than the command itself."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._events = os.open(f"{path}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        self._memory = -1
        with contextlib.suppress(OSError):
            self._memory = os.open(f"{path}/memory.events", os.O_RDONLY | os.O_CLOEXEC)
        self._oom_before = 0

    def kill(self) -> None:
        """SIGKILL to everything in it, also what is being forked just now."""
        _write(f"{self.path}/cgroup.kill", "1")

    def _oom_total(self) -> int:
        return field(os.pread(self._memory, 512, 0).decode(), "oom_kill") if self._memory >= 0 else 0

    def oom_kills(self) -> int:
        """Processes of the present command that the OOM killer ended."""
        return self._oom_total() - self._oom_before

    def renew(self) -> None:
        """For the next command."""
        self._oom_before = self._oom_total()

    def empty(self) -> bool:
        return field(os.pread(self._events, 256, 0).decode(), "populated") == 0

    @property
    def events(self) -> int:
        """A descriptor that becomes EPOLLPRI-ready when the group becomes empty or full; to be read (`empty`) before waiting."""
        return self._events

    def remove(self) -> None:
        """Needs it empty."""
        os.rmdir(self.path)
        for fd in (self.fd, self._events, self._memory):
            if fd >= 0:
                os.close(fd)
        self.fd = self._events = self._memory = -1


class Cgroups:
    """`prepare` makes `user`; `take` gives an empty group for a command, `give` takes it back."""

    def __init__(self) -> None:
        self.root: str | None = None
        self._next = 0
        self._spare: list[Group] = []
        self._events = self._freeze = self._memory = -1
        self._asked = False
        self._waiter = select.poll()

    def prepare(self, memory_total: int, root: str = ROOT) -> None:
        """Controllers on, limits that leave the agent room: a fork bomb or a memory hog starves itself only."""
        user = f"{root}/user"
        for controller in ("memory", "pids", "cpu"):
            with contextlib.suppress(OSError):
                _write(f"{root}/cgroup.subtree_control", f"+{controller}")
        os.makedirs(user, exist_ok=True)
        for name, value in (
            ("pids.max", str(min(32768, max(1024, memory_total // _MIB * 8)))),
            ("memory.max", str(memory_total - 24 * _MIB - memory_total // 64)),
            ("cgroup.subtree_control", "+memory"),
        ):
            with contextlib.suppress(OSError):
                _write(f"{user}/{name}", value)
        self._events = os.open(f"{user}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        self._freeze = os.open(f"{user}/cgroup.freeze", os.O_WRONLY | os.O_CLOEXEC)
        self._waiter.register(self._events, select.POLLPRI)
        with contextlib.suppress(OSError):
            self._memory = os.open(f"{user}/memory.current", os.O_RDONLY | os.O_CLOEXEC)
        self.root = user
        self.refill()

    def take(self) -> Group | None:
        if self._spare:
            return self._spare.pop()
        return self._make() if self.root is not None else None

    def give(self, group: Group) -> None:
        """An empty group back."""
        if len(self._spare) < _SPARES:
            group.renew()
            self._spare.append(group)
        else:
            group.remove()

    def refill(self) -> None:
        """Has at least one group ready; called when nothing hurries."""
        if not self._spare and self.root is not None:
            self._spare.append(self._make())

    def _make(self) -> Group:
        self._next += 1
        path = f"{self.root}/{self._next}"
        os.mkdir(path)
        return Group(path)

    @property
    def asked(self) -> bool:
        """Whether user processes were asked to stand still."""
        return self._asked

    def populated(self) -> bool:
        return self._state("populated") == 1

    def _state(self, name: str) -> int:
        return field(os.pread(self._events, 256, 0).decode(), name) if self.root is not None else 0

    def freeze(self, seconds: float) -> bool:
        """Stops every user process; False when some did not stop in time (they stay asked to). Where there is none, nothing is done: only the agent could
        start one. Blocks at most `seconds`."""
        if self.root is None or not self.populated():
            return True
        self._asked = True
        os.pwrite(self._freeze, b"1", 0)
        end = time.monotonic() + seconds
        while self._state("frozen") == 0:
            if not self._waiter.poll(max(0.0, end - time.monotonic()) * 1000):
                return self._state("frozen") == 1
        return True

    def thaw(self) -> None:
        if self._asked:
            self._asked = False
            os.pwrite(self._freeze, b"0", 0)

    def side_group(self, name: str) -> Group | None:
        """A group outside `user`: not frozen with it."""
        if self.root is None:
            return None
        path = f"{os.path.dirname(self.root)}/{name}"
        os.makedirs(path, exist_ok=True)
        return Group(path)

    def memory(self) -> int:
        """Bytes charged to user processes, page cache included, of those that ended too; 0 where that is not known."""
        return int(os.pread(self._memory, 32, 0)) if self._memory >= 0 else 0

    def count(self) -> int:
        """User processes and threads now."""
        return int(_read(f"{self.root}/pids.current")) if self.root is not None else 0

    def oom_kills(self) -> int:
        """Processes that the guest's OOM killer ended since boot."""
        return field(_read(f"{self.root}/memory.events"), "oom_kill") if self.root is not None else 0

    def kill_all(self) -> None:
        if self.root is not None:
            _write(f"{self.root}/cgroup.kill", "1")


def kill_session(leader: int) -> None:
    """SIGKILL to every process of the session that `leader` began: kill_tree where there are no cgroups."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
                if int(fields[3]) == leader:
                    os.kill(int(name), signal.SIGKILL)
