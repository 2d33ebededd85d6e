"""The child's side between fork and exec: namespaces, a private root, limits, ids, capabilities. Every step has a name, reported when it fails.

The private root is a small tmpfs that becomes `/` by pivot_root while the host's tree is still reachable under /.host; the binds are taken from there, then
it is detached. With root the mounts are made as root; without, in a user namespace that maps only the caller's own ids.
"""

from __future__ import annotations

import os
import resource
from typing import Any

from torpor.proc.keeper import syscalls as sys_

NAMESPACES = sys_.CLONE_NEWNS | sys_.CLONE_NEWIPC | sys_.CLONE_NEWUTS | sys_.CLONE_NEWPID
_HOST = "/.host"
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
_LAST_CAPABILITY = 63
_OOM_SCORE = 500
_OPEN_FILES = 4096
_FILE_SIZE = 4 << 40


class Step:
    """The name of what is being done, for the report."""

    name = "start"


def clone_flags(jail: dict[str, Any], mode: str) -> int:
    """`mode`: 'root', 'user' (user namespace) or 'none'."""
    if mode == "none":
        return 0
    flags = NAMESPACES
    if jail["netns"] is None:
        flags |= sys_.CLONE_NEWNET
    if mode == "user":
        flags |= sys_.CLONE_NEWUSER
    return flags


def confine(jail: dict[str, Any], mode: str, ids: tuple[int, int], netns_fd: int | None) -> None:
    """Runs in the child. `ids`: the caller's uid and gid, as seen before the clone. Raises OSError; `Step.name` says where."""
    Step.name = "oom_score_adj"
    _raise_oom_score()
    if mode == "user":
        Step.name = "user namespace"
        _map_ids(*ids)
    if mode != "none":
        if netns_fd is not None:
            Step.name = "join network namespace"
            sys_.setns(netns_fd, sys_.CLONE_NEWNET)
        Step.name = "host name"
        sys_.set_host_name("torpor")
        _private_root(jail)
    Step.name = "limits"
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lower(resource.RLIMIT_NOFILE, _OPEN_FILES)
    _lower(resource.RLIMIT_FSIZE, _FILE_SIZE)
    _drop_privileges(jail, mode)


def _raise_oom_score() -> None:
    fd = os.open("/proc/self/oom_score_adj", os.O_RDWR)
    try:
        present = int(os.pread(fd, 16, 0))
        os.pwrite(fd, str(max(present, min(1000, present + _OOM_SCORE))).encode(), 0)
    finally:
        os.close(fd)


def _lower(which: int, value: int) -> None:
    _, hard = resource.getrlimit(which)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (value, value))


def _map_ids(uid: int, gid: int) -> None:
    for file, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{file}", "w") as target:
            target.write(text)


def _private_root(jail: dict[str, Any]) -> None:
    Step.name = "private mounts"
    sys_.mount(None, "/", None, sys_.MS_REC | sys_.MS_PRIVATE)
    base = "/tmp" if os.path.isdir("/tmp") else "/proc"
    sys_.mount("torpor", base, "tmpfs", sys_.MS_NOSUID | sys_.MS_NODEV, "size=1m,nr_inodes=1k,mode=755")
    os.chdir(base)
    os.mkdir(base + _HOST)
    Step.name = "pivot_root"
    sys_.pivot_root(base, base + _HOST)
    os.chdir("/")
    Step.name = "mount /proc"
    os.mkdir("/proc")
    _mount_proc()
    Step.name = "mount /tmp"
    os.mkdir("/tmp", 0o700)
    sys_.mount("tmp", "/tmp", "tmpfs", sys_.MS_NOSUID | sys_.MS_NODEV | sys_.MS_NOEXEC, "size=1m,nr_inodes=64,mode=1777")
    for source, target, writable in jail["binds"]:
        Step.name = f"bind {source}"
        _bind(source, target, sys_.MOUNT_ATTR_NOSUID | sys_.MOUNT_ATTR_NODEV | (0 if writable else sys_.MOUNT_ATTR_RDONLY))
    for device in (*_DEVICES, *jail["devices"]):
        Step.name = f"bind {device}"
        _bind(device, device, sys_.MOUNT_ATTR_NOSUID)
    Step.name = "detach host tree"
    sys_.detach_mount(_HOST)
    os.rmdir(_HOST)
    sys_.mount_attributes("/", sys_.MOUNT_ATTR_RDONLY)


def _mount_proc() -> None:
    try:
        sys_.mount("proc", "/proc", "proc", sys_.MS_NOSUID | sys_.MS_NODEV | sys_.MS_NOEXEC, "subset=pid")
    except PermissionError:
        # Inside some containers the kernel refuses a new /proc to a user namespace; an empty directory confines more, and QEMU runs without.
        return


def _bind(source: str, target: str, attributes: int) -> None:
    source = _HOST + source
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o444))
    sys_.mount(source, target, None, sys_.MS_BIND)
    sys_.mount_attributes(target, attributes)


def _drop_privileges(jail: dict[str, Any], mode: str) -> None:
    uid, gid = jail["uid"], jail["gid"]
    if mode != "none":
        Step.name = "capabilities"
        _empty_bounding_set()
    if mode == "root" and uid is not None:
        Step.name = f"uid {uid}"
        os.setgroups([])
        gid = uid if gid is None else gid
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    Step.name = "capabilities"
    sys_.drop_capabilities()
    Step.name = "no_new_privs"
    sys_.prctl(sys_.PR_SET_NO_NEW_PRIVS, 1)
    if mode != "root":
        try:
            # Under yama only an ancestor may read another process's memory, and an adopting daemon is none.
            sys_.prctl(sys_.PR_SET_PTRACER, sys_.PR_SET_PTRACER_ANY)
        except OSError:
            return  # a kernel without yama knows no such restriction


def _empty_bounding_set() -> None:
    for capability in range(_LAST_CAPABILITY + 1):
        try:
            sys_.prctl(sys_.PR_CAPBSET_DROP, capability)
        except OSError:
            return  # EINVAL: past the last capability of this kernel
