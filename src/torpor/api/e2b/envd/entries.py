"""Files as the filesystem service shows them."""

from __future__ import annotations

import posixpath
import stat

from torpor.api.e2b.envd.messages import FILESYSTEM, Message
from torpor.api.errors import clean
from torpor.ports.guest import FileInfo

METADATA = "user.e2b."
"""What the names of the extended attributes begin with that are a file's metadata."""
_KINDS = {
    stat.S_IFDIR: "d",
    stat.S_IFLNK: "L",
    stat.S_IFBLK: "D",
    stat.S_IFCHR: "Dc",
    stat.S_IFIFO: "p",
    stat.S_IFSOCK: "S",
}
_SPECIAL = ((stat.S_ISUID, "u"), (stat.S_ISGID, "g"), (stat.S_ISVTX, "t"))
_FILE, _DIRECTORY = 1, 2


def entry(info: FileInfo) -> Message:
    """`info` with its details. Of a symlink, type and mode are those of what it leads to; the rest is its own."""
    details = info.details
    assert details is not None
    raw = details.raw_mode if details.reached is None else details.reached.raw_mode
    modified = round(info.modified * 1e6)
    found = FILESYSTEM["EntryInfo"](
        name=clean(posixpath.basename(info.path) or "/"),
        type=_type(raw),
        path=clean(info.path),
        size=info.size,
        mode=raw & 0o777,
        permissions=permissions(details.raw_mode),
        owner=clean(info.user),
        group=clean(info.group),
        metadata=metadata(info),
    )
    found.modified_time.seconds, found.modified_time.nanos = modified // 10**6, modified % 10**6 * 1000
    if details.reached is not None:
        found.symlink_target = clean(details.reached.path)
        found.is_symlink = True
    return found


def metadata(info: FileInfo) -> dict[str, str]:
    assert info.details is not None
    return {
        clean(name.removeprefix(METADATA)): value.decode("utf-8", "replace") for name, value in info.details.attributes.items() if name.startswith(METADATA)
    }


def permissions(raw: int) -> str:
    """As Go's fs.FileMode says it, which this protocol's first server was written with: `-rw-r--r--`, `drwxr-xr-x`, `Lrwxrwxrwx`, `dtrwxrwxrwx`."""
    letters = _KINDS.get(stat.S_IFMT(raw), "") + "".join(letter for bit, letter in _SPECIAL if raw & bit)
    return (letters or "-") + stat.filemode(raw & 0o777)[1:]


def _type(raw: int) -> int:
    return _DIRECTORY if stat.S_ISDIR(raw) else _FILE if stat.S_ISREG(raw) else 0
