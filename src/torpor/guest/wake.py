"""Waking: what must be new before any user process runs on. No program is started but the hooks.

    hello(generation, wake) -> freeze (if running) -> entropy, clock, identity, network, disk, generation -> hooks -> thaw -> welcome

The same generation twice is a retry: it is answered, not done again. A lower one is refused.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import socket
import time
from collections.abc import Callable
from functools import cache
from typing import Any

from torpor.guest import kernel, libc, netconf, spawn, users
from torpor.guest.cgroups import Group
from torpor.guest.faults import Refusal, fault
from torpor.guest.loop import Loop, Timer

_RNDRESEEDCRNG = 0x5207
HOOKS = "/etc/torpor/wake.d"
HOOK_SECONDS = 8.0
RUN = "/run/torpor"
MARKS = "/run/e2b"
_MS_BIND = 4096
_HOST_NAME_LENGTH = 63
_HOST_NAME_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.-")
Json = dict[str, Any]


def is_host_name(name: str) -> bool:
    """Letters, digits, dots and hyphens, the first of them a letter or a digit; not a regular expression, which would be run cold in every wake."""
    return 0 < len(name) <= _HOST_NAME_LENGTH and name[0] not in ".-" and _HOST_NAME_CHARACTERS.issuperset(name)


def add_entropy(seed: bytes) -> None:
    """Mixes `seed` into the kernel's pool and has its generator seeded anew from the pool, at once (drivers/char/random.c). Crediting it as well
    (RNDADDENTROPY) would change nothing: the generator of a guest that has booted is initialised, and only an uninitialised one counts. Raises OSError."""
    if os.write(_random(), seed) != len(seed):
        raise OSError(errno.EIO, "the seed was not taken whole")
    fcntl.ioctl(_random(), _RNDRESEEDCRNG)


@cache
def _random() -> int:
    return os.open("/dev/urandom", os.O_WRONLY | os.O_CLOEXEC)


def seed_only_here() -> None:
    """At boot: no thread that now and then mixes the host's random device in. It would run into every wake (its first periods are short), which brings a
    fresh seed itself; /dev/hwrng stays. Raises OSError where there is no such device."""
    with open("/sys/module/rng_core/parameters/current_quality", "w") as file:
        file.write("0")


def prepare() -> None:
    """At boot: opens what a wake will need, so that after a restore no path is looked up."""
    _random()
    hooks()
    with contextlib.suppress(OSError):
        seed_only_here()


def set_clock(seconds: float) -> None:
    time.clock_settime(time.CLOCK_REALTIME, seconds)


class Identity:
    """Host name, machine id, sandbox id, names, generation, in files under /run/torpor (tmpfs). /etc/hostname, /etc/machine-id and /etc/hosts are these files,
    bound over those on the disk at boot: a wake then only stores into memory, where writing to the disk's file system would double its time.

    The first line of /etc/hosts is ours as long as it begins with 127.0.1.1; the rest came from the disk and belongs to the user.
    """

    def __init__(self) -> None:
        os.makedirs(f"{RUN}/etc", exist_ok=True)
        self._files = {name: MappedFile(f"{RUN}/{name}") for name in ("sandbox-id", "names", "generation", "etc/hostname", "etc/machine-id", "etc/hosts")}
        self._names: Json = {}
        self.generation(0)

    def bind(self) -> None:
        """At boot, once. Raises OSError."""
        hosts = _text("/etc/hosts") or "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"
        name = _text("/etc/hostname").strip() or "sandbox"
        socket.sethostname(name)
        rest = "".join(line + "\n" for line in hosts.splitlines() if not line.startswith("127.0.1.1"))
        self._files["etc/hosts"].set(_OURS + _BLANKS[len(name) + 1 :] + f"{name}\n{rest}".encode(errors="surrogateescape"))
        self._files["etc/hostname"].set(_USUAL)
        self._files["etc/machine-id"].set(_text("/etc/machine-id").encode() or bytes(33))
        self._files["sandbox-id"].set(bytes(26))
        for target in ("hosts", "hostname", "machine-id"):
            os.close(os.open(f"/etc/{target}", os.O_CREAT | os.O_CLOEXEC, 0o644))
            libc.mount(f"{RUN}/etc/{target}", f"/etc/{target}", "", _MS_BIND)

    def take(self, identity: Json) -> None:
        """Raises Refusal for a name that is none."""
        name = identity["hostname"]
        if not is_host_name(name):
            raise Refusal("invalid", f"{name!r} is no host name")
        files = self._files
        socket.sethostname(name)
        line = name.encode() + b"\n"
        files["etc/hostname"].set(line)
        if files["etc/hosts"].starts(_OURS):
            files["etc/hosts"].overwrite(_OURS + _BLANKS[len(line) :] + line)
        files["etc/machine-id"].set(identity["machine_id"].encode() + b"\n")
        files["sandbox-id"].set(identity["sandbox_id"].encode() + b"\n")
        names = identity.get("names")
        if names or self._names:
            names = names or {}
            files["names"].set("".join([f"{k}={v}\n" for k, v in names.items()]).encode(errors="surrogateescape"))
            if "E2B_SANDBOX" in names or "E2B_SANDBOX" in self._names:
                _mark(names)
            self._names = names

    def generation(self, number: int, *, tell: bool = False) -> None:
        """`tell`: also as an event for those who watch the file (inotify(7), IN_MODIFY), which a store into its mapping is not."""
        if tell:
            self._files["generation"].write(b"%d\n" % number)
        else:
            self._files["generation"].set(b"%d\n" % number)


def _mark(names: Json) -> None:
    """The files by which programs written for E2B tell that they run in a sandbox, and in which."""
    for name, variable in ((".E2B_SANDBOX", "E2B_SANDBOX"), (".E2B_SANDBOX_ID", "E2B_SANDBOX_ID")):
        path = f"{MARKS}/{name}"
        if variable not in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            continue
        os.makedirs(MARKS, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            os.write(descriptor, names[variable].encode(errors="surrogateescape"))
        finally:
            os.close(descriptor)


class MappedFile:
    """A small file kept mapped: setting it to as many bytes as before is a copy in memory."""

    _SIZE = 65536

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        self._length = 0
        os.ftruncate(self._fd, self._SIZE)
        self._map = mmap.mmap(self._fd, self._SIZE)
        os.ftruncate(self._fd, 0)

    def set(self, data: bytes) -> None:
        """Replaces all. Raises ValueError beyond 64 KiB."""
        if len(data) > self._SIZE:
            raise ValueError(f"{len(data)} bytes are too many")
        if len(data) != self._length:
            os.ftruncate(self._fd, len(data))
            self._length = len(data)
        self._map[: len(data)] = data

    def write(self, data: bytes) -> None:
        """As `set`, by a system call. Raises OSError."""
        os.pwrite(self._fd, data, 0)
        if len(data) != self._length:
            os.ftruncate(self._fd, len(data))
            self._length = len(data)

    def starts(self, prefix: bytes) -> bool:
        return self._map[: len(prefix)] == prefix

    def overwrite(self, data: bytes) -> None:
        """Replaces the first bytes; needs a file at least as long."""
        self._map[: len(data)] = data


_OURS = b"127.0.1.1 "
_BLANKS = b" " * (_HOST_NAME_LENGTH + 1)
"""Before the name in the first line of /etc/hosts, which so is always equally long."""
_USUAL = b"sandbox-00000000\n"
"""As long as the host names that sandboxes have unless they were given one: until the first wake the file holds this, so that its length stays."""


def _text(path: str) -> str:
    """A file's first 32 KiB, '' without it."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read(32768)
    except OSError:
        return ""


def hooks() -> list[str]:
    """Executable files in wake.d, in order. The directory is read again only when its modification time says that it changed: most wakes find it empty."""
    try:
        about = os.fstat(_hooks_directory())
        if about.st_nlink == 0:
            _hooks_directory.cache_clear()  # removed; there may be another by now
            about = os.fstat(_hooks_directory())
        changed = (about.st_ino, about.st_mtime_ns)
        if _listed.get("at") != changed:
            _listed["names"], _listed["at"] = sorted(os.listdir(_hooks_directory())), changed
    except OSError:
        return []
    paths = [f"{HOOKS}/{name}" for name in _listed["names"]]
    return [p for p in paths if os.path.isfile(p) and os.access(p, os.X_OK)]


@cache
def _hooks_directory() -> int:
    """Kept open. Raises OSError where there is none; an image without one has no hooks until its next boot."""
    return os.open(HOOKS, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


_listed: Json = {}


class Waker:
    """Applies wakes one at a time. `run_hook` starts a program and reaps it (Commands.run_hook)."""

    def __init__(self, loop: Loop, keep: kernel.Kernel, identity: Identity | None, run_hook: Callable[..., None]) -> None:
        self._loop = loop
        self._kernel = keep
        self._identity = identity
        self._run_hook = run_hook
        self.generation = 0
        self.rehearsing = False
        """Hooks are found, but not run: they are the user's, and were promised once a wake."""
        self._waiting: list[Callable[[Json], None]] = []
        self._result: Json = {}
        self._group: Group | None = None
        self._steps: tuple[tuple[str, Callable[[Json], object]], ...] = ()
        if identity is not None:
            self._steps = (
                ("entropy", lambda wake: add_entropy(bytes.fromhex(wake["entropy"]))),
                ("clock", lambda wake: set_clock(wake["clock"])),
                ("identity", lambda wake: identity.take(wake["identity"])),
                ("network", lambda wake: netconf.apply(wake.get("network"))),
                ("disk", lambda wake: keep.grow_to(wake.get("disk_bytes") or 0)),
                ("generation", lambda _wake: identity.generation(self.generation, tell=keep.peopled)),
            )

    def begin_anew(self) -> None:
        """At boot, after the rehearsal: no wake has been."""
        self.generation = 0
        if self._identity is not None:
            self._identity.generation(0)

    def wake(self, generation: int, wake: Json, done: Callable[[Json], None]) -> None:
        """Calls `done` once everything was tried and user processes run, with {"failures": [...]} if some of it failed. Raises Refusal for an older
        generation."""
        if generation < self.generation:
            raise Refusal("generation", f"generation {generation} is older than {self.generation}")
        if generation == self.generation:
            if self._waiting:
                self._waiting.append(done)
            else:
                done(dict(self._result))
            return
        self.generation = generation
        self._waiting = [done]
        failures: list[Json] = []
        self._kernel.freeze_if_running()
        for name, step in self._steps:
            try:
                step(wake)
            except Exception as error:
                failures.append({"step": name} | fault(error))
        paths = hooks()
        if paths and not self.rehearsing:
            self._hooks(paths, generation, failures, time.monotonic() + HOOK_SECONDS)
        else:
            self._finish(failures)

    def _hooks(self, paths: list[str], generation: int, failures: list[Json], deadline: float) -> None:
        """Runs the hooks one after the other, all within HOOK_SECONDS; then thaws."""
        if not paths:
            self._finish(failures)
            return
        path, rest = paths[0], paths[1:]
        group = self._group = self._group or self._kernel.hook_group()
        timer: list[Timer] = []
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        env = {"PATH": spawn.DEFAULT_PATH, "HOME": "/root", "TORPOR_GENERATION": str(generation)}

        def start() -> int:
            return spawn.spawn([path], env, "/", users.find("root"), cgroup=group.fd if group else None, stdin=None, stdout=null, stderr=null)

        def started(pid: int) -> None:
            timer.append(self._loop.later(max(0.0, deadline - time.monotonic()), lambda: self._kernel.kill_hook(group, pid)))

        def ended(status: int, error: BaseException | None) -> None:
            os.close(null)
            for t in timer:
                t.cancel()
            if group is not None:
                group.kill()
            if error is not None or status != 0:
                failures.append({"step": path, "status": status} | (fault(error) if error else {}))
            self._hooks(rest, generation, failures, deadline)

        self._run_hook(start, ended, started)

    def _finish(self, failures: list[Json]) -> None:
        self._kernel.thaw()
        self._result = {"failures": failures} if failures else {}
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            done(dict(self._result))
