"""Being PID 1: what the initrd leaves to do. It mounted /dev, /proc, /sys, /run and the agent disk at /run/torpor/agent, and exec'd the agent there."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import resource
import select
import signal
import time
from typing import Any

from torpor.guest import libc, netconf
from torpor.guest.cgroups import ROOT, Cgroups

PORT_NAME = "torpor.agent"
_PORTS = "/sys/class/virtio-ports"
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_MCL_CURRENT, _MCL_ONFAULT = 1, 4
_IN_CREATE, _IN_NONBLOCK_CLOEXEC = 0x100, os.O_NONBLOCK | os.O_CLOEXEC
_REBOOT_MAGIC, _REBOOT_MAGIC2, _POWER_OFF, _RESTART = 0xFEE1DEAD, 672274793, 0x4321FEDC, 0x01234567
_OPEN_FILES = 65536
_FIRST = -20
"""The highest priority that is not real-time."""
Template = dict[str, str]


def template(path: str = "/etc/torpor/template.json") -> Template:
    """The template's default user, its home, and its name; root where it says nothing."""
    said: Any = {}
    with contextlib.suppress(OSError, ValueError):
        with open(path, encoding="utf-8") as file:
            said = json.load(file)
    said = said if isinstance(said, dict) else {}
    user = str(said.get("user") or "root")
    return {"user": user, "home": str(said.get("home") or ("/root" if user == "root" else f"/home/{user}")), "name": str(said.get("name") or "")}


def _mounted(target: str) -> bool:
    try:
        return os.stat(target).st_dev != os.stat(os.path.dirname(target)).st_dev
    except FileNotFoundError:
        return False


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """Mounts unless something is there. A failure is reported and survived: a guest without /dev/shm is better than none."""
    if _mounted(target):
        return
    try:
        os.makedirs(target, exist_ok=True)
        libc.mount(source, target, kind, flags, data)
    except OSError as error:
        say(f"mounting {target}: {error}")


def say(text: str) -> None:
    """One line for the console."""
    with contextlib.suppress(OSError):
        os.write(2, f"torpor: {text}\n".encode(errors="replace"))


def prepare(groups: Cgroups) -> None:
    """Mounts, limits, loopback, cgroups. Everything here survives failure and says so on the console."""
    os.umask(0o022)
    os.chdir("/")
    harmless = _MS_NOSUID | _MS_NOEXEC
    _mount("cgroup2", ROOT, "cgroup2", harmless | _MS_NODEV)
    _mount("devpts", "/dev/pts", "devpts", harmless, "mode=0620,gid=5,ptmxmode=0666")
    _mount("shm", "/dev/shm", "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=1777")
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1"), ("stderr", "/proc/self/fd/2")):
        with contextlib.suppress(OSError):
            os.symlink(target, f"/dev/{name}")
    os.makedirs("/run/torpor", exist_ok=True)
    resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, _OPEN_FILES))
    for step in (netconf.loopback_up, lambda: groups.prepare(_memory())):
        try:
            step()
        except OSError as error:
            say(f"boot: {error}")


def _memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def come_first() -> None:
    """The agent is heard however many user processes want to run. What it starts has the usual priority again, its threads too."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_OTHER | os.SCHED_RESET_ON_FORK, os.sched_param(0))
        os.setpriority(os.PRIO_PROCESS, 0, _FIRST)


def lock_memory() -> None:
    """The interpreter's pages, once touched, stay: the agent answers also while the guest is out of memory. Not MCL_FUTURE: with it mmap fails for a
    thread that has put down root's capabilities, by the limit on locked memory; and nothing but file pages can go from a guest without swap."""
    with contextlib.suppress(OSError):
        libc.syscall(libc.SYS_MLOCKALL, _MCL_CURRENT | _MCL_ONFAULT)


def child_signals() -> int:
    """A descriptor that becomes readable when a child ends; SIGCHLD is blocked in this thread and all made after."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    mask = (ctypes.c_uint64 * 16)(1 << (signal.SIGCHLD - 1))
    return libc.check(libc.LIBC.signalfd(-1, mask, _IN_NONBLOCK_CLOEXEC))


def find_port(name: str = PORT_NAME) -> str | None:
    """The device of the named virtio-serial port, once its node is there."""
    with contextlib.suppress(OSError):
        for port in os.listdir(_PORTS):
            with open(f"{_PORTS}/{port}/name") as file:
                if file.read().strip() == name and os.path.exists(f"/dev/{port}"):
                    return f"/dev/{port}"
    return None


def open_port() -> int:
    """Opens the agent's port. It appears a moment after its driver was loaded: this waits for changes in /dev, at most two seconds each (a name may be written
    to sysfs after the node was made, which inotify does not see there)."""
    notify = libc.check(libc.LIBC.inotify_init1(_IN_NONBLOCK_CLOEXEC))
    try:
        libc.check(libc.LIBC.inotify_add_watch(notify, b"/dev", _IN_CREATE))
        poll = select.poll()
        poll.register(notify, select.POLLIN)
        while (path := find_port()) is None:
            say(f"waiting for the port {PORT_NAME}")
            if poll.poll(2000):
                with contextlib.suppress(BlockingIOError):
                    os.read(notify, 65536)
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(notify)


def power_off(groups: Cgroups, seconds: float = 2.0) -> None:
    """SIGTERM, then SIGKILL to all user processes, sync, root read-only, off. Returns only where this is no machine of ours."""
    groups.thaw()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(-1, signal.SIGTERM)
    end = time.monotonic() + seconds
    while groups.populated() and (rest := end - time.monotonic()) > 0:
        signal.sigtimedwait({signal.SIGCHLD}, rest)
    groups.kill_all()
    os.sync()
    with contextlib.suppress(OSError):
        libc.mount("", "/", "", 32 | 1)  # MS_REMOUNT | MS_RDONLY
    for command in (_POWER_OFF, _RESTART):
        try:
            libc.syscall(libc.SYS_REBOOT, _REBOOT_MAGIC, _REBOOT_MAGIC2, command, 0)
        except OSError as error:
            if error.errno == errno.EPERM:
                raise
            say(f"power off: {error}")
