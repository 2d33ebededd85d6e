"""Linux system calls that Python 3.11 does not offer. Numbers and constants are the kernel's, from include/uapi of Linux 6.1 (x86-64 and arm64 agree here).

Every function raises OSError. Through PyDLL the interpreter keeps its lock during a call, which makes `clone` safe in a single-threaded process.
"""

from __future__ import annotations

import ctypes
import os

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_INTO_CGROUP = 1 << 33

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

MOUNT_ATTR_RDONLY = 1
MOUNT_ATTR_NOSUID = 2
MOUNT_ATTR_NODEV = 4

PR_SET_DUMPABLE = 4
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_SET_PTRACER = 0x59616D61
PR_SET_PTRACER_ANY = (1 << 64) - 1

_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}[os.uname().machine]
_SYS_CAPSET = {"x86_64": 126, "aarch64": 91}[os.uname().machine]
_SYS_CLONE3 = 435
_SYS_CLOSE_RANGE = 436
_SYS_MOUNT_SETATTR = 442
_CLOSE_RANGE_CLOEXEC = 4
_CAPABILITY_VERSION_3 = 0x20080522
_SIGCHLD = 17

_libc = ctypes.PyDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _syscall(number: int, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    converted = [ctypes.c_ulong(a & (1 << 64) - 1) if isinstance(a, int) else a for a in arguments]
    return _check(_libc.syscall(ctypes.c_long(number), *converted))


def clone(flags: int, cgroup: int = -1) -> int:
    """Like os.fork, into the new namespaces that `flags` asks for and, given a descriptor of one, into a cgroup of version 2: 0 in the child. The child may
    only make system calls and end by exec or os._exit."""
    words = (ctypes.c_uint64 * 11)(flags, 0, 0, 0, _SIGCHLD)
    if cgroup >= 0:
        words[0] |= CLONE_INTO_CGROUP
        words[10] = cgroup
    return _check(_libc.syscall(ctypes.c_long(_SYS_CLONE3), words, ctypes.c_size_t(ctypes.sizeof(words))))


def unshare(flags: int) -> None:
    _check(_libc.unshare(ctypes.c_int(flags)))


def setns(fd: int, kind: int) -> None:
    _check(_libc.setns(ctypes.c_int(fd), ctypes.c_int(kind)))


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    def text(value: str | None) -> bytes | None:
        return None if value is None else os.fsencode(value)

    _check(_libc.mount(text(source), text(target), text(kind), ctypes.c_ulong(flags), text(options)))


def mount_attributes(path: str, add: int) -> None:
    """Adds MOUNT_ATTR_* to the one mount at `path`."""
    words = (ctypes.c_uint64 * 4)(add, 0, 0, 0)
    _check(
        _libc.syscall(ctypes.c_long(_SYS_MOUNT_SETATTR), ctypes.c_int(-100), os.fsencode(path), ctypes.c_uint(0), words, ctypes.c_size_t(ctypes.sizeof(words)))
    )


def detach_mount(path: str) -> None:
    _check(_libc.umount2(os.fsencode(path), ctypes.c_int(MNT_DETACH)))


def pivot_root(new: str, old: str) -> None:
    _syscall(_SYS_PIVOT_ROOT, os.fsencode(new), os.fsencode(old))


def prctl(option: int, argument: int) -> None:
    _check(_libc.prctl(ctypes.c_int(option), ctypes.c_ulong(argument), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)))


def drop_capabilities() -> None:
    """Empties the effective, permitted and inheritable sets."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _check(_libc.syscall(ctypes.c_long(_SYS_CAPSET), header, (ctypes.c_uint32 * 6)()))


def close_on_exec_from(first: int) -> None:
    """Marks every descriptor from `first` on close-on-exec."""
    _syscall(_SYS_CLOSE_RANGE, first, 0xFFFFFFFF, _CLOSE_RANGE_CLOEXEC)


def set_host_name(name: str) -> None:
    encoded = name.encode()
    _check(_libc.sethostname(encoded, ctypes.c_size_t(len(encoded))))
