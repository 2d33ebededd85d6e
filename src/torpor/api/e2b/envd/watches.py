"""Watches of directories: as a stream (WatchDir), or kept here for who polls (CreateWatcher, GetWatcherEvents, RemoveWatcher).

A polled watch is this server's: it lasts until it is removed, its sandbox ends, or nobody has asked for UNASKED seconds. A pause ends the guest's own watch;
the next poll after the sandbox woke begins it again.
"""

from __future__ import annotations

import asyncio
import posixpath
import re
import secrets
from collections import Counter, deque
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

from torpor.api.e2b.envd.connect import Method, Methods
from torpor.api.e2b.envd.entries import entry
from torpor.api.e2b.envd.faults import Fault
from torpor.api.e2b.envd.messages import FILESYSTEM, Message
from torpor.api.e2b.envd.session import Session
from torpor.api.errors import clean
from torpor.model.errors import GuestError, GuestOSError
from torpor.ports.guest import FileKind, Guest, WatchEvent, WatchKind

UNASKED = 3600.0
MOST_EVENTS = 16384
"""Kept of one watch between two polls."""
MOST_WATCHERS = 256
"""Polled watches of one sandbox."""
_CREATE, _WRITE, _REMOVE, _RENAME, _CHMOD = range(1, 6)
_TYPES = {WatchKind.CREATED: _CREATE, WatchKind.WRITTEN: _WRITE, WatchKind.REMOVED: _REMOVE, WatchKind.RENAMED: _RENAME, WatchKind.ATTRIBUTES: _CHMOD}
_NETWORK = re.compile(r"(nfs\d?|cifs|smb\d?|smbfs|9p|afs|ceph|glusterfs|fuse\..*|fuse|virtiofs)\Z")
_OCTAL = re.compile(r"\\([0-7]{3})")
_MOUNTS = "/proc/self/mounts"
_MOST_MOUNTS = 1 << 20


class Watches:
    """The methods of the service that watch."""

    def __init__(self) -> None:
        self._watchers: dict[tuple[str, str], _Watcher] = {}
        self._held: Counter[str] = Counter()

    def methods(self) -> Methods:
        words = FILESYSTEM
        quiet = words["WatchDirResponse"](keepalive=words["WatchDirResponse.KeepAlive"]())
        return {
            "WatchDir": Method(words["WatchDirRequest"], server=self.watch_dir, keepalive=quiet),
            "CreateWatcher": Method(words["CreateWatcherRequest"], unary=self.create_watcher),
            "GetWatcherEvents": Method(words["GetWatcherEventsRequest"], unary=self.get_watcher_events),
            "RemoveWatcher": Method(words["RemoveWatcherRequest"], unary=self.remove_watcher),
        }

    async def watch_dir(self, session: Session, request: Message) -> AsyncGenerator[Message, None]:
        response = FILESYSTEM["WatchDirResponse"]
        async with session.guest("a watch") as guest:
            path = await _target(session, guest, request)
            async with aclosing(await guest.watching(path, recursive=request.recursive, exact=True)) as events:
                yield response(start=FILESYSTEM["WatchDirResponse.StartEvent"]())
                async for event in events:
                    if event.kind is WatchKind.OVERFLOW:
                        raise Fault("internal", "events were lost: there were too many at once")
                    for each in await _told(guest, path, event, request.include_entry):
                        yield response(filesystem=each)

    async def create_watcher(self, session: Session, request: Message) -> Message:
        sandbox_id = session.sandbox.id
        if self._held[sandbox_id] >= MOST_WATCHERS:
            raise Fault("resource_exhausted", f"a sandbox may have {MOST_WATCHERS} watchers at a time")
        self._held[sandbox_id] += 1
        watcher = None
        try:
            async with session.guest("a watch") as guest:
                path = await _target(session, guest, request)
                watcher = _Watcher(path, recursive=request.recursive, with_entry=request.include_entry)
                await watcher.begin(guest)
        finally:
            if watcher is None or not watcher.begun:
                self._release(sandbox_id)
        watcher_id = secrets.token_hex(10)
        self._watchers[sandbox_id, watcher_id] = watcher
        self._expire(watcher, sandbox_id, watcher_id)
        return FILESYSTEM["CreateWatcherResponse"](watcher_id=watcher_id)

    async def get_watcher_events(self, session: Session, request: Message) -> Message:
        watcher = self._find(session.sandbox.id, request.watcher_id)
        self._expire(watcher, session.sandbox.id, request.watcher_id)
        if watcher.lost:
            async with session.guest("a watch") as guest:
                await watcher.begin(guest)
        return FILESYSTEM["GetWatcherEventsResponse"](events=await watcher.take())

    async def remove_watcher(self, session: Session, request: Message) -> Message:
        self._find(session.sandbox.id, request.watcher_id)
        self._drop(session.sandbox.id, request.watcher_id)
        return FILESYSTEM["RemoveWatcherResponse"]()

    def _find(self, sandbox_id: str, watcher_id: str) -> _Watcher:
        watcher = self._watchers.get((sandbox_id, watcher_id))
        if watcher is None:
            raise Fault("not_found", f"watcher with id {watcher_id[:40]} not found")
        return watcher

    def _expire(self, watcher: _Watcher, sandbox_id: str, watcher_id: str) -> None:
        if watcher.expiry is not None:
            watcher.expiry.cancel()
        watcher.expiry = asyncio.get_running_loop().call_later(UNASKED, self._drop, sandbox_id, watcher_id)

    def _drop(self, sandbox_id: str, watcher_id: str) -> None:
        watcher = self._watchers.pop((sandbox_id, watcher_id), None)
        if watcher is not None:
            self._release(sandbox_id)
            watcher.end()

    def _release(self, sandbox_id: str) -> None:
        self._held[sandbox_id] -= 1
        if self._held[sandbox_id] <= 0:
            del self._held[sandbox_id]


class _Watcher:
    """A watch whose events wait here. `lost`: the guest's own watch is over."""

    def __init__(self, path: str, *, recursive: bool, with_entry: bool) -> None:
        self.expiry: asyncio.TimerHandle | None = None
        self.begun = False
        self.lost = False
        self._path, self._recursive, self._with_entry = path, recursive, with_entry
        self._events: deque[Message] = deque()
        self._overflowed = False
        self._task: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()

    async def begin(self, guest: Guest) -> None:
        """Raises what the guest says to it."""
        async with self._turn:
            if self.begun and not self.lost:
                return
            events = await guest.watching(self._path, recursive=self._recursive, exact=True)
            self.begun, self.lost = True, False
            self._task = asyncio.create_task(self._collect(guest, events), name="watcher")

    async def _collect(self, guest: Guest, events: AsyncGenerator[WatchEvent, None]) -> None:
        try:
            async with aclosing(events):
                with suppress(GuestError):  # the sandbox sleeps or is gone: who polls will hear of it
                    async for event in events:
                        if event.kind is WatchKind.OVERFLOW or len(self._events) >= MOST_EVENTS:
                            self._overflowed = True
                        else:
                            self._events.extend(await _told(guest, self._path, event, self._with_entry))
        finally:
            self.lost = True

    async def take(self) -> list[Message]:
        """What happened since the last time. Raises Fault once when events were lost."""
        if self._overflowed:
            self._overflowed = False
            self._events.clear()
            raise Fault("resource_exhausted", "events were lost: there were too many since the last call")
        taken = list(self._events)
        self._events.clear()
        return taken

    def end(self) -> None:
        if self.expiry is not None:
            self.expiry.cancel()
        if self._task is not None:
            self._task.cancel()


async def _target(session: Session, guest: Guest, request: Message) -> str:
    """The directory to watch. Raises Fault, GuestOSError."""
    path = (await session.account(guest)).path(request.path)
    if (await guest.stat(path)).kind is not FileKind.DIRECTORY:
        raise Fault("invalid_argument", f"path is not a directory: {path}")
    if not request.allow_network_mounts and await _on_network(guest, path):
        raise Fault("invalid_argument", f"{path} is on a network mount: changes made elsewhere would go unseen; allow_network_mounts watches it all the same")
    return path


async def _on_network(guest: Guest, path: str) -> bool:
    text = bytearray()
    async for piece in guest.read_file(_MOUNTS, length=_MOST_MOUNTS, user="root"):
        text += piece
    kind, at = "", ""
    for line in text.decode("utf-8", "surrogateescape").splitlines():
        row = line.split(" ")
        if len(row) < 3:
            continue
        mounted = _OCTAL.sub(lambda found: chr(int(found[1], 8)), row[1])
        if (path == mounted or path.startswith(mounted.rstrip("/") + "/")) and len(mounted) >= len(at):
            at, kind = mounted, row[2]
    return _NETWORK.match(kind) is not None


async def _told(guest: Guest, root: str, event: WatchEvent, with_entry: bool) -> list[Message]:
    """The events of the protocol that one of the guest's is: a rename within is the end of a name and a new one."""
    pairs = [(event.path, _TYPES[event.kind])]
    if event.new_path:
        pairs.append((event.new_path, _CREATE))
    return [
        FILESYSTEM["FilesystemEvent"](name=clean(path), type=kind, **(await _entry_of(guest, root, path, kind) if with_entry else {}))
        for path, kind in pairs
        if path
    ]


async def _entry_of(guest: Guest, root: str, path: str, kind: int) -> dict[str, Message]:
    """What is there now, unless it is gone."""
    if kind in (_REMOVE, _RENAME):
        return {}
    with suppress(GuestOSError):
        return {"entry": entry(await guest.stat(posixpath.join(root, path), follow=False, details=True))}
    return {}
