"""The client for programs without an event loop. Made from the asynchronous classes by `python -m torpor.client.faces`: not to be edited."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, Self

from torpor.client import asynchronous, commands, events, files, sandboxes, team, terminals
from torpor.client.answers import (
    AuditEntry,
    Background,
    Event,
    Exit,
    FileChange,
    FileState,
    Key,
    MetricPoint,
    Output,
    PortAddress,
    ProcessState,
    Result,
    SandboxState,
    Template,
)
from torpor.client.asynchronous import RETRIES
from torpor.client.attachment import PATIENCE
from torpor.client.commands import Command, Input, OnOutput
from torpor.client.files import Bytes
from torpor.client.portal import Call, Portal
from torpor.client.sandboxes import WAIT, Range
from torpor.client.trees import Left, OnBytes


class Client:
    """A torpor server, and a key to it; a context, or to be closed.

    `url`, `api_key` and `ca_file` (PEM, for a server's own authority) come from TORPOR_URL (http://127.0.0.1:8080), TORPOR_API_KEY and TORPOR_CA_FILE unless
    given. `retries`: how often a request is sent again, where that is safe, after a pause that respects the server's Retry-After. Raises ConfigurationError.
    """

    def __init__(self, url: str | None = None, api_key: str | None = None, *, ca_file: str | None = None, retries: int = RETRIES) -> None:
        self._inner = asynchronous.AsyncClient(url, api_key, ca_file=ca_file, retries=retries)
        self._portal = Portal()

    @property
    def url(self) -> str:
        return self._inner.url

    @property
    def sandboxes(self) -> Sandboxes:
        return Sandboxes(self._portal, self._inner.sandboxes)

    @property
    def templates(self) -> Templates:
        return Templates(self._portal, self._inner.templates)

    @property
    def keys(self) -> Keys:
        return Keys(self._portal, self._inner.keys)

    @property
    def audit(self) -> Audit:
        return Audit(self._portal, self._inner.audit)

    @property
    def events(self) -> Events:
        return Events(self._portal, self._inner.events)

    def close(self) -> None:
        """Closes its connections. Commands and sandboxes run on."""
        if self._portal.open:
            self._portal.run(self._inner.close())
            self._portal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Sandboxes:
    """The team's sandboxes."""

    def __init__(self, portal: Portal, inner: sandboxes.AsyncSandboxes) -> None:
        self._portal = portal
        self._inner = inner

    def create(
        self,
        template: str = "base",
        *,
        name: str | None = None,
        vcpus: int = 1,
        memory_mb: int = 512,
        disk_size_mb: int = 4096,
        network: bool = False,
        timeout_sec: int = 0,
        lifetime_sec: int | None = None,
        on_timeout: Literal["pause", "kill"] = "pause",
        auto_resume: bool = False,
        metadata: Mapping[str, str] | None = None,
        envs: Mapping[str, str] | None = None,
        wait: float = WAIT,
        idempotency_key: str | None = None,
    ) -> Sandbox:
        """Starts a sandbox from a template or snapshot, whose vCPUs and memory then hold. Returns when it runs. `timeout_sec` counts from its last use,
        `lifetime_sec` from now; then it is paused, or killed. `auto_resume`: use wakes a paused one. `metadata`: labels; `name` is one of them. `envs`:
        variables of every command. A lost answer is asked for again under the same key: there is never a second sandbox. With `wait=0` it may not run yet.
        Raises NotFound (no such template), Unavailable (no room), LimitReached, Expired."""
        return Sandbox(
            self._portal,
            self._portal.run(
                self._inner.create(
                    template,
                    name=name,
                    vcpus=vcpus,
                    memory_mb=memory_mb,
                    disk_size_mb=disk_size_mb,
                    network=network,
                    timeout_sec=timeout_sec,
                    lifetime_sec=lifetime_sec,
                    on_timeout=on_timeout,
                    auto_resume=auto_resume,
                    metadata=metadata,
                    envs=envs,
                    wait=wait,
                    idempotency_key=idempotency_key,
                )
            ),
        )

    def get(self, sandbox_id: str) -> Sandbox:
        """One, in any state; an ended one is shown for 30 days. Raises NotFound."""
        return Sandbox(self._portal, self._portal.run(self._inner.get(sandbox_id)))

    def usage(self, *, first: str | None = None, last: str | None = None) -> list[dict[str, Any]]:
        """What the team used by day: `date`, `cpu_minutes`, `ram_mb_minutes`. Days as YYYY-MM-DD; the last 30 unless given."""
        return self._portal.run(self._inner.usage(first=first, last=last))

    def list(
        self, *, states: Sequence[str] | None = None, template: str | None = None, labels: Mapping[str, str] | None = None, page_size: int = 200
    ) -> Iterator[Sandbox]:
        """All, newest first, fetched in pages; those that have ended only when `states` names their state."""
        for each in self._portal.iterate(self._inner.list(states=states, template=template, labels=labels, page_size=page_size)):
            yield Sandbox(self._portal, each)


class Sandbox:
    """One sandbox. As a context, it is killed at the end.

    `state` and the rest are as the last answer told; `refresh` asks again. A method that changes the state returns when that is done, or raises Expired after
    `wait` seconds: the work goes on then. `wait=0` does not wait. Methods may be repeated: what was wanted and is so is no error.
    """

    def __init__(self, portal: Portal, inner: sandboxes.AsyncSandbox) -> None:
        self._portal = portal
        self._inner = inner

    @property
    def id(self) -> str:
        return self._inner.id

    @property
    def name(self) -> str:
        """The label `name`, or ''."""
        return self._inner.name

    @property
    def state(self) -> str:
        return self._inner.state

    @property
    def details(self) -> SandboxState:
        """All that the last answer told."""
        return self._inner.details

    @property
    def commands(self) -> Commands:
        return Commands(self._portal, self._inner.commands)

    @property
    def terminals(self) -> Terminals:
        return Terminals(self._portal, self._inner.terminals)

    @property
    def files(self) -> Files:
        return Files(self._portal, self._inner.files)

    def __repr__(self) -> str:
        return repr(self._inner).replace("<Async", "<", 1)

    def refresh(self) -> SandboxState:
        """Asks how it is. Raises NotFound."""
        return self._portal.run(self._inner.refresh())

    def wait_for(self, states: str | Collection[str], *, wait: float = WAIT) -> SandboxState:
        """Returns when the sandbox is in one of these states, such as "running". Raises InvalidState when it ended in another one, Expired."""
        return self._portal.run(self._inner.wait_for(states, wait=wait))

    def pause(self, *, wait: float = WAIT) -> SandboxState:
        """Memory and disk go to files, nothing keeps running. When it returns, every byte is on disk. Raises InvalidState."""
        return self._portal.run(self._inner.pause(wait=wait))

    def resume(self, *, wait: float = WAIT) -> SandboxState:
        """Goes on where it stood. Raises InvalidState, Unavailable when there is no room."""
        return self._portal.run(self._inner.resume(wait=wait))

    def boot(self, *, wait: float = WAIT) -> SandboxState:
        """Starts a paused sandbox from its disk alone; what was in memory is lost. The way out when its memory does not fit this machine any more."""
        return self._portal.run(self._inner.boot(wait=wait))

    def rollback(self, snapshot: str, *, wait: float = WAIT) -> SandboxState:
        """Takes it back to a snapshot that was made of it. What it did since is lost."""
        return self._portal.run(self._inner.rollback(snapshot, wait=wait))

    def fork(self, count: int = 1, *, wait: float = WAIT) -> list[Sandbox]:
        """So many copies (1 to 64), all or none, of the sandbox as it is now, which runs on."""
        return [Sandbox(self._portal, each) for each in self._portal.run(self._inner.fork(count, wait=wait))]

    def snapshot(self, name: str | None = None, *, overwrite: bool = False, keep_running: bool = True, wait: float = WAIT) -> Template:
        """A template of the sandbox as it is now; its name is made up unless given. Without `keep_running` the sandbox is paused afterwards. An overwritten one
        stays until the new one is complete. Raises Conflict for a name that is taken."""
        return self._portal.run(self._inner.snapshot(name, overwrite=overwrite, keep_running=keep_running, wait=wait))

    def kill(self, *, wait: float = WAIT) -> None:
        """Ends it, from any state. Again on one that has ended is no error."""
        self._portal.run(self._inner.kill(wait=wait))

    def ping(self) -> None:
        """Counts as activity: the idle time starts anew. Raises InvalidState."""
        self._portal.run(self._inner.ping())

    def set_timeouts(self, *, idle: int | None = None, lifetime: int | None = None) -> SandboxState:
        """Seconds without use, and seconds from now on, after which `on_timeout` happens; 0 takes one away, None leaves it."""
        return self._portal.run(self._inner.set_timeouts(idle=idle, lifetime=lifetime))

    def port_url(self, port: int, *, expires_in: int = 3600) -> PortAddress:
        """A signed address of a port, which needs no key, for so many seconds, at most 7 days. Raises ApiError for others, Conflict where the server has no
        address for ports, InvalidState for a sandbox that has ended."""
        return self._portal.run(self._inner.port_url(port, expires_in=expires_in))

    def metrics(self, range: Range = "10m") -> list[MetricPoint]:
        """CPU, memory and disk over time; finer the shorter the range."""
        return self._portal.run(self._inner.metrics(range))

    def events(self, *, limit: int = 50) -> list[Event]:
        """The last ones, oldest first."""
        return self._portal.run(self._inner.events(limit=limit))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._portal.run(self._inner.__aexit__())


class Commands:
    """The commands of one sandbox."""

    def __init__(self, portal: Portal, inner: commands.AsyncCommands) -> None:
        self._portal = portal
        self._inner = inner

    def run(
        self,
        command: Command,
        *,
        envs: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        stdin: Input | None = None,
        timeout: float | None = None,
        on_stdout: OnOutput | None = None,
        on_stderr: OnOutput | None = None,
        check: bool = False,
        tag: str | None = None,
        reattach: float = PATIENCE,
    ) -> Result:
        """Runs a command to its end. `timeout` seconds (whole ones, rounded up) after which it and all it started are killed; the result then says
        `timed_out`. A stream that goes to a function is not kept. With `check`, an exit code other than 0 is CommandFailed. When this is cancelled or
        interrupted, the command is killed. Never run twice: a connection that breaks before the start is known of is ConnectionLost."""
        call = Call(self._portal)
        return call.run(
            self._inner.run(
                command,
                envs=envs,
                cwd=cwd,
                user=user,
                stdin=stdin,
                timeout=timeout,
                on_stdout=call.here(on_stdout),
                on_stderr=call.here(on_stderr),
                check=check,
                tag=tag,
                reattach=reattach,
            )
        )

    def start(
        self,
        command: Command,
        *,
        envs: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        stdin: bool = False,
        timeout: float | None = None,
        tag: str | None = None,
        reattach: float = PATIENCE,
    ) -> Process:
        """Starts a command and follows it. `tag` finds it again (one is made up unless given); `stdin`: whether it will be given input. Raises NotFound for a
        program that is not there, InvalidState for a sandbox that does not run."""
        return Process(
            self._portal, self._portal.run(self._inner.start(command, envs=envs, cwd=cwd, user=user, stdin=stdin, timeout=timeout, tag=tag, reattach=reattach))
        )

    def background(
        self,
        command: Command,
        *,
        envs: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        stdin: bytes | str | None = None,
        timeout: float | None = None,
        tag: str | None = None,
    ) -> Background:
        """Starts a command and leaves it alone; `connect` follows it later. `stdin`: up to 64 KiB that it may read."""
        return self._portal.run(self._inner.background(command, envs=envs, cwd=cwd, user=user, stdin=stdin, timeout=timeout, tag=tag))

    def connect(self, process: int | str, *, stdout_offset: int = 0, stderr_offset: int = 0, reattach: float = PATIENCE) -> Process:
        """Follows a command by its pid or tag, from these bytes of its streams on as far as the sandbox remembers them (the last 1 MiB); one that has ended
        too. Raises NotFound."""
        return Process(
            self._portal, self._portal.run(self._inner.connect(process, stdout_offset=stdout_offset, stderr_offset=stderr_offset, reattach=reattach))
        )

    def logs(self, process: int | str, *, stdout_offset: int = 0, stderr_offset: int = 0, reattach: float = PATIENCE) -> Iterator[Output]:
        """What the sandbox remembers of a command's output up to now (the last 1 MiB of each stream), from these bytes on; ends when all of it was read, also
        while the command runs. Raises NotFound, and as `Process.output`."""
        return self._portal.iterate(self._inner.logs(process, stdout_offset=stdout_offset, stderr_offset=stderr_offset, reattach=reattach))

    def list(self, *, ended: bool = False) -> list[ProcessState]:
        """The commands that were started through the API and run; with `ended`, also those that ended, as far as they are remembered."""
        return self._portal.run(self._inner.list(ended=ended))

    def kill(self, process: int | str, *, signal: int = 9) -> None:
        """Kills a command and all it started; with SIGTERM, asks it to end. Raises NotFound when it does not run, ValueError for another signal (connect, then
        `signal`, sends any)."""
        self._portal.run(self._inner.kill(process, signal=signal))


class Process:
    """A command that is followed. As a context, leaving it leaves the command running.

    When the connection breaks, or the server restarts, it goes on where it broke off, for up to `reattach` seconds: no byte of output is lost or doubled,
    unless the command said more than 1 MiB meanwhile (`Output.lost`). If input was under way then, the command is killed and InputLost raised.
    """

    def __init__(self, portal: Portal, inner: commands.AsyncProcess) -> None:
        self._portal = portal
        self._inner = inner

    def output(self) -> Iterator[Output]:
        """Pieces of both streams as they come, until the command's end. One reader. A command waits when its output is not read and 1 MiB is full. Raises
        InvalidState when the sandbox was paused, ConnectionLost when the server did not come back; the command runs on then."""
        return self._portal.iterate(self._inner.output())

    def wait(self, *, on_stdout: OnOutput | None = None, on_stderr: OnOutput | None = None) -> Result:
        """Reads what is left of the output and returns how it ended. What goes to a function is not kept in the result. Raises as `output`."""
        call = Call(self._portal)
        return call.run(self._inner.wait(on_stdout=call.here(on_stdout), on_stderr=call.here(on_stderr)))

    def write(self, data: bytes | str) -> None:
        """Gives the command input; it must have been started with `stdin`. Returns when all of it is under way, at most 256 KiB ahead of what the sandbox took:
        a command that does not read makes it wait. After the command's end it does nothing. Raises InputLost, ConnectionLost."""
        self._portal.run(self._inner.write(data))

    def close_stdin(self) -> None:
        """End of file."""
        self._portal.run(self._inner.close_stdin())

    def signal(self, number: int) -> None:
        """Signals the command's process group."""
        self._portal.run(self._inner.signal(number))

    def kill(self) -> None:
        """Kills the command and all it started. Returns when the server was told; `wait` tells when it is so."""
        self._portal.run(self._inner.kill())

    @property
    def pid(self) -> int:
        return self._inner.pid

    @property
    def tag(self) -> str:
        return self._inner.tag

    @property
    def exec_id(self) -> str:
        """Names the command in its sandbox for good: pids and tags may come again."""
        return self._inner.exec_id

    def close(self) -> None:
        """Leaves; the command runs on, and can be connected to again."""
        self._portal.run(self._inner.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._portal.run(self._inner.__aexit__())


class Terminals:
    """The terminals of one sandbox."""

    def __init__(self, portal: Portal, inner: terminals.AsyncTerminals) -> None:
        self._portal = portal
        self._inner = inner

    def open(
        self,
        command: Command = ("/bin/bash",),
        *,
        cols: int = 80,
        rows: int = 24,
        envs: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        tag: str | None = None,
        reattach: float = PATIENCE,
    ) -> Terminal:
        """Starts a command on a terminal of this size. Raises NotFound for a program that is not there, InvalidState for a sandbox that does not run."""
        return Terminal(
            self._portal, self._portal.run(self._inner.open(command, cols=cols, rows=rows, envs=envs, cwd=cwd, user=user, tag=tag, reattach=reattach))
        )

    def connect(self, tag: str, *, offset: int = 0, reattach: float = PATIENCE) -> Terminal:
        """Takes up a session by its tag, from this byte on as far as the sandbox remembers (the last 1 MiB). Several may look at one. Raises NotFound."""
        return Terminal(self._portal, self._portal.run(self._inner.connect(tag, offset=offset, reattach=reattach)))


class Terminal:
    """A terminal that is looked at. As a context, leaving it leaves the session running: `connect` with its `tag` and `offset` takes it up again.

    When the connection breaks, or the server restarts, it goes on where it broke off, for up to `reattach` seconds. Keys typed in the moment of the break may
    be lost.
    """

    def __init__(self, portal: Portal, inner: terminals.AsyncTerminal) -> None:
        self._portal = portal
        self._inner = inner

    @property
    def offset(self) -> int:
        """How many bytes of the session have come, read or not."""
        return self._inner.offset

    def output(self) -> Iterator[bytes]:
        """What the terminal shows, until its command ends. One reader. Raises as Process.output."""
        return self._portal.iterate(self._inner.output())

    def wait(self) -> Exit:
        """Reads and drops what is left of the output, and returns how the command ended."""
        return self._portal.run(self._inner.wait())

    def write(self, data: bytes | str) -> None:
        """Types."""
        self._portal.run(self._inner.write(data))

    def resize(self, *, cols: int, rows: int) -> None:
        self._portal.run(self._inner.resize(cols=cols, rows=rows))

    def kill(self) -> None:
        """Kills the command and all it started."""
        self._portal.run(self._inner.kill())

    @property
    def pid(self) -> int:
        return self._inner.pid

    @property
    def tag(self) -> str:
        return self._inner.tag

    @property
    def exec_id(self) -> str:
        """Names the command in its sandbox for good: pids and tags may come again."""
        return self._inner.exec_id

    def close(self) -> None:
        """Leaves; the command runs on, and can be connected to again."""
        self._portal.run(self._inner.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._portal.run(self._inner.__aexit__())


class Files:
    """The files of one sandbox."""

    def __init__(self, portal: Portal, inner: files.AsyncFiles) -> None:
        self._portal = portal
        self._inner = inner

    def read(self, path: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """A file's bytes, or `length` of them from `offset` on; nothing when it ends before. Raises NotFound, InvalidRequest for a directory."""
        return self._portal.run(self._inner.read(path, offset=offset, length=length))

    def read_text(self, path: str) -> str:
        """Raises UnicodeDecodeError for what is no UTF-8, and what `read` raises."""
        return self._portal.run(self._inner.read_text(path))

    def read_stream(self, path: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The same in pieces, of any size. When the connection breaks it raises ConnectionLost: a part is never taken for the whole."""
        return self._portal.iterate(self._inner.read_stream(path, offset=offset, length=length))

    def write(self, path: str, data: Bytes, *, mode: int | None = None, user: str | None = None) -> None:
        """Writes a file, making its parents; what stood there is replaced in one step, and stays if this fails. `data` may be pieces as they come, of any size.
        `mode` and `user` of a new file: 0o644 and the template's user unless given. Bytes are sent again when that is safe; pieces are not."""
        self._portal.run(self._inner.write(path, data, mode=mode, user=user))

    def download(self, path: str, to: str | os.PathLike[str], *, on_bytes: OnBytes | None = None) -> None:
        """A file to a file here, which is there complete or not at all. Raises OSError for what happens here."""
        call = Call(self._portal)
        call.run(self._inner.download(path, to, on_bytes=call.here(on_bytes)))

    def upload(self, source: str | os.PathLike[str], path: str, *, mode: int | None = None, user: str | None = None, on_bytes: OnBytes | None = None) -> None:
        """A file of this machine to `path`. Its permission bits go with it unless `mode` says others. Raises OSError for what happens here."""
        call = Call(self._portal)
        call.run(self._inner.upload(source, path, mode=mode, user=user, on_bytes=call.here(on_bytes)))

    def download_directory(self, path: str, to: str | os.PathLike[str], *, on_bytes: OnBytes | None = None) -> list[Left]:
        """What is in a directory into a directory here, which is made if need be: files, directories, links, permission bits and times. Nothing is ever written
        outside of `to`, whatever the sandbox sends. Returns what was left out: links that lead out of it, devices, and the like. Needs `tar` in the sandbox."""
        call = Call(self._portal)
        return call.run(self._inner.download_directory(path, to, on_bytes=call.here(on_bytes)))

    def upload_directory(self, source: str | os.PathLike[str], path: str, *, user: str | None = None, on_bytes: OnBytes | None = None) -> None:
        """What is in a directory here into a directory of the sandbox, which is made if need be. Files are owned by `user`, else the template's. Needs `tar` in
        the sandbox."""
        call = Call(self._portal)
        call.run(self._inner.upload_directory(source, path, user=user, on_bytes=call.here(on_bytes)))

    def list(self, path: str, *, depth: int = 1) -> list[FileState]:
        """A directory's entries down to `depth` levels (at most 64). Raises NotFound, InvalidRequest for what is no directory."""
        return self._portal.run(self._inner.list(path, depth=depth))

    def stat(self, path: str) -> FileState:
        """One file, directory or link (not what it points to). Raises NotFound."""
        return self._portal.run(self._inner.stat(path))

    def exists(self, path: str) -> bool:
        """A link that leads nowhere exists, too."""
        return self._portal.run(self._inner.exists(path))

    def mkdir(self, path: str, *, mode: int | None = None, user: str | None = None, exist_ok: bool = False) -> None:
        """Makes a directory and its parents. Raises Conflict when it is there unless `exist_ok`, InvalidRequest when something else is."""
        self._portal.run(self._inner.mkdir(path, mode=mode, user=user, exist_ok=exist_ok))

    def move(self, source: str, target: str) -> FileState:
        """Renames, as rename(2) does: a file at `target` is replaced; across file systems by copying."""
        return self._portal.run(self._inner.move(source, target))

    def remove(self, path: str) -> None:
        """Removes a file, or a directory with all that is in it. Raises NotFound."""
        self._portal.run(self._inner.remove(path))

    def watch(self, path: str, *, recursive: bool = False) -> Watch:
        """Changes below a directory: from when this returns, none is missed. Raises NotFound, InvalidRequest for what is no directory."""
        return Watch(self._portal, self._portal.run(self._inner.watch(path, recursive=recursive)))


class Watch:
    """A directory that is watched, until `close` or the end of its context."""

    def __init__(self, portal: Portal, inner: files.AsyncWatch) -> None:
        self._portal = portal
        self._inner = inner

    def changes(self) -> Iterator[FileChange]:
        """As they happen. Ends when the directory is gone. Raises ConnectionLost when the connection breaks or the server stops: some may have been missed."""
        return self._portal.iterate(self._inner.changes())

    def close(self) -> None:
        self._portal.run(self._inner.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._portal.run(self._inner.__aexit__())


class Templates:
    """What sandboxes can start from: the team's own snapshots, and what the platform has for everybody."""

    def __init__(self, portal: Portal, inner: team.AsyncTemplates) -> None:
        self._portal = portal
        self._inner = inner

    def list(self, *, type: Literal["base", "snapshot"] | None = None, page_size: int = 200) -> Iterator[Template]:
        """All, newest first, fetched in pages."""
        return self._portal.iterate(self._inner.list(type=type, page_size=page_size))

    def get(self, name: str) -> Template:
        """By name or id. Raises NotFound."""
        return self._portal.run(self._inner.get(name))

    def delete(self, name: str) -> None:
        """Deletes a snapshot of the team. Raises Conflict while sandboxes that were started from it exist, Forbidden for the platform's, NotFound."""
        self._portal.run(self._inner.delete(name))


class Keys:
    """The team's API keys."""

    def __init__(self, portal: Portal, inner: team.AsyncKeys) -> None:
        self._portal = portal
        self._inner = inner

    def create(self, name: str = "", *, scopes: Sequence[str] | None = None, expires_at: datetime | None = None) -> Key:
        """A new key; its secret is in `key`, and is never shown again. Raises ValueError for a time without a zone."""
        return self._portal.run(self._inner.create(name, scopes=scopes, expires_at=expires_at))

    def list(self, *, page_size: int = 200) -> Iterator[Key]:
        """Those that were not revoked, newest first, fetched in pages."""
        return self._portal.iterate(self._inner.list(page_size=page_size))

    def revoke(self, key_id: str) -> None:
        """It stops working at once. Raises NotFound."""
        self._portal.run(self._inner.revoke(key_id))


class Audit:
    """What was done in the team and what was refused."""

    def __init__(self, portal: Portal, inner: team.AsyncAudit) -> None:
        self._portal = portal
        self._inner = inner

    def list(self, *, actions: Sequence[str] = (), resource_types: Sequence[str] = (), page_size: int = 100) -> Iterator[AuditEntry]:
        """Newest first, without gaps, fetched in pages."""
        return self._portal.iterate(self._inner.list(actions=actions, resource_types=resource_types, page_size=page_size))


class Events:
    """What happens in the team."""

    def __init__(self, portal: Portal, inner: events.AsyncEvents) -> None:
        self._portal = portal
        self._inner = inner

    def stream(self, *, after: int | None = None, patience: float = 60.0) -> Iterator[Event]:
        """Events as they happen, none left out and none twice: those after the event with the id `after` (0: all that are remembered), else those from now on.
        Goes on where it broke off when the connection does or the server restarts, for up to `patience` seconds. Raises ConnectionLost, ApiError."""
        return self._portal.iterate(self._inner.stream(after=after, patience=patience))

    def of(self, sandbox_id: str, *, limit: int = 50) -> list[Event]:
        """The last events of a sandbox, oldest first (at most 200)."""
        return self._portal.run(self._inner.of(sandbox_id, limit=limit))
