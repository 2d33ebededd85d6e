"""From the tar of a bootstrapped tree to staged files and a list of entries, as any user. Device nodes are left out: guests mount devtmpfs."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

from torpor.images.ext4 import Entry, Kind
from torpor.model.errors import Corrupt, HostError


class Staging:
    """A directory of numbered files, one per file of the image. Not for use by several threads at once."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._count = 0
        directory.mkdir()

    def file(self, content: bytes) -> Path:
        """Stages bytes of our own."""
        path = self._next()
        path.write_bytes(content)
        return path

    def unpack(self, archive: Path, keep: Callable[[str, bool], bool], step: Callable[[float], None]) -> list[Entry]:
        """Stages what `keep` wants (called with the absolute path and whether it is a directory) of a tar file; reports the fraction done through
        `step`, which may raise to stop.
        Raises Corrupt for what no bootstrap produces, HostError for an extended attribute, which entries do not carry."""
        entries: list[Entry] = []
        total = archive.stat().st_size
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                step(min(1.0, member.offset_data / total))
                path = _absolute(member.name)
                if path == "/" or not keep(path, member.isdir()):
                    continue
                if attribute := next((key for key in member.pax_headers if key.startswith("SCHILY.xattr.")), None):
                    raise HostError(f"{path} has the extended attribute {attribute.removeprefix('SCHILY.xattr.')}, which images do not carry.")
                if entry := self._entry(tar, member, path):
                    entries.append(entry)
        return entries

    def _entry(self, tar: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> Entry | None:
        mode, uid, gid, mtime = member.mode & 0o7777, member.uid, member.gid, int(member.mtime)
        if member.isdir():
            return Entry(path, Kind.DIR, mode, uid, gid, mtime)
        if member.issym():
            return Entry(path, Kind.SYMLINK, 0o777, uid, gid, mtime, target=member.linkname)
        if member.islnk():
            return Entry(path, Kind.LINK, target=_absolute(member.linkname))
        content = tar.extractfile(member) if member.isreg() else None
        if content is None:
            return None
        staged = self._next()
        with content, staged.open("xb") as file:
            shutil.copyfileobj(content, file, 1 << 20)
        return Entry(path, Kind.FILE, mode, uid, gid, mtime, source=staged)

    def _next(self) -> Path:
        self._count += 1
        return self._directory / f"{self._count:06}"


def _absolute(name: str) -> str:
    path = os.path.normpath("/" + name)
    if ".." in name.split("/") or path.startswith("//"):
        raise Corrupt(f"The archive names {name!r}.")
    return path


def content(entries: list[Entry], path: str) -> bytes:
    """The bytes of the FILE at `path`, symbolic links and other names followed within the entries. Raises HostError when it is not there."""
    by_path = {entry.path: entry for entry in entries}
    for _ in range(10):
        entry = by_path.get(resolve(by_path, path))
        if entry is None:
            break
        if entry.kind is Kind.FILE and entry.source is not None:
            return entry.source.read_bytes()
        path = os.path.normpath(os.path.join(os.path.dirname(entry.path), entry.target))
    raise HostError(f"The packages have no {path}.")


def resolve(by_path: dict[str, Entry], path: str) -> str:
    """`path` with the links among its parent directories followed, as in merged-/usr trees where /lib is a link to usr/lib."""
    done = "/"
    for part in path.strip("/").split("/")[:-1]:
        done = os.path.join(done, part)
        entry = by_path.get(done)
        if entry is not None and entry.kind is Kind.SYMLINK:
            done = os.path.normpath(os.path.join(os.path.dirname(done), entry.target))
    return os.path.join(done, os.path.basename(path))
