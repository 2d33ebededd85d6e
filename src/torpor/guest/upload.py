"""Writing a file from a stream: whole files beside the old one and then renamed over it, parts in place."""

from __future__ import annotations

import base64
import contextlib
import errno
import os
import stat
from typing import Any

from torpor.guest import files, users
from torpor.guest.conversation import Request, Stream
from torpor.guest.faults import Refusal
from torpor.guest.files import Files, checked
from torpor.wire import guest as wire

_TOGETHER = wire.WINDOW // 2
_PLACE_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
Json = dict[str, Any]


class _Target:
    """The file being written. All methods block; each acts as the user."""

    def __init__(self, args: Json, user: users.User) -> None:
        self.path = checked(args.get("path"))
        self.user = user
        self.mode: int | None = args.get("mode")
        self.append = bool(args.get("append"))
        self.offset: int | None = args.get("offset")
        self.parents = bool(args.get("make_parents", True))
        self.sync = bool(args.get("sync"))
        self.rewrite = bool(args.get("rewrite"))
        self.owner = users.find(args["owner"]) if args.get("owner") else None
        self._replaced = str(args.get("replaced") or "")
        self._attributes = {str(name): base64.b64decode(value) for name, value in (args.get("attributes") or {}).items()}
        self.fd = -1
        self._beside = ""
        if self.offset is not None and self.offset < 0:
            raise Refusal("invalid", "the offset must not be negative")

    def open(self) -> None:
        with users.files_as(self.user):
            self.path = os.path.realpath(self.path)
            if self.parents:
                files.make_directories(os.path.dirname(self.path), 0o755, self.owner)
            flags = os.O_WRONLY | os.O_CLOEXEC | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY
            if self.append or self.offset is not None:
                self._in_place(flags | (os.O_APPEND if self.append else 0))
                if self.offset is not None:
                    os.lseek(self.fd, self.offset, os.SEEK_SET)
                return
            if self.rewrite:
                self._rewrite(flags)
                return
            try:
                self._beside_it(flags)
            except OSError as error:
                # A writable file in a folder that is not, or one whose owner could not be kept.
                if error.errno not in _PLACE_REFUSED or not os.path.lexists(self.path):
                    raise
                self._in_place(flags | os.O_TRUNC)

    def _rewrite(self, flags: int) -> None:
        """The file itself, emptied: for who watches it a create, a change of owner, and the writes. The attributes that begin with `replaced` give way."""
        try:
            self.fd, new = os.open(self.path, flags | os.O_EXCL, 0o644), True
        except FileExistsError:
            self.fd, new = os.open(self.path, flags & ~os.O_CREAT), False
        try:
            if not stat.S_ISREG(os.fstat(self.fd).st_mode):
                raise OSError(errno.EINVAL, "not a regular file", self.path)
            if not new:
                os.ftruncate(self.fd, 0)
            if self.owner is not None:
                os.fchown(self.fd, self.owner.uid, self.owner.gid)
            if self._replaced and not new:
                for name in self._listed():
                    if name.startswith(self._replaced):
                        os.removexattr(self.fd, name)
            for name, value in self._attributes.items():
                os.setxattr(self.fd, name, value)
        except BaseException:
            self.abandon()
            raise

    def _listed(self) -> list[str]:
        try:
            return os.listxattr(self.fd)
        except OSError as error:
            if error.errno != errno.ENOTSUP:
                raise
            return []

    def _in_place(self, flags: int) -> None:
        new = not os.path.lexists(self.path)
        self.fd = os.open(self.path, flags, 0o600 if new else 0)
        if not stat.S_ISREG(os.fstat(self.fd).st_mode):
            self.abandon()
            raise OSError(errno.EINVAL, "not a regular file", self.path)
        if new or self.mode is not None:
            os.fchmod(self.fd, self.mode if self.mode is not None else 0o644)

    def _beside_it(self, flags: int) -> None:
        """A temporary file in the same folder, already with the old one's mode and owner."""
        try:
            old: os.stat_result | None = os.lstat(self.path)
        except FileNotFoundError:
            old = None
        if old is not None and stat.S_ISDIR(old.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self.path)
        if old is not None and not stat.S_ISREG(old.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", self.path)
        if old is not None:
            os.close(os.open(self.path, os.O_WRONLY | os.O_CLOEXEC))  # may the user write it at all?
        name = os.path.join(os.path.dirname(self.path), f".torpor-write-{os.urandom(6).hex()}")
        self.fd = os.open(name, flags | os.O_EXCL, 0o600)
        self._beside = name
        try:
            made = os.fstat(self.fd)
            if old is not None and (made.st_uid, made.st_gid) != (old.st_uid, old.st_gid):
                os.fchown(self.fd, old.st_uid, old.st_gid)
            default = stat.S_IMODE(old.st_mode) if old is not None else 0o644
            os.fchmod(self.fd, self.mode if self.mode is not None else default)
        except OSError:
            self.abandon()
            raise

    def write(self, pieces: list[bytes | memoryview]) -> None:
        for piece in [b"".join(pieces)] if self.rewrite else pieces:
            rest = memoryview(piece)
            while rest:
                rest = rest[os.write(self.fd, rest) :]

    def finish(self) -> Json:
        with users.files_as(self.user):
            if self.sync:
                os.fsync(self.fd)
            if self._beside:
                os.rename(self._beside, self.path)
                self._beside = ""
                if self.sync:
                    self._sync_folder()
            status = os.fstat(self.fd)
            os.close(self.fd)
            self.fd = -1
            return files.info(self.path, status)

    def _sync_folder(self) -> None:
        fd = os.open(os.path.dirname(self.path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def abandon(self) -> None:
        """The old file stays; what was written in place stays too."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self._beside:
            with users.files_as(self.user), contextlib.suppress(FileNotFoundError):
                os.unlink(self._beside)
            self._beside = ""


class Upload:
    """One write under way: pieces queue up while a thread writes earlier ones; the window bounds them."""

    def __init__(self, host: Files, request: Request) -> None:
        self._loop = host.loop
        self._request = request
        self._target = _Target(request.args, host.user(request.args))
        receiver = wire.Receiver()
        if request.args.get("window") == wire.WIDE_WINDOW:
            receiver.window = wire.WIDE_WINDOW
        self._batch = receiver.window // 16 * 7
        """Bytes that are worth a thread's turn while more arrives; once they are written, new ones are granted."""
        self._stream: Stream = request.stream(receiver=receiver)
        self._stream.on_data = self._take
        self._stream.on_lent = self._take
        self._stream.on_end = self._end
        self._stream.on_close = self._abandon
        self._pieces: list[bytes | wire.Lent] = []
        self._waiting = 0
        """Bytes in them."""
        self._offered = False
        """The loop's idle moment is waited for."""
        self._opened = self._ended = self._busy = self._over = False
        self._loop.soon(self._step)

    def _take(self, data: bytes | wire.Lent) -> None:
        if self._over:
            self._done_with([data])
        else:
            if not self._offered:
                self._offered = True
                self._loop.idle(self._at_rest)  # a host that sends little at a time, or stops
            self._pieces.append(data)
            self._waiting += len(data)
            if self._waiting >= self._batch:
                self._step()

    def _end(self) -> None:
        self._ended = True
        self._step()

    def _at_rest(self) -> None:
        self._offered = False
        self._step()

    def _step(self) -> None:
        """Opens, writes all that is there and finishes, as far as it can, in one go of a thread."""
        if self._busy or self._over or (self._opened and not self._pieces and not self._ended):
            return
        # A rewrite is as few writes as can be, for each is an event to who watches: what came along with the request waits for the rest as well.
        little = self._target.rewrite and not self._ended and sum(map(len, self._pieces)) < _TOGETHER
        if little and self._opened:
            return
        self._busy = True
        pieces, ending, opened = [] if little else self._pieces, self._ended, self._opened
        if not little:
            self._pieces, self._waiting = [], 0

        def work() -> Json | None:
            try:
                if not opened:
                    self._target.open()
                self._target.write([piece.view if isinstance(piece, wire.Lent) else piece for piece in pieces])
                return self._target.finish() if ending else None
            except BaseException:
                self._target.abandon()
                raise

        self._opened = True
        self._loop.in_thread(work, lambda result, error: self._stepped(pieces, ending, result, error))

    def _done_with(self, pieces: list[bytes | wire.Lent]) -> None:
        count = sum(map(len, pieces))
        for piece in pieces:
            if isinstance(piece, wire.Lent):
                piece.release()
        if count:
            self._stream.consumed(count)

    def _stepped(self, pieces: list[bytes | wire.Lent], ending: bool, result: Json | None, error: BaseException | None) -> None:
        self._busy = False
        self._done_with(pieces)
        if error is not None:
            self._request.fail(error)
            self._finish()
        elif ending and result is not None:
            self._request.reply(**result)
            self._finish()
        elif self._over:
            self._loop.in_thread(self._target.abandon, _ignore)
        else:
            self._step()

    def _finish(self) -> None:
        self._over = True
        pieces, self._pieces, self._waiting = self._pieces, [], 0
        self._done_with(pieces)

    def _abandon(self) -> None:
        """The host closed the stream before its end, or a new conversation began."""
        if not self._over:
            self._over = True
            if not self._busy:
                self._loop.in_thread(self._target.abandon, _ignore)
            self._request.fail(OSError(errno.ECANCELED, os.strerror(errno.ECANCELED)))


def _ignore(_result: None, error: BaseException | None) -> None:
    if error is not None:
        raise error
