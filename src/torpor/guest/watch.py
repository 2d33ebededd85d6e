"""Watching directories with inotify (constants from include/uapi/linux/inotify.h). Events travel as JSON lines on a stream.

New subdirectories join a recursive watch: first the watch is added, then the directory is scanned, and what the scan found is not reported again when its own
event arrives. A host that reads too slowly gets one `overflow` instead of the events that found no room.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import stat
import struct
from typing import Any

from torpor.guest import libc
from torpor.guest.conversation import Request, Stream
from torpor.guest.files import checked
from torpor.guest.loop import Loop, Timer
from torpor.wire import guest as wire

_MODIFY, _ATTRIB, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE, _DELETE_SELF = 0x2, 0x4, 0x40, 0x80, 0x100, 0x200, 0x400
_OVERFLOW, _IGNORED, _ONLYDIR, _DONT_FOLLOW, _ISDIR = 0x4000, 0x8000, 0x01000000, 0x02000000, 0x40000000
_MASK = _MODIFY | _ATTRIB | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _DELETE_SELF
_EVENT = struct.Struct("iIII")
_MOST_PENDING = 4 * wire.WINDOW
_PAIR_SECONDS = 0.25
"""How long half a rename waits for its other half. The kernel queues one right after the other, but who renames may lose the core between the two."""


class Watches:
    """The operation `watch`."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    def watch(self, request: Request) -> None:
        """args path, recursive: replies once the watch stands."""
        path, recursive, exact = checked(request.args.get("path")), bool(request.args.get("recursive")), bool(request.args.get("exact"))

        def ready(watch: _Watch | None, error: BaseException | None) -> None:
            if error is not None or watch is None:
                request.fail(error or RuntimeError("no watch"))
            elif not request.conversation.alive:
                watch.close()
            else:
                request.reply()
                watch.begin(request.stream(sender=wire.Sender()))

        self._loop.in_thread(lambda: _Watch(self._loop, path, recursive, exact), ready)


class _Watch:
    """One inotify instance. Made in a thread: adding a large tree takes long."""

    def __init__(self, loop: Loop, path: str, recursive: bool, exact: bool) -> None:
        self._loop = loop
        self._exact = exact
        """A name that moved away is `renamed` to '', and a file found with bytes in it was `written` too."""
        self._root = os.path.normpath(path)
        self._recursive = recursive
        self._fd = libc.check(libc.LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        self._names: dict[int, str] = {}
        self._known: set[str] = set()
        self._half: tuple[int, str, bool] | None = None
        self._half_timer: Timer | None = None
        self._stream: Stream | None = None
        self._overflowed = False
        self._holding = False
        """A directory that joined is being looked through; events wait."""
        try:
            if not stat.S_ISDIR(os.stat(self._root).st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
            self._root_watch = self._add("", _ONLYDIR)
            if recursive:
                self._scan("", found=None)
        except BaseException:
            os.close(self._fd)
            raise

    def begin(self, stream: Stream) -> None:
        self._stream = stream
        stream.on_close = self.close
        stream.on_room = self._room
        self._loop.register(self._fd, select.EPOLLIN, self._on_readable)

    def close(self) -> None:
        if self._fd >= 0:
            if self._half_timer is not None:
                self._half_timer.cancel()
            self._loop.unregister(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _add(self, relative: str, flags: int) -> int:
        path = os.path.join(self._root, relative) if relative else self._root
        number = libc.check(libc.LIBC.inotify_add_watch(self._fd, os.fsencode(path), ctypes.c_uint32(_MASK | flags)), path)
        self._names[number] = relative
        return number

    def _scan(self, relative: str, found: list[tuple[str, bool]] | None) -> None:
        """Adds the subdirectories below `relative`; notes all entries in `found`. What vanishes meanwhile has its own event."""
        try:
            with os.scandir(os.path.join(self._root, relative)) as entries:
                listed = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        except (FileNotFoundError, NotADirectoryError):
            return
        for name, is_directory in listed:
            path = f"{relative}/{name}" if relative else name
            if found is not None:
                found.append((path, is_directory))
            if is_directory:
                try:
                    self._add(path, _ONLYDIR | _DONT_FOLLOW)
                except (FileNotFoundError, NotADirectoryError):
                    continue
                self._scan(path, found)

    def _join(self, relative: str) -> None:
        """A directory appeared: watch it and report what is in it already, in a thread, with the reading of events held back."""
        self._loop.unregister(self._fd)
        self._holding = True
        found: list[tuple[str, bool]] = []
        written: set[str] = set()

        def work() -> None:
            try:
                self._add(relative, _ONLYDIR | _DONT_FOLLOW)
            except (FileNotFoundError, NotADirectoryError):
                return
            self._scan(relative, found)
            if self._exact:
                written.update(path for path, is_directory in found if not is_directory and self._has_bytes(path))

        def done(_result: None, error: BaseException | None) -> None:
            if self._fd < 0:
                return
            if error is not None:
                self._lost()
            for path, is_directory in found:
                self._known.add(path)
                self._tell("created", path, is_directory)
                if path in written:
                    self._tell("written", path, is_directory)
            self._holding = False
            self._loop.register(self._fd, select.EPOLLIN, self._on_readable)
            self._events(self._later)

        self._loop.in_thread(work, done)

    def _has_bytes(self, relative: str) -> bool:
        try:
            return os.lstat(os.path.join(self._root, relative)).st_size > 0
        except OSError:
            return False

    def _on_readable(self, _events: int) -> None:
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return
        self._events(data)

    def _events(self, data: bytes) -> None:
        """Handles events up to one that needs a scan; the rest waits in `_later` for the scan's end."""
        at = 0
        while at < len(data):
            number, mask, cookie, length = _EVENT.unpack_from(data, at)
            name = os.fsdecode(data[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0"))
            at += _EVENT.size + length
            if self._event(number, mask, cookie, name):
                self._later = data[at:]
                return
            if self._fd < 0 or (self._stream is not None and self._stream.sender is not None and self._stream.sender.ended):
                return
        self._later = b""
        if not data or self._known:
            # Anything known was found before its event: once the queue is empty, no such event can be left.
            self._known_until_empty()
        if self._half is not None and self._half_timer is None:
            self._half_timer = self._loop.later(_PAIR_SECONDS, self._half_waited)

    _later = b""

    def _known_until_empty(self) -> None:
        if not self._more():
            self._known.clear()

    def _more(self) -> bool:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(0))

    def _event(self, number: int, mask: int, cookie: int, name: str) -> bool:
        """One event; True if a directory joined, and the rest must wait."""
        if mask & _OVERFLOW:
            self._lost()
            return False
        folder = self._names.get(number)
        if folder is None:
            return False
        is_directory = bool(mask & _ISDIR)
        path = f"{folder}/{name}" if folder and name else folder or name
        if self._half is not None and not (mask & _MOVED_TO and cookie == self._half[0]):
            self._give_up_half()
        if mask & _IGNORED:
            del self._names[number]
            if number == self._root_watch:
                self._end()
        elif mask & _CREATE:
            return self._appeared(path, is_directory)
        elif mask & _MOVED_FROM:
            self._half = (cookie, path, is_directory)
        elif mask & _MOVED_TO:
            return self._moved_to(path, is_directory)
        elif mask & _DELETE:
            self._tell("removed", path, is_directory)
        elif name and mask & (_MODIFY | _ATTRIB):
            self._tell("written" if mask & _MODIFY else "attributes", path, is_directory)
        return False

    def _appeared(self, path: str, is_directory: bool) -> bool:
        if path in self._known:
            self._known.discard(path)
            return False
        self._tell("created", path, is_directory)
        if is_directory and self._recursive:
            self._join(path)
            return True
        return False

    def _moved_to(self, path: str, is_directory: bool) -> bool:
        if self._half is None:
            return self._appeared(path, is_directory)
        _, old, _ = self._half
        self._forget_half()
        if is_directory:
            for number, relative in self._names.items():
                if relative == old or relative.startswith(old + "/"):
                    self._names[number] = path + relative[len(old) :]
        self._tell("renamed", old, is_directory, path)
        return False

    def _half_waited(self) -> None:
        """The time for the other half is over. A machine that stood still meanwhile has it in the queue, or behind a directory that is being looked through:
        what is there is read first, and if the half is still alone then, it waits once more."""
        self._half_timer = None
        if self._later or self._holding:
            self._half_timer = self._loop.later(_PAIR_SECONDS, self._half_waited)
        elif self._more():
            self._on_readable(0)
        else:
            self._give_up_half()

    def _forget_half(self) -> None:
        if self._half_timer is not None:
            self._half_timer.cancel()
        self._half = self._half_timer = None

    def _give_up_half(self) -> None:
        """The other half of a rename lies outside: the name was removed, and the watches below it with it."""
        if self._half is None:
            return
        _, old, is_directory = self._half
        self._forget_half()
        for number in [n for n, relative in self._names.items() if is_directory and (relative == old or relative.startswith(old + "/"))]:
            libc.LIBC.inotify_rm_watch(self._fd, number)
            del self._names[number]
        self._tell("renamed" if self._exact else "removed", old, is_directory)

    def _lost(self) -> None:
        self._overflowed = True
        self._room()

    def _room(self) -> None:
        """Says `overflow` as soon as it finds room."""
        if self._overflowed and self._stream is not None and self._stream.sender is not None and self._stream.sender.pending < _MOST_PENDING // 2:
            self._overflowed = False
            self._tell("overflow", "", False)

    def _tell(self, kind: str, path: str, is_directory: bool, new_path: str = "") -> None:
        if self._stream is None or self._stream.sender is None:
            return
        sender = self._stream.sender
        if self._overflowed or sender.ended:
            return
        if sender.pending > _MOST_PENDING:
            self._overflowed = True
            return
        event: dict[str, Any] = {"kind": kind, "path": path, "new_path": new_path, "is_directory": is_directory}
        sender.write(wire.to_json(event) + b"\n")
        self._stream.wake()

    def _end(self) -> None:
        if self._stream is not None and self._stream.sender is not None:
            self._stream.sender.end()
            self._stream.wake()
