"""Small durable file operations, and the one place where a full or forbidden disk becomes an error of ours.

A name is durable once its directory was fsynced, contents once the file was. `replace` gives both: a reader, also after a power cut, sees the old
bytes or the new ones.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torpor.model.errors import NoPermission, NoSpace

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_NO_LEASES = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOLCK})


@contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """Turns OSError inside the block into NoSpace (ENOSPC, EDQUOT, EFBIG) or NoPermission (EACCES, EPERM, EROFS); `doing` completes "... while ".
    Other OSErrors pass."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            mend = "Free space on the file system of TORPOR_HOME, or raise the quota, and try again."
            raise NoSpace(f"No space left while {doing} ({error.strerror}).", mend=mend) from error
        if error.errno in _REFUSED:
            raise NoPermission(f"The operating system refused while {doing} ({error.strerror}: {error.filename}).") from error
        raise


def sync(path: Path) -> None:
    """fsyncs a file or a directory by its path."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_new(path: Path, content: bytes, mode: int = 0o444) -> None:
    """Creates `path` with `content`, not fsynced. Raises FileExistsError; on any other error the file does not exist."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
    except BaseException:
        path.unlink()
        raise
    finally:
        os.close(fd)


def replace(path: Path, content: bytes, mode: int = 0o444) -> None:
    """Makes `path` hold `content`, atomically and durably. A crash in between may leave `path` + '.new' behind, which the next call removes."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    try:
        write_new(fresh, content, mode)
        sync(fresh)
        os.rename(fresh, path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    sync(path.parent)


def has_writer(fd: int) -> bool:
    """Whether anybody has the file of the read-only `fd` open for writing: by a descriptor of any process, one on its way through a socket, or a mapping.
    The kernel says so by refusing a read lease (fcntl(2), F_SETLEASE), which is given back at once. False as well on
    a file system without leases. Raises OSError."""
    # Who opens the file for writing in this moment would have us told by SIGIO, which ends a process that does not expect it; SIGURG does not.
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        if error.errno in _NO_LEASES:
            return False
        if error.errno == errno.EAGAIN:
            return True
        raise
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def allocated(path: Path) -> int:
    """Bytes the file occupies on disk (st_blocks), 0 when it does not exist."""
    try:
        return path.lstat().st_blocks * 512
    except FileNotFoundError:
        return 0
