"""filesystem.Filesystem, but for its watches (watches.py). The guest acts as root, and what is made belongs to the user that was named."""

from __future__ import annotations

import errno
import posixpath

from torpor.api.e2b.envd.connect import Method, Methods
from torpor.api.e2b.envd.entries import entry
from torpor.api.e2b.envd.faults import Fault
from torpor.api.e2b.envd.messages import FILESYSTEM, Message
from torpor.api.e2b.envd.session import Session
from torpor.api.e2b.envd.watches import Watches
from torpor.model.errors import GuestOSError
from torpor.ports.guest import Guest


class Filesystem:
    """The service."""

    def __init__(self) -> None:
        self._watches = Watches()

    def methods(self) -> Methods:
        words = FILESYSTEM
        return {
            "Stat": Method(words["StatRequest"], unary=self.stat),
            "MakeDir": Method(words["MakeDirRequest"], unary=self.make_dir),
            "Move": Method(words["MoveRequest"], unary=self.move),
            "ListDir": Method(words["ListDirRequest"], unary=self.list_dir),
            "Remove": Method(words["RemoveRequest"], unary=self.remove),
            **self._watches.methods(),
        }

    async def stat(self, session: Session, request: Message) -> Message:
        async with session.guest("files") as guest:
            path = (await session.account(guest)).path(request.path)
            return FILESYSTEM["StatResponse"](entry=await _entry(guest, path))

    async def make_dir(self, session: Session, request: Message) -> Message:
        async with session.guest("files") as guest:
            account = await session.account(guest)
            path = account.path(request.path)
            try:
                made = await guest.make_directory(path, user="root", owner=account.name)
            except GuestOSError as error:
                if error.errno in (errno.EEXIST, errno.ENOTDIR):
                    raise Fault("invalid_argument", f"path is not a directory: {path}") from None
                raise
            if not made:
                raise Fault("already_exists", f"directory already exists: {path}")
            return FILESYSTEM["MakeDirResponse"](entry=await _entry(guest, path))

    async def move(self, session: Session, request: Message) -> Message:
        async with session.guest("files") as guest:
            account = await session.account(guest)
            source, target = account.path(request.source), account.path(request.destination)
            await guest.stat(source, follow=False)  # nothing is made for what is not there
            await guest.make_directory(posixpath.dirname(target), user="root", owner=account.name)
            await guest.move(source, target)
            return FILESYSTEM["MoveResponse"](entry=await _entry(guest, target))

    async def list_dir(self, session: Session, request: Message) -> Message:
        async with session.guest("files") as guest:
            path = (await session.account(guest)).path(request.path)
            found = await guest.list_directory(path, depth=request.depth or 1, details=True)
        found = sorted(found, key=lambda each: each.path.split("/"))  # a directory's own entries follow it
        return FILESYSTEM["ListDirResponse"](entries=[entry(each) for each in found])

    async def remove(self, session: Session, request: Message) -> Message:
        async with session.guest("files") as guest:
            path = (await session.account(guest)).path(request.path)
            if path == "/":
                raise Fault("invalid_argument", "the root cannot be removed")
            try:
                await guest.remove(path, recursive=True)
            except GuestOSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                    raise
        return FILESYSTEM["RemoveResponse"]()


async def _entry(guest: Guest, path: str) -> Message:
    found = await guest.stat(path, follow=False, details=True)
    if found.details is not None and found.details.reached is not None and found.details.reached.errno == errno.ELOOP:
        raise Fault("failed_precondition", f"the symlink leads in a circle: {path}")
    return entry(found)
