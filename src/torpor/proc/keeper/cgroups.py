"""One cgroup per child, in cgroup v2 (also the `unified` mount of a hybrid machine) and in the v1 controllers memory, cpu and pids.

All lie in `torpor/` at the root of each hierarchy, so outside the cgroup that a service manager kills; `torpor/keeper` holds the keeper itself. Names of
children are the caller's, so that another process can find the counter of a child's OOM kills after the keeper died.

A process that is moved by its number in `cgroup.procs` waits for every other thread of the machine to pass by (an RCU grace period, 8 to 20 ms). So a child is
born in its cgroup of version 2, and enters those of version 1 as what it still is, a single thread: by a 0 in `tasks`, which waits for nobody.
"""

from __future__ import annotations

import errno
import os

PARENT = "torpor"
KEEPER = "keeper"
CONTROLLERS = ("memory", "cpu", "pids")
_PERIOD = 100_000
# All microVMs together are one entry beside every other process of the machine: an even share, so that neither a busy neighbour starves them nor they the
# host agent that serves them.
_PARENT_WEIGHT = 1.0 * (os.cpu_count() or 1)


def hierarchies(mounts: str = "/proc/self/mounts") -> dict[str, str]:
    """Mount points by what they control: 'v2', and v1's 'memory', 'cpu', 'pids'."""
    found: dict[str, str] = {}
    with open(mounts) as file:
        for line in file:
            _, where, kind, options = line.split(" ")[:4]
            if kind == "cgroup2":
                found.setdefault("v2", where)
            elif kind == "cgroup":
                for controller in CONTROLLERS:
                    if controller in options.split(","):
                        found.setdefault(controller, where)
    return found


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()


class Cgroups:
    """What this process may use. `usable` maps 'v2' or a v1 controller to torpor's directory in it; `problems` says what is missing and why."""

    def __init__(self) -> None:
        self.usable: dict[str, str] = {}
        self.controllers: set[str] = set()
        self.problems: list[str] = []
        for kind, mount in hierarchies().items():
            directory = os.path.join(mount, PARENT)
            try:
                os.makedirs(directory, exist_ok=True)
                if kind == "v2":
                    self.controllers |= self._enable(mount, directory)
                else:
                    self.controllers.add(kind)
                for file, value in _weights(kind, _PARENT_WEIGHT):
                    path = os.path.join(directory, file)
                    if os.path.exists(path):
                        _write(path, value)
                probe = os.path.join(directory, f"probe-{os.getpid()}")
                os.mkdir(probe)
                os.rmdir(probe)
                self.usable[kind] = directory
            except OSError as error:
                self.problems.append(f"{directory}: {error.strerror}")
        for controller in CONTROLLERS:
            if controller not in self.controllers:
                self.problems.append(f"no {controller} controller")

    def _enable(self, mount: str, directory: str) -> set[str]:
        """Hands the controllers down from the root; returns those that children will have."""
        for level in (mount, directory):
            here = set(_read(os.path.join(level, "cgroup.controllers")).split())
            active = set(_read(os.path.join(level, "cgroup.subtree_control")).split())
            for controller in sorted(here.intersection(CONTROLLERS) - active):
                try:
                    _write(os.path.join(level, "cgroup.subtree_control"), f"+{controller}")
                except OSError as error:
                    self.problems.append(f"{level}/cgroup.subtree_control +{controller}: {error.strerror}")
        active = set(_read(os.path.join(directory, "cgroup.subtree_control")).split())
        return active.intersection(CONTROLLERS)

    def make(self, name: str, memory: int, cpu: float, pids: int) -> None:
        """Makes the child's cgroups with their limits. On an error none stays."""
        try:
            for kind, directory in self.usable.items():
                here = os.path.join(directory, name)
                try:
                    os.mkdir(here)
                except FileExistsError:  # left by a keeper that was killed; empty, or this fails
                    os.rmdir(here)
                    os.mkdir(here)
                for file, value in _limits(kind, memory, cpu, pids):
                    path = os.path.join(here, file)
                    if kind != "v2" or os.path.exists(path):
                        _write(path, value)
        except OSError:
            self.remove(name)
            raise

    def open_unified(self, name: str) -> int:
        """A descriptor of the child's cgroup of version 2 for clone, -1 when there is none. The caller closes it."""
        directory = self.usable.get("v2")
        return -1 if directory is None else os.open(os.path.join(directory, name), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def enter(self, name: str) -> None:
        """Moves the calling process, which has one thread, into what is not of version 2: there it was born."""
        for kind, directory in self.usable.items():
            if kind != "v2":
                _write(os.path.join(directory, name, "tasks"), "0")

    def settle(self) -> None:
        """Moves the calling process into `torpor/keeper`, out of whatever its starter lives and dies with."""
        for directory in self.usable.values():
            os.makedirs(os.path.join(directory, KEEPER), exist_ok=True)
        for directory in self.usable.values():
            _write(os.path.join(directory, KEEPER, "cgroup.procs"), "0")

    def sweep(self, prefix: str) -> None:
        """Removes empty cgroups that an earlier keeper, killed, left. Those with a living child stay: it may still be adopted."""
        for directory in self.usable.values():
            for name in os.listdir(directory):
                if name.startswith(prefix):
                    remove_if_empty(os.path.join(directory, name))

    def leave(self) -> None:
        """The way back at the end; removes what nobody else uses."""
        for directory in self.usable.values():
            try:
                _write(os.path.join(os.path.dirname(directory), "cgroup.procs"), "0")
                os.rmdir(os.path.join(directory, KEEPER))
                os.rmdir(directory)
            except OSError:
                continue  # a keeper of another home lives there, or the root takes no processes: two empty directories stay

    def oom_kills(self, name: str) -> int:
        """How often the child's OOM killer fired; 0 when nobody counted."""
        return oom_kills(name, self.usable)

    def remove(self, name: str) -> bool:
        """Kills what is left inside and removes the directories; False when something in there is not reaped yet."""
        gone = True
        for directory in self.usable.values():
            gone &= _remove(os.path.join(directory, name))
        return gone


def oom_kills(name: str, usable: dict[str, str]) -> int:
    for kind, file in (("v2", "memory.events"), ("memory", "memory.oom_control")):
        if kind not in usable:
            continue
        try:
            for line in _read(os.path.join(usable[kind], name, file)).splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
        except OSError:
            continue
    return 0


def _weights(kind: str, cores: float) -> list[tuple[str, str]]:
    """A share of contended CPU time: that of `cores` ordinary processes."""
    if kind == "v2":
        return [("cpu.weight", str(min(10_000, max(1, int(100 * cores)))))]
    if kind == "cpu":
        return [("cpu.shares", str(max(2, int(1024 * cores))))]
    return []


def _limits(kind: str, memory: int, cpu: float, pids: int) -> list[tuple[str, str]]:
    quota = max(1000, int(cpu * _PERIOD))
    if kind == "v2":
        return [("memory.max", str(memory)), ("memory.oom.group", "1"), ("cpu.max", f"{quota} {_PERIOD}"), ("pids.max", str(pids)), *_weights(kind, cpu)]
    if kind == "memory":
        return [("memory.limit_in_bytes", str(memory))]
    if kind == "cpu":
        return [("cpu.cfs_period_us", str(_PERIOD)), ("cpu.cfs_quota_us", str(quota)), *_weights(kind, cpu)]
    return [("pids.max", str(pids))]


def remove_if_empty(path: str) -> None:
    try:
        os.rmdir(path)
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.ENOENT):
            raise


def _remove(path: str) -> bool:
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        for pid in _read(os.path.join(path, "cgroup.procs")).split():
            try:
                os.kill(int(pid), 9)
            except ProcessLookupError:
                continue
        return False
    return True
