"""Users and groups from /etc/passwd and /etc/group (read by ourselves: the sandbox's name service libraries are not the agent's), and acting as one of them."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torpor.guest import libc
from torpor.guest.faults import Refusal

PASSWD, GROUP = "/etc/passwd", "/etc/group"
_NGROUPS_MAX = 65536


@dataclass(frozen=True)
class User:
    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    shell: str


class _Table:
    """A colon-separated file, parsed again when it changed."""

    def __init__(self, path: str, columns: int) -> None:
        self._path = path
        self._columns = columns
        self._stamp: tuple[int, int, int] | None = None
        self._rows: list[list[str]] = []

    def rows(self) -> list[list[str]]:
        try:
            status = os.stat(self._path)
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if stamp != self._stamp:
                with open(self._path, encoding="utf-8", errors="surrogateescape") as file:
                    rows = [line.rstrip("\n").split(":") for line in file.read(1 << 22).splitlines()]
                self._rows = [row for row in rows if len(row) >= self._columns and row[2].isdigit()]
                self._stamp = stamp
        except OSError:
            self._rows, self._stamp = [], None
        return self._rows

    @property
    def stamp(self) -> tuple[int, int, int] | None:
        """Another one whenever `rows` has read anew."""
        return self._stamp


_passwd = _Table(PASSWD, 7)
_group = _Table(GROUP, 4)
_ROOT_ROW = ["root", "x", "0", "0", "root", "/root", "/bin/sh"]


_found: dict[str, tuple[object, object, User]] = {}


def find(name: str) -> User:
    """By name or by decimal uid; root also exists without a passwd file. Raises Refusal invalid."""
    rows, groups = _passwd.rows(), _group.rows()
    known = _found.get(name)
    if known is not None and known[0] is _passwd.stamp and known[1] is _group.stamp:
        return known[2]
    user = _look_up(name, rows, groups)
    _found.clear()
    _found[name] = (_passwd.stamp, _group.stamp, user)
    return user


def _look_up(name: str, rows: list[list[str]], group_rows: list[list[str]]) -> User:
    row = next((r for r in rows if r[0] == name), None) or next((r for r in rows if r[2] == name), None)
    if row is None and name in ("root", "0"):
        row = _ROOT_ROW
    if row is None:
        raise Refusal("invalid", f"there is no user {name!r}")
    gid = int(row[3]) if row[3].isdigit() else 0
    groups = {gid} | {int(r[2]) for r in group_rows if row[0] in r[3].split(",")}
    return User(row[0], int(row[2]), gid, tuple(sorted(groups)), row[5] or "/", row[6] or "/bin/sh")


def group_id(name: str) -> int:
    """By name or decimal gid. Raises Refusal invalid."""
    for row in _group.rows():
        if row[0] == name:
            return int(row[2])
    if name.isdigit():
        return int(name)
    raise Refusal("invalid", f"there is no group {name!r}")


def user_name(uid: int) -> str:
    return next((r[0] for r in _passwd.rows() if int(r[2]) == uid), "root" if uid == 0 else str(uid))


def group_name(gid: int) -> str:
    return next((r[0] for r in _group.rows() if int(r[2]) == gid), "root" if gid == 0 else str(gid))


def _set_groups(groups: tuple[int, ...]) -> None:
    array = (ctypes.c_uint32 * max(1, len(groups)))(*groups[:_NGROUPS_MAX])
    libc.syscall(libc.SYS_SETGROUPS, len(groups), ctypes.addressof(array))


def foreign(user: User) -> bool:
    """Whether acting as `user` means changing credentials. An agent that is not root (tests) acts as itself."""
    return os.geteuid() == 0 and user.uid != 0


@contextmanager
def files_as(user: User) -> Iterator[None]:
    """File system calls of this thread are checked as `user`'s: a path that the user bent leads the agent nowhere the user could not go."""
    if not foreign(user):
        yield
        return
    _set_groups(user.groups)
    libc.syscall(libc.SYS_SETFSGID, user.gid)
    libc.syscall(libc.SYS_SETFSUID, user.uid)
    try:
        yield
    finally:
        libc.syscall(libc.SYS_SETFSUID, 0)
        libc.syscall(libc.SYS_SETFSGID, 0)
        _set_groups(())


@contextmanager
def processes_as(user: User) -> Iterator[None]:
    """This thread is `user`, with root kept as saved uid only: no capability is effective, and a program it starts keeps nothing of root."""
    if not foreign(user):
        yield
        return
    _set_groups(user.groups)
    libc.syscall(libc.SYS_SETRESGID, user.gid, user.gid, user.gid)
    libc.syscall(libc.SYS_SETRESUID, user.uid, user.uid, 0)
    try:
        yield
    finally:
        libc.syscall(libc.SYS_SETRESUID, -1, 0, -1)
        libc.syscall(libc.SYS_SETRESUID, 0, 0, 0)
        libc.syscall(libc.SYS_SETRESGID, 0, 0, 0)
        _set_groups(())
