"""Files: everything runs in threads, so that a hung file system costs one thread. With a user given, calls are checked as that user's."""

from __future__ import annotations

import base64
import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from typing import Any

from torpor.guest import users
from torpor.guest.conversation import Request
from torpor.guest.download import FROM, Download, first_load
from torpor.guest.faults import Refusal
from torpor.guest.loads import Pipe
from torpor.guest.loop import Loop
from torpor.guest.pump import PieceSender, Pump
from torpor.wire import guest as wire

_AHEAD = 4 * wire.GUEST_PAYLOAD
_MAX_ENTRIES = 100_000
_MAX_LISTING = 48 << 20
_MOST_ATTRIBUTES = 16384
"""Bytes of names and values that `details` shows of one file."""
Json = dict[str, Any]


def checked(path: Any) -> str:
    """An absolute path without NUL. Raises Refusal."""
    if not isinstance(path, str) or not path.startswith("/") or "\0" in path:
        raise Refusal("invalid", "a path must be absolute and free of NUL")
    return path


def info(path: str, status: os.stat_result) -> Json:
    """A FileInfo's fields."""
    mode = status.st_mode
    kind = "file" if stat.S_ISREG(mode) else "directory" if stat.S_ISDIR(mode) else "symlink" if stat.S_ISLNK(mode) else "other"
    target = ""
    if kind == "symlink":
        with contextlib.suppress(OSError):
            target = os.readlink(path)
    return {
        "path": path,
        "kind": kind,
        "size": status.st_size,
        "mode": stat.S_IMODE(mode),
        "uid": status.st_uid,
        "gid": status.st_gid,
        "user": users.user_name(status.st_uid),
        "group": users.group_name(status.st_gid),
        "modified": status.st_mtime,
        "target": target,
    }


def details(path: str, status: os.stat_result) -> Json:
    """What `info` leaves out: the whole of st_mode, where a symlink leads, the attributes that are the user's (of what it leads to)."""
    reached: Json | None = None
    if stat.S_ISLNK(status.st_mode):
        reached = {"path": os.path.realpath(path), "raw_mode": 0, "errno": 0}
        try:
            reached["raw_mode"] = os.stat(path).st_mode
        except OSError as error:
            reached["errno"] = error.errno
    attributes: dict[str, str] = {}
    room = _MOST_ATTRIBUTES
    with contextlib.suppress(OSError):
        for name in os.listxattr(path):
            if name.startswith("user."):
                value = os.getxattr(path, name)
                room -= len(name) + len(value)
                if room < 0:
                    break
                attributes[name] = base64.b64encode(value).decode()
    return {"raw_mode": status.st_mode, "reached": reached, "attributes": attributes}


def make_directories(path: str, mode: int, owner: users.User | None = None) -> bool:
    """Like `mkdir -p`; True if the last one was made. What is made belongs to `owner`, else to whom the thread acts as."""
    try:
        os.mkdir(path, mode)
    except FileNotFoundError:
        make_directories(os.path.dirname(path), 0o755, owner)
        os.mkdir(path, mode)
    except FileExistsError:
        if not os.path.isdir(path):
            raise
        return False
    os.chmod(path, mode)
    if owner is not None:
        os.chown(path, owner.uid, owner.gid)
    return True


def remove(path: str, recursive: bool) -> None:
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        os.unlink(path)
    elif recursive:
        shutil.rmtree(path)
    else:
        os.rmdir(path)


def _copy(source: str, target: str) -> None:
    """A tree with modes, times, owners, extended attributes and symlinks as they are."""
    status = os.lstat(source)
    if stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(source), target)
    elif stat.S_ISDIR(status.st_mode):
        os.mkdir(target, 0o700)
        for name in os.listdir(source):
            _copy(os.path.join(source, name), os.path.join(target, name))
    elif stat.S_ISREG(status.st_mode):
        shutil.copyfile(source, target, follow_symlinks=False)
    else:
        os.mknod(target, status.st_mode, status.st_rdev)
    os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)
    shutil.copystat(source, target, follow_symlinks=False)


def move(source: str, target: str) -> None:
    """rename(2); across file systems a copy beside the target, a rename, and the source's removal, in this order: nothing is ever lost or half there."""
    try:
        os.rename(source, target)
        return
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    beside = os.path.join(os.path.dirname(target), f".torpor-move-{os.urandom(6).hex()}")
    try:
        _copy(source, beside)
        os.rename(beside, target)
    except BaseException:
        if os.path.lexists(beside):
            remove(beside, True)
        raise
    remove(source, True)


def _walk(path: str, depth: int, detailed: bool) -> Iterator[Json]:
    with os.scandir(path) as entries:
        found = list(entries)
    for entry in found:
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        yield info(entry.path, status) | (details(entry.path, status) if detailed else {})
        if depth > 1 and stat.S_ISDIR(status.st_mode):
            try:
                yield from _walk(entry.path, depth - 1, detailed)
            except (FileNotFoundError, NotADirectoryError):
                continue  # it went away while we looked


def listing(path: str, depth: int, detailed: bool) -> Iterator[bytes]:
    """JSON lines in blocks, sorted by path. Raises before the first block."""
    rows: list[tuple[bytes, bytes]] = []
    size = 0
    for entry in _walk(path, depth, detailed):
        line = wire.to_json(entry) + b"\n"
        size += len(line)
        rows.append((os.fsencode(entry["path"]), line))
        if len(rows) > _MAX_ENTRIES or size > _MAX_LISTING:
            raise Refusal("invalid", f"{path} holds more than {_MAX_ENTRIES} entries, or {_MAX_LISTING >> 20} MiB of names")
    rows.sort()
    for at in range(0, len(rows), 256):
        yield b"".join(line for _, line in rows[at : at + 256])


def attributes(path: str) -> Iterator[bytes]:
    for name in os.listxattr(path, follow_symlinks=False):
        value = os.getxattr(path, name, follow_symlinks=False)
        yield wire.to_json({"name": name, "value": base64.b64encode(value).decode()}) + b"\n"


class _Begun:
    """An open file of which the first bytes are read: as a `load`, or as `first`, with `piece` for the next ones. Blocks. Closes `file` when it raises."""

    def __init__(self, path: str, file: int, position: int, rest: int, *, bulk: bool) -> None:
        self.file = file
        self.first = b""
        self.load: tuple[Pipe, int] | None = None
        self._position, self._rest = position, rest
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                code = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL
                raise OSError(code, os.strerror(code), path)
            self.size = status.st_size
            if bulk and min(rest, self.size - position) >= FROM:
                self.load = first_load(file, position, rest)
            if self.load is None:
                self.first = self.piece()
        except BaseException:
            os.close(file)
            raise

    def piece(self) -> bytes:
        data = os.pread(self.file, min(_AHEAD, self._rest), self._position)
        self._position += len(data)
        self._rest -= len(data)
        return data


class Files:
    """Operations on files. `default_user` says who '' is."""

    def __init__(self, loop: Loop, default_user: Callable[[], str]) -> None:
        self.loop = loop
        self._default_user = default_user

    def user(self, args: Json) -> users.User:
        return users.find(args.get("user") or self._default_user())

    def _run(self, request: Request, work: Callable[[], Json | None]) -> None:
        def done(result: Json | None, error: BaseException | None) -> None:
            if error is not None:
                request.fail(error)
            else:
                request.reply(**(result or {}))

        self.loop.in_thread(work, done)

    def _blocks(self, request: Request, blocks: Iterator[bytes]) -> None:
        """Answers with a stream of JSON lines."""

        def first(data: bytes | None, error: BaseException | None) -> None:
            if error is not None:
                request.fail(error)
                return
            request.reply()
            pump = Pump(self.loop, request.stream(sender=wire.Sender()), lambda: next(blocks, b""))
            pump.first(data or b"")

        self.loop.in_thread(lambda: next(blocks, b""), first)

    def read(self, request: Request) -> None:
        """args path, offset, length, user, bulk: replies with the file's size, then streams it; with `bulk` in frames of up to BULK_PAYLOAD."""
        args, path, user = request.args, checked(request.args.get("path")), self.user(request.args)
        position, length = int(args.get("offset", 0)), args.get("length")
        rest = int(length) if length is not None else 1 << 62
        if position < 0 or rest < 0:
            raise Refusal("invalid", "offset and length must not be negative")

        def opened(begun: _Begun | None, error: BaseException | None) -> None:
            if error is not None or begun is None:
                request.fail(error or RuntimeError("no result"))
                return
            request.reply(size=begun.size, window=wire.WIDE_WINDOW)
            if begun.load is not None:
                Download(self.loop, request, begun.file, position, rest, *begun.load)
            else:
                pump = Pump(self.loop, request.stream(sender=PieceSender()), begun.piece, lambda: os.close(begun.file))
                pump.first(begun.first)

        def begin() -> _Begun:
            with users.files_as(user):
                file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
            return _Begun(path, file, position, rest, bulk=bool(args.get("bulk")))

        self.loop.in_thread(begin, opened)

    def list(self, request: Request) -> None:
        depth = int(request.args.get("depth", 1))
        if depth < 1:
            raise Refusal("invalid", "depth begins at 1")
        self._blocks(request, listing(checked(request.args.get("path")), depth, bool(request.args.get("details"))))

    def get_xattrs(self, request: Request) -> None:
        self._blocks(request, attributes(checked(request.args.get("path"))))

    def stat(self, request: Request) -> None:
        path, follow, detailed = checked(request.args.get("path")), bool(request.args.get("follow", True)), bool(request.args.get("details"))

        def work() -> Json:
            status = os.stat(path, follow_symlinks=follow)
            return info(path, status) | (details(path, status) if detailed else {})

        self._run(request, work)

    def mkdir(self, request: Request) -> None:
        path, mode, user = os.path.normpath(checked(request.args.get("path"))), int(request.args.get("mode", 0o755)), self.user(request.args)
        parents = bool(request.args.get("parents", True))
        owner = users.find(request.args["owner"]) if request.args.get("owner") else None

        def work() -> Json:
            with users.files_as(user):
                if not parents and not os.path.lexists(os.path.dirname(path)):
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
                return {"made": make_directories(path, mode, owner)}

        self._run(request, work)

    def move(self, request: Request) -> None:
        source, target = checked(request.args.get("source")), checked(request.args.get("target"))
        self._run(request, lambda: move(source, target))

    def remove(self, request: Request) -> None:
        path, recursive = checked(request.args.get("path")), bool(request.args.get("recursive"))
        self._run(request, lambda: remove(path, recursive))

    def symlink(self, request: Request) -> None:
        path, target, user = checked(request.args.get("path")), str(request.args.get("target")), self.user(request.args)

        def work() -> None:
            with users.files_as(user):
                os.symlink(target, path)

        self._run(request, work)

    def chmod(self, request: Request) -> None:
        path, mode = checked(request.args.get("path")), int(request.args["mode"])
        self._run(request, lambda: os.chmod(path, mode))

    def chown(self, request: Request) -> None:
        path = checked(request.args.get("path"))
        owner = users.find(str(request.args.get("user")))
        group = users.group_id(request.args["group"]) if request.args.get("group") else owner.gid
        self._run(request, lambda: os.chown(path, owner.uid, group, follow_symlinks=False))

    def set_xattr(self, request: Request) -> None:
        path, name, value = checked(request.args.get("path")), str(request.args.get("name")), request.args.get("value")

        def work() -> None:
            if value is None:
                os.removexattr(path, name, follow_symlinks=False)
            else:
                os.setxattr(path, name, base64.b64decode(value), follow_symlinks=False)

        self._run(request, work)
