"""What agents of the first levels (wire.LEVEL) cannot do in one request, done in several: not at once, and with more events for who watches."""

from __future__ import annotations

import posixpath
import stat
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from torpor.model.errors import GuestOSError
from torpor.ports.guest import Details, FileInfo, FileKind, Guest, Reached
from torpor.wire.guest import MAX_OFFSET

if TYPE_CHECKING:
    from torpor.guestlink.guest import RemoteGuest
    from torpor.guestlink.process import RemoteProcess

_FORMATS = {FileKind.FILE: stat.S_IFREG, FileKind.DIRECTORY: stat.S_IFDIR, FileKind.SYMLINK: stat.S_IFLNK, FileKind.OTHER: 0}


async def detailed(guest: Guest, found: FileInfo) -> FileInfo:
    """With its details; a symlink's path is resolved by one step only, and attributes are the link's own."""
    reached = None
    if found.kind is FileKind.SYMLINK:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(found.path), found.target))
        try:
            there = await guest.stat(found.path)
            reached = Reached(path, _FORMATS[there.kind] | there.mode)
        except GuestOSError as error:
            reached = Reached(path, 0, error.errno)
    try:
        attributes = {name: value for name, value in (await guest.get_xattrs(found.path)).items() if name.startswith("user.")}
    except GuestOSError:
        attributes = {}
    return replace(found, details=Details(_FORMATS[found.kind] | found.mode, reached, attributes))


async def make_directory(guest: Guest, path: str, mode: int, owner: str) -> bool:
    """Each directory that is missing is made and given away by itself."""
    missing: list[str] = []
    at = posixpath.normpath(path)
    while at != "/" and not await _exists(guest, at):
        missing.append(at)
        at = posixpath.dirname(at)
    made = await guest.make_directory(path, mode=mode, user="root")
    for each in reversed(missing):
        await guest.chown(each, owner)
    return made


async def rewrite_file(guest: Guest, path: str, source: AsyncIterator[bytes] | bytes, owner: str, attributes: Mapping[str, bytes], replaced: str) -> FileInfo:
    """A new file that takes the old one's place."""
    await make_directory(guest, posixpath.dirname(path), 0o755, owner)
    await guest.write_file(path, source, user="root")
    await guest.chown(path, owner)
    if replaced:
        for name in await guest.get_xattrs(path):
            if name.startswith(replaced):
                await guest.set_xattr(path, name, None)
    for name, value in attributes.items():
        await guest.set_xattr(path, name, value)
    return await guest.stat(path)


async def attach(guest: RemoteGuest, exec_id: str, stdout_offset: int, stderr_offset: int) -> RemoteProcess:
    """What there is ends where an attachment behind everything begins. What a command says between the two may push out of a full ring what others, who
    follow it slowly, have not taken: they are told that it is lost."""
    behind = await guest.attach(exec_id, stdout_offset=MAX_OFFSET - 1, stderr_offset=MAX_OFFSET - 1)
    process = await guest.attach(exec_id, stdout_offset=stdout_offset, stderr_offset=stderr_offset)
    process.end_held_at(behind.starts)
    return process


async def _exists(guest: Guest, path: str) -> bool:
    try:
        await guest.stat(path, follow=False)
    except GuestOSError:
        return False
    return True
