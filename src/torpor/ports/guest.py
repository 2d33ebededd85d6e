"""The seam to one guest agent. All paths are absolute in the guest and are bytes-safe strings (surrogateescape)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Protocol

from torpor.model.sandbox import Identity


@dataclass(frozen=True, slots=True)
class Terminal:
    """A pseudo-terminal of this size in character cells."""

    rows: int = 24
    columns: int = 80


@dataclass(frozen=True, slots=True)
class ExecSpec:
    """A command. `cwd` '' is the user's home; `user` '' is the template's default; `env` is added to the user's login environment. With `terminal`, stdin
    and stdout are a PTY and stderr is empty. `timeout` seconds (None: no limit), after which the whole process tree gets SIGKILL. `tag` names it in lists.
    `output_limit`: bytes of the ring kept for a later attach, per command. `linger`: output ends with its pipes only, also when daemons keep them open long
    after the command; an agent too old for that ends it soon after the command, as without. Its `timeout` then holds for those daemons too."""

    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = ""
    user: str = ""
    stdin: bool = False
    terminal: Terminal | None = None
    timeout: float | None = None
    tag: str = ""
    output_limit: int = 1 << 20
    linger: bool = False


class StreamName(Enum):
    STDOUT = "stdout"
    STDERR = "stderr"


@dataclass(frozen=True, slots=True)
class Output:
    """`data` begins at byte `offset` of this command's output on `stream` (each stream counts from 0). A gap to the last piece means the ring had
    dropped those bytes before the attach."""

    stream: StreamName
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Exited:
    """The command ended: `code` 0-255, or `signal`; `timed_out` when its deadline killed it; `oom` when the guest's OOM killer did."""

    code: int | None
    signal: int | None = None
    timed_out: bool = False
    oom: bool = False

    @property
    def shell_code(self) -> int:
        """As a shell would say it: the code, 128 + signal, or 124 for the time-out."""
        if self.timed_out:
            return 124
        return self.code if self.code is not None else 128 + (self.signal or 0)


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """One command the agent started. `exited` None while it runs; ended commands stay listed until collected by `forget` or pushed out by newer ones. `open`:
    there may be more output. `env`: the variables it was given beside its user's, unless they were very many."""

    exec_id: str
    pid: int
    argv: tuple[str, ...]
    cwd: str
    user: str
    tag: str
    terminal: bool
    started_at: float
    exited: Exited | None
    open: bool = False
    env: Mapping[str, str] = field(default_factory=dict)


class GuestProcess(Protocol):
    """One command in the guest. It belongs to the guest: dropping this object, or losing the channel, leaves it running."""

    @property
    def exec_id(self) -> str: ...

    @property
    def pid(self) -> int: ...

    @property
    def held(self) -> Mapping[StreamName, range]:
        """Which bytes of each stream there were to read when it was attached with `present`: all that the command had written by then, as far as the ring
        still had it, from the attach point on. Without `present` it may be empty."""
        ...

    def output(self) -> AsyncIterator[Output]:
        """Pieces in order from the attach point on, until both streams ended. One consumer. Back-pressure reaches the command once the ring is full
        and a consumer
        is attached; with nobody attached the ring drops its oldest bytes and the command never blocks. Raises GuestLost."""
        ...

    async def wait(self) -> Exited:
        """How it ended. Does not need `output` to be read. Raises GuestLost."""
        ...

    async def write(self, data: bytes) -> None:
        """Feeds stdin or the PTY; returns when the guest's window took it. Raises Denied when it was started without stdin, GuestOSError EPIPE when closed."""
        ...

    async def close_stdin(self) -> None:
        """End of file on stdin (on a PTY: the EOF character). Idempotent."""
        ...

    async def resize(self, terminal: Terminal) -> None:
        """New size of the PTY. Raises Denied without one."""
        ...

    async def signal(self, number: int) -> None:
        """Signals the command's process group. An ended command is no error."""
        ...

    async def kill_tree(self) -> None:
        """SIGKILL to everything that descends from the command, daemons included. Idempotent."""
        ...

    def detach(self) -> None:
        """Stops receiving output; the command runs on."""
        ...


class FileKind(Enum):
    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Reached:
    """What a symlink leads to: `path` resolved as far as it exists, `raw_mode` its whole st_mode, 0 with the `errno` of looking where there is nothing."""

    path: str
    raw_mode: int
    errno: int = 0


@dataclass(frozen=True, slots=True)
class Details:
    """`raw_mode`: st_mode, the kind's bits too. `reached` None for what is no symlink. `attributes`: extended attributes `user.*` of the file, or of what the
    symlink leads to, as far as 16 KiB of them."""

    raw_mode: int
    reached: Reached | None
    attributes: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class FileInfo:
    """Sizes in bytes, times in seconds since the epoch, `mode` the permission bits (0o7777). `target` is a symlink's text, else ''."""

    path: str
    kind: FileKind
    size: int
    mode: int
    uid: int
    gid: int
    user: str
    group: str
    modified: float
    target: str = ""
    details: Details | None = None


class WatchKind(Enum):
    CREATED = "created"
    WRITTEN = "written"
    REMOVED = "removed"
    RENAMED = "renamed"
    ATTRIBUTES = "attributes"
    OVERFLOW = "overflow"


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """`path` relative to the watched directory; RENAMED carries the old name in `path` and the new one in `new_path` when both lie inside. OVERFLOW:
    events were lost. Of an exact watch RENAMED with `new_path` '' is a name that moved elsewhere, and not REMOVED."""

    kind: WatchKind
    path: str
    new_path: str = ""
    is_directory: bool = False


@dataclass(frozen=True, slots=True)
class Metrics:
    """A reading of the guest. CPU in percent of one core over the last sample interval; the rest in bytes; `processes` counts user processes."""

    vcpus: int
    cpu_percent: float
    memory_total: int
    memory_used: int
    memory_cache: int
    disk_total: int
    disk_used: int
    processes: int
    oom_kills: int


@dataclass(frozen=True, slots=True)
class Quiesced:
    """`frozen` False: the user processes did not freeze in time, and the artefact is marked so. Milliseconds spent for the log."""

    frozen: bool
    milliseconds: float


@dataclass(frozen=True, slots=True)
class Wake:
    """What a guest learns when it wakes. `clock` seconds since the epoch, `entropy` at least 32 fresh bytes, `generation` higher than any the guest has seen.
    `network`: address plan for the card or None for off. Confirmed by the guest before any user process runs."""

    generation: int
    clock: float
    entropy: bytes
    identity: Identity
    network: Mapping[str, str] | None = None
    disk_bytes: int = 0


class ByteStream(Protocol):
    """A connected TCP stream to a guest port."""

    async def read(self, limit: int = 65536) -> bytes:
        """1 to `limit` bytes, b'' at the peer's end of file. Raises GuestLost, GuestOSError ECONNRESET."""
        ...

    async def write(self, data: bytes) -> None:
        """Returns when the flow-control window took all of it. Raises GuestLost, GuestOSError EPIPE/ECONNRESET."""
        ...

    async def close_write(self) -> None: ...

    def close(self) -> None: ...


class Guest(Protocol):
    """A session with one guest agent. All methods raise GuestLost when the channel is gone for good, GuestProtocolError when the guest breaks the protocol,
    GuestOSError where the guest's kernel refuses. Requests carry ids and are executed at most once, also when the channel reconnects in between."""

    @property
    def generation(self) -> int: ...

    @property
    def default_user(self) -> str: ...

    @property
    def disk_fault(self) -> str:
        """Why the last wake could not grow the root file system to the sandbox's disk; '' when it did, or had nothing to do."""
        ...

    @property
    def default_home(self) -> str:
        """The default user's home, absolute."""
        ...

    async def ping(self) -> None: ...

    async def exec(self, spec: ExecSpec) -> GuestProcess:
        """Starts a command and attaches to its output from offset 0. Raises InvalidInput (unknown user, empty argv), GuestOSError (ENOENT program or
        cwd, EACCES)."""
        ...

    async def attach(self, exec_id: str, *, stdout_offset: int = 0, stderr_offset: int = 0, present: bool = False) -> GuestProcess:
        """Attaches to a command, replaying what its ring holds from the offsets on. An earlier attachment ends. `present`: what there is now is to be told
        from what comes (GuestProcess.held). Raises NotFound."""
        ...

    async def processes(self) -> Sequence[ProcessInfo]: ...

    async def signal(self, exec_id: str, number: int) -> None:
        """As GuestProcess.signal, without attaching to the command. Raises NotFound."""
        ...

    async def kill_tree(self, exec_id: str) -> None:
        """As GuestProcess.kill_tree, without attaching to the command. Raises NotFound."""
        ...

    async def send_input(self, exec_id: str, source: AsyncIterator[bytes] | bytes) -> None:
        """To a command's stdin or terminal without attaching to it; returns when its pipe took all of it. Concurrent inputs mix piece by piece. Cancelled, a
        part may have gone. Raises NotFound, Denied (started without stdin; or the agent is too old for this: `too_old`), GuestOSError EPIPE (closed)."""
        ...

    async def close_input(self, exec_id: str) -> None:
        """End of file on stdin (on a terminal: the EOF character) behind all input so far. Raises as send_input."""
        ...

    async def resize(self, exec_id: str, terminal: Terminal) -> None:
        """As GuestProcess.resize, without attaching to the command. Raises NotFound, Denied."""
        ...

    async def forget(self, exec_id: str) -> None:
        """Drops an ended command and its ring from the list. Raises NotFound, Denied while it runs."""
        ...

    def read_file(self, path: str, *, offset: int = 0, length: int | None = None, user: str = "") -> AsyncIterator[bytes]:
        """Streams a regular file's bytes. Raises GuestOSError (ENOENT, EISDIR, EACCES) at the first step."""
        ...

    async def write_file(
        self,
        path: str,
        source: AsyncIterator[bytes] | bytes,
        *,
        mode: int | None = None,
        user: str = "",
        append: bool = False,
        offset: int | None = None,
        make_parents: bool = True,
        sync: bool = False,
    ) -> FileInfo:
        """Streams into a file, owned by `user` (a new file's mode is `mode` or 0o644). Whole-file writes go to a temporary name and are renamed: a
        reader sees the
        old or the new file, and a cancelled write leaves the old one; symlinks are followed and existing mode and owner kept. `append`/`offset`
        write in place."""
        ...

    async def rewrite_file(
        self, path: str, source: AsyncIterator[bytes] | bytes, *, owner: str, attributes: Mapping[str, bytes] | None = None, replaced: str = ""
    ) -> FileInfo:
        """Streams into the file itself, as root: made with mode 0o644 or emptied, given to `owner` as parents made for it are, then written in as few writes as
        can be. Who watches a new file of less than 128 KiB sees it created, its attributes change, and one write. Old extended attributes whose names begin
        with `replaced` go, `attributes` are set. A cancelled write leaves what had come. Raises GuestOSError."""
        ...

    async def stat(self, path: str, *, follow: bool = True, details: bool = False) -> FileInfo:
        """`details`: fills FileInfo.details."""
        ...

    async def list_directory(self, path: str, *, depth: int = 1, details: bool = False) -> Sequence[FileInfo]:
        """Entries down to `depth` levels, sorted by path, symlinks not followed. Raises GuestOSError ENOENT, ENOTDIR; InvalidInput past 100,000 entries."""
        ...

    async def make_directory(self, path: str, *, mode: int = 0o755, parents: bool = True, user: str = "", owner: str = "") -> bool:
        """True if it was made, False if a directory stood there. What is made belongs to `owner`, else to `user`. Raises GuestOSError EEXIST when something
        else stands there."""
        ...

    async def move(self, source: str, target: str) -> None:
        """rename(2), by copy across file systems. Parents of `target` must exist."""
        ...

    async def remove(self, path: str, *, recursive: bool = False) -> None: ...

    async def symlink(self, target: str, path: str, *, user: str = "") -> None: ...

    async def chmod(self, path: str, mode: int) -> None: ...

    async def chown(self, path: str, user: str, group: str = "") -> None: ...

    async def get_xattrs(self, path: str) -> Mapping[str, bytes]: ...

    async def set_xattr(self, path: str, name: str, value: bytes | None) -> None:
        """Sets one attribute, or removes it with None."""
        ...

    def watch(self, path: str, *, recursive: bool = False, exact: bool = False) -> AsyncIterator[WatchEvent]:
        """Events from the moment the first `__anext__` was entered and the guest confirmed; ends when the directory is removed. New subdirectories join.
        `exact`: see WatchEvent; and a file that a new subdirectory already holds is told to be written, too, if it is not empty."""
        ...

    async def watching(self, path: str, *, recursive: bool = False, exact: bool = False) -> AsyncGenerator[WatchEvent, None]:
        """As `watch`, but returns when the watch stands: what happens from then on is an event. To be closed."""
        ...

    async def connect(self, port: int, host: str = "") -> ByteStream:
        """TCP to a guest port: 127.0.0.1, then ::1, then the guest's own address, unless `host` says. Raises GuestOSError ECONNREFUSED, ETIMEDOUT."""
        ...

    async def metrics(self) -> Metrics: ...

    async def quiesce(self) -> Quiesced:
        """Freezes user processes (at most 100 ms), trims freed blocks (bounded), drops a page cache above 64 MiB, drains the channel: after the reply neither
        side sends until `wake` (or `thaw`)."""
        ...

    async def thaw(self) -> None:
        """Undoes quiesce in the same life of the same sandbox: clock stepped, no new identity."""
        ...

    async def wake(self, wake: Wake) -> None:
        """After a restore: both sides discard until the new generation's hello, then the guest takes entropy, clock, identity, runs the hooks,
        confirms, thaws."""
        ...

    async def grow_root(self) -> int:
        """Grows the root file system to its device; returns its size in bytes."""
        ...

    async def sync(self) -> None:
        """sync(2) in the guest."""
        ...

    async def shutdown(self) -> None:
        """Ends user processes, unmounts, powers off. The channel closes."""
        ...

    async def close(self) -> None:
        """Closes the host's end only; commands run on."""
        ...


class GuestLink(Protocol):
    """Makes sessions."""

    async def connect(self, socket: Path, *, generation: int | None, timeout: float) -> Guest:
        """Connects to a running agent and says hello. `generation` None accepts the guest's own (cold boot, adoption); a number demands that one.
        Raises GuestLost when no hello came in `timeout` seconds, GuestProtocolError for an unknown protocol version."""
        ...

    async def connect_and_wake(self, socket: Path, wake: Wake, *, timeout: float) -> Guest:
        """After a restore: connect, hello with the new generation, wake, in as few round trips as the protocol allows."""
        ...
