"""Writing files here that come from a sandbox, which may be hostile: complete or not at all, and never outside of the place they were meant for.

A `Place` is a directory. Every name below it is walked one directory at a time, each opened relative to the one above and never through a link, so that neither
`..` nor a link that was put there a moment before leads out.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Self

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def new_file(to: Path) -> Iterator[BinaryIO]:
    """A file under another name beside `to`, which it replaces at the end of the block unless that raises. What is no regular file (a device, a pipe) is
    written to as it is. Raises OSError."""
    path = Path(os.path.realpath(to))
    try:
        before = path.stat()
    except FileNotFoundError:
        before = None
    if before is not None and stat.S_ISDIR(before.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(to))
    if before is not None and not stat.S_ISREG(before.st_mode):
        with path.open("wb", buffering=0) as file:
            yield file
        return
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, _NEW, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if before is not None:
                os.fchmod(file.fileno(), stat.S_IMODE(before.st_mode))
            yield file
        temporary.replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise


def parts_of(name: str) -> list[str] | None:
    """The names in a relative path; None for one that is absolute, climbs, or holds a NUL."""
    if name.startswith("/") or "\0" in name:
        return None
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return None if ".." in parts else parts


def stays(depth: int, target: str) -> bool:
    """Whether a link `depth` directories below the place leads to something in it, whatever other such links there are: it climbs only at its beginning, and
    no higher than the place. A `..` behind a name is refused: the name may be a link to a directory higher up."""
    if not target or target.startswith("/") or "\0" in target:
        return False
    parts = [part for part in target.split("/") if part not in ("", ".")]
    climbs = next((index for index, part in enumerate(parts) if part != ".."), len(parts))
    return climbs <= depth and ".." not in parts[climbs:]


class Place:
    """A directory that is there; a context. Its methods take names as `parts_of` gives them and raise OSError."""

    def __init__(self, path: Path) -> None:
        self._root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._root)

    @contextmanager
    def _directory(self, parts: Sequence[str]) -> Iterator[int]:
        """The directory with these names, made as far as it is missing. ELOOP or ENOTDIR when one of them is a link or a file."""
        descriptor = os.dup(self._root)
        try:
            for part in parts:
                with suppress(FileExistsError):
                    os.mkdir(part, 0o777, dir_fd=descriptor)
                below = os.open(part, _DIRECTORY, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = below
            yield descriptor
        finally:
            os.close(descriptor)

    def directory(self, parts: Sequence[str]) -> None:
        with self._directory(parts):
            pass

    def finish_directory(self, parts: Sequence[str], mode: int, modified: float) -> None:
        with self._directory(parts) as descriptor:
            os.fchmod(descriptor, mode)
            os.utime(descriptor, (modified, modified))

    @contextmanager
    def file(self, parts: Sequence[str], mode: int, modified: float) -> Iterator[BinaryIO]:
        """A new file, in its place once the block has ended without an error. It replaces a file or a link of that name."""
        with self._directory(parts[:-1]) as directory:
            temporary = f".{secrets.token_hex(8)}"
            descriptor = os.open(temporary, _NEW, 0o600, dir_fd=directory)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    yield file
                    file.flush()
                    os.fchmod(file.fileno(), mode)
                    os.utime(file.fileno(), (modified, modified))
                os.replace(temporary, parts[-1], src_dir_fd=directory, dst_dir_fd=directory)
            except BaseException:
                os.unlink(temporary, dir_fd=directory)
                raise

    def symlink(self, parts: Sequence[str], target: str) -> None:
        """Replaces a file or a link of that name."""
        with self._directory(parts[:-1]) as directory:
            temporary = f".{secrets.token_hex(8)}"
            os.symlink(target, temporary, dir_fd=directory)
            self._into_place(directory, temporary, parts[-1])

    def link(self, parts: Sequence[str], other: Sequence[str]) -> None:
        """A second name of `other`, which must be there."""
        with self._directory(parts[:-1]) as directory, self._directory(other[:-1]) as source:
            temporary = f".{secrets.token_hex(8)}"
            os.link(other[-1], temporary, src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False)
            self._into_place(directory, temporary, parts[-1])

    @staticmethod
    def _into_place(directory: int, temporary: str, name: str) -> None:
        try:
            os.replace(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            os.unlink(temporary, dir_fd=directory)
            raise
        with suppress(FileNotFoundError):  # rename(2) of two names of one file leaves both
            os.unlink(temporary, dir_fd=directory)
