"""One owner per home: the lock on $TORPOR_HOME/host.lock, and the uids its machines run under."""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import hashlib
import json
import os
from pathlib import Path

from torpor.durable import files
from torpor.model.errors import HomeBusy, NoPermission, NoSpace

FIRST_UID = 0x74_0000
"""7,602,176: above what distributions and container subordinate ranges hand out by default (100,000 to 6,553,600)."""
UIDS = 4096
SHARES = 1024
_OWNER_BYTES = 32


class HomeLock:
    """Held from `acquire` to `release` or the end of this process, however it ends. The file names the owner for those who find it taken."""

    def __init__(self, home: Path) -> None:
        self._path = home / "host.lock"
        self._fd: int | None = None

    def acquire(self) -> None:
        """Takes the lock at once or raises HomeBusy (naming the owner's pid), NoPermission, NoSpace.

        A look with a read-only descriptor comes first: only an owner's descriptor is ever open for writing, so that its closing is an event
        HomeWatch can tell."""
        try:
            self._path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
            if not self._path.exists():
                os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._try(os.O_RDONLY)
            os.close(self._take())
            self._try(os.O_RDWR)
        except PermissionError as error:
            raise NoPermission(f"{self._path.parent} cannot be written.", mend="Choose another directory with TORPOR_HOME, or change its owner.") from error
        assert self._fd is not None
        try:
            with files.disk_errors(f"taking the lock of {self._path.parent}"):
                os.pwrite(self._fd, json.dumps({"pid": os.getpid()}).encode().ljust(_OWNER_BYTES), 0)
                os.ftruncate(self._fd, _OWNER_BYTES)
        except BaseException:
            self.release()
            raise

    def _try(self, flags: int) -> None:
        fd = os.open(self._path, flags | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(fd, 4096, 0).decode(errors="replace").strip() if flags == os.O_RDONLY else ""
            os.close(fd)
            raise HomeBusy(f"{self._path.parent} has an owner already: {owner or 'unknown'}.") from None
        self._fd = fd

    def _take(self) -> int:
        fd, self._fd = self._fd, None
        assert fd is not None
        return fd

    def release(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class HomeWatch:
    """Tells when a home may have got another owner: its lock was let go, or its socket appeared. Entered before the look that may fail, so that no
    change is missed.
    inotify(7): IN_CLOSE_WRITE 0x8, IN_MOVED_TO 0x80, IN_CREATE 0x100."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._fd = -1

    def __enter__(self) -> HomeWatch:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0 or libc.inotify_add_watch(self._fd, os.fsencode(self._home), 0x8 | 0x80 | 0x100) < 0:
            number = ctypes.get_errno()
            raise NoSpace(f"{self._home} cannot be watched: {os.strerror(number)}.", mend="Raise fs.inotify.max_user_watches and max_user_instances.")
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    async def changed(self) -> None:
        """Returns after the next change since entering or the last call."""
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(self._fd, ready.set)
        try:
            await ready.wait()
            os.read(self._fd, 65536)
        finally:
            loop.remove_reader(self._fd)


class Uids:
    """Hands out user ids for VMMs, one each, so that no two machines share one. Each home has a range of its
    own, chosen by its path, so that two homes on one host do not meet but by a chance of 1 in 1,024. Without root there is only our own (None)."""

    def __init__(self, home: Path, *, enabled: bool) -> None:
        self._enabled = enabled
        share = int.from_bytes(hashlib.sha256(str(home.resolve()).encode()).digest()[:4], "big") % SHARES
        self._first = FIRST_UID + share * UIDS
        self._used: set[int] = set()

    def take(self) -> int | None:
        """Raises NoSpace when all are in use."""
        if not self._enabled:
            return None
        for uid in range(self._first, self._first + UIDS):
            if uid not in self._used:
                self._used.add(uid)
                return uid
        raise NoSpace(f"All {UIDS} user ids for microVMs are in use.", mend="Pause or kill sandboxes.")

    def hold(self, uid: int | None) -> None:
        """A machine taken back has this one."""
        if uid is not None:
            self._used.add(uid)

    def give_back(self, uid: int | None) -> None:
        """Only after the VMM is reaped."""
        if uid is not None:
            self._used.discard(uid)
