"""The seam to the room that starts processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one VMM's cgroup. `memory_bytes` counts guest RAM and the VMM's overhead; `cpu_cores` is a quota in cores; `pids` counts tasks."""

    memory_bytes: int
    cpu_cores: float
    pids: int


@dataclass(frozen=True, slots=True)
class Bind:
    """`source` on the host appears as `target` (absolute) inside the jail."""

    source: Path
    target: str
    writable: bool = False


@dataclass(frozen=True, slots=True)
class Jail:
    """What confines a child. Fields that this user may not set up are left out by `Processes.confinement`'s verdict, never silently by the caller.

    `binds`: all the child sees, besides an empty /tmp, /proc without other processes, and /dev with null, zero, urandom.
    `uid` None keeps the caller's. `netns` names a file of a network namespace to join; None makes an empty one of its own.
    """

    binds: tuple[Bind, ...]
    limits: Limits
    uid: int | None = None
    gid: int | None = None
    netns: Path | None = None
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """A long-lived child that outlives this process. `fds` maps the child's descriptor number to ours. `exit_file` receives the ExitRecord as
    JSON, atomically, whoever is alive then. `output` collects stdout and stderr, cut at `output_limit` bytes. `leash`: a pid whose death ends the child."""

    name: str
    argv: Sequence[str]
    exit_file: Path
    output: Path
    output_limit: int = 65536
    env: Mapping[str, str] = field(default_factory=dict)
    fds: Mapping[int, int] = field(default_factory=dict)
    jail: Jail | None = None
    leash: int | None = None


@dataclass(frozen=True, slots=True)
class ExitRecord:
    """How a child ended: `code` for an exit, `signal` for a kill, both None when nobody could see it. `oom` when its cgroup's OOM killer fired."""

    code: int | None = None
    signal: int | None = None
    oom: bool = False


@dataclass(frozen=True, slots=True)
class Completed:
    """A finished tool: exit code, and its output in whole (bounded by the tool, not by us)."""

    code: int
    stdout: bytes
    stderr: bytes


@dataclass(frozen=True, slots=True)
class ConfinementCheck:
    """One line of what confinement holds here. `mend` is '' when it holds."""

    name: str
    holds: bool
    detail: str
    mend: str = ""


class Child(Protocol):
    """A child that runs, or ran. `pid` and `start_time` (clock ticks since boot, field 22 of /proc/PID/stat) identify it for ever on this boot."""

    @property
    def pid(self) -> int: ...

    @property
    def start_time(self) -> int: ...

    async def wait(self) -> ExitRecord:
        """Returns when the process is gone and reaped, and its cgroup is removed. Many may wait; a cancelled wait changes nothing."""
        ...

    def kill(self, signal: int) -> None:
        """Sends a signal to exactly this process (by pidfd); a process that is gone already is no error."""
        ...


class Processes(Protocol):
    """Starts children and runs tools. Children survive this process; `adopt` takes them back."""

    async def spawn(self, spec: ChildSpec) -> Child:
        """Starts a child. Raises MissingTool (no such program), NoPermission (with the step of the jail that was refused), NoSpace. On any error, and
        when cancelled, no process, cgroup or namespace stays behind."""
        ...

    async def adopt(self, name: str, pid: int, start_time: int, exit_file: Path) -> Child | ExitRecord:
        """The same child again after a restart of ours, or how it ended. Pid and start time must both agree: a recycled pid is never adopted."""
        ...

    async def reap(self, run_dir: Path) -> None:
        """Kills every child of this home whose exit file lies in `run_dir`, and returns when it is gone: for a launch that was never reported. None
        there is no error."""
        ...

    async def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        stdin: bytes | None = None,
        env: Mapping[str, str] | None = None,
        on_line: Callable[[bytes], None] | None = None,
    ) -> Completed:
        """Runs a tool to its end. `env` is the whole environment of the tool; None gives it a scrubbed one. `on_line` is called in the event loop with
        each line of either stream as it comes, without its newline: for the progress of long tools. Raises
        MissingTool, TimedOut (the tool's process group was killed and reaped), NoPermission. Never through a shell.
        A non-zero exit code is returned, not raised. When cancelled, the tool is killed and reaped first."""
        ...

    def confinement(self) -> Sequence[ConfinementCheck]:
        """What a Jail can hold for this user on this machine, one line each: own uid, no new privileges, namespaces, cgroup limits."""
        ...
