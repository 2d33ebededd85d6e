"""The C library and raw system calls through ctypes: what Python's os module lacks.

Raw calls change the credentials of the calling *thread* alone; glibc's wrappers would change those of all. Numbers are x86-64's
(arch/x86/entry/syscalls/syscall_64.tbl), structures those of the kernel's uapi headers.
"""

from __future__ import annotations

import ctypes
import os
import struct

LIBC = ctypes.CDLL(None, use_errno=True)
_syscall = LIBC.syscall
_syscall.restype = ctypes.c_long

SYS_SETGROUPS, SYS_SETRESUID, SYS_SETRESGID, SYS_SETFSUID, SYS_SETFSGID = 116, 117, 119, 122, 123
SYS_CAPGET, SYS_CAPSET, SYS_REBOOT, SYS_MLOCKALL = 125, 126, 169, 151
CAP_DAC_OVERRIDE = 1 << 1
_CAP_HEADER = struct.pack("<IiI", 0x20080522, 0, 0)[:8]


def syscall(number: int, *args: int | bytes | None) -> int:
    """Raises OSError with the call's errno."""
    result = int(_syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in args]))
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


_status = ctypes.c_int(0)
_status_at = ctypes.byref(_status)


def reap() -> tuple[int, int]:
    """waitpid(-1, WNOHANG) for one thread alone: (pid, status) of a child that has ended, or (0, 0) if there is none. Without the exception that os.waitpid
    raises where no child is left, which would be run cold after the first command of every restored guest."""
    pid = int(LIBC.waitpid(-1, _status_at, os.WNOHANG))
    return (pid, _status.value) if pid > 0 else (0, 0)


def check(result: int, path: str | None = None) -> int:
    """The result of a libc call that says -1 for failure."""
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    return result


def raise_effective(capabilities: int) -> None:
    """Puts bits of this thread's permitted set into its effective set. Raises OSError EPERM if it does not hold them."""
    data = ctypes.create_string_buffer(24)
    syscall(SYS_CAPGET, _CAP_HEADER, ctypes.addressof(data))
    words = list(struct.unpack("<6I", data.raw))
    words[0] |= capabilities
    syscall(SYS_CAPSET, _CAP_HEADER, struct.pack("<6I", *words))


def mount(source: str, target: str, kind: str, flags: int = 0, data: str = "") -> None:
    """mount(2). Raises OSError."""
    check(LIBC.mount(source.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), data.encode() or None), target)
