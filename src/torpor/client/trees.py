"""Directories between a sandbox and here: `tar` there, Python's reading and writing of its format here, nothing kept in memory or in a file between.

The sandbox may be hostile: of what its tar says only names, kinds, permission bits and times are taken, and `Place` writes them.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import tarfile
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self, cast

from torpor.client.answers import FileState, Result, read
from torpor.client.commands import AsyncCommands, AsyncProcess
from torpor.client.errors import ClientError, CommandFailed, Conflict, InvalidRequest, NotFound, OutputLost, UnsafeArchive
from torpor.client.safewrite import Place, parts_of, stays
from torpor.client.transport import Http, segment

PIECE = 64 << 10
MOST_HEADER = 1 << 20
"""Bytes of a header that stands for a long name: more would be kept in memory."""
CHANGED = 1
"""GNU tar's exit code when a file changed while it was read."""

OnBytes = Callable[[int], Awaitable[None] | None]
"""Told how many bytes have come or gone so far."""


@dataclass(frozen=True, slots=True)
class Left:
    """Something that was not copied, and why."""

    name: str
    reason: str


async def tell(function: OnBytes | None, count: int) -> None:
    if function is not None:
        told = function(count)
        if inspect.isawaitable(told):
            await told


# From the sandbox


async def get_tree(http: Http, sandbox_id: str, path: str, to: Path, on_bytes: OnBytes | None) -> list[Left]:
    """See AsyncFiles.download_directory."""
    await _demand_directory(http, sandbox_id, path)
    await asyncio.to_thread(to.mkdir, parents=True, exist_ok=True)
    process = await _tar(http, sandbox_id, path, "-cf", None)
    reader, writer = os.pipe()
    unpacking = asyncio.create_task(asyncio.to_thread(unpack, os.fdopen(reader, "rb"), to))
    async with process:
        try:
            said = await _pour(process, writer, on_bytes)
        finally:
            os.close(writer)
            await asyncio.wait([unpacking])
        left = unpacking.result()  # if that failed, it is the cause of whatever tar did
        result = await process.wait()
    if result.exit_code not in (0, CHANGED):
        raise CommandFailed(f"tar ended with {result.exit_code} in the sandbox: {said.decode(errors='replace').strip()[-500:]}", result)
    return [*left, *([Left(path, "some files changed while they were read")] if result.exit_code == CHANGED else [])]


async def _pour(process: AsyncProcess, writer: int, on_bytes: OnBytes | None) -> bytes:
    """Its stdout into the pipe, as long as somebody reads that. What it said on stderr."""
    said, done = bytearray(), 0
    async with aclosing(cast("Any", process.output())) as pieces:
        async for piece in pieces:
            if piece.stream == "stderr":
                said = (said + piece.data)[-PIECE:]
                continue
            if piece.lost:
                raise OutputLost(f"{piece.lost} bytes were lost while the server was away: begin again.")
            try:
                await asyncio.to_thread(_write_all, writer, piece.data)
            except BrokenPipeError:
                await process.kill()
                break
            done += len(piece.data)
            await tell(on_bytes, done)
    return bytes(said)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


class _Member(tarfile.TarInfo):
    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buf, encoding, errors)
        if member.type not in (*tarfile.REGULAR_TYPES, tarfile.GNUTYPE_SPARSE) and member.size > MOST_HEADER:
            raise UnsafeArchive("The sandbox sent a name of more than 1 MiB.")
        return member


def unpack(stream: BinaryIO, to: Path) -> list[Left]:
    """What a tar stream holds, below `to`. Returns what was left out. Raises UnsafeArchive for what is no whole tar stream, OSError."""
    left: list[Left] = []
    with stream, Place(to) as place:
        try:
            with tarfile.open(fileobj=stream, mode="r|", bufsize=PIECE, tarinfo=_Member) as archive:
                _Unpacking(place, archive, left).run()
            while stream.read(PIECE):  # so that tar ends by itself
                pass
        except (tarfile.TarError, EOFError, ValueError) as error:
            raise UnsafeArchive(f"What the sandbox sent is no whole tar stream: {error}.") from None
    return left


class _Unpacking:
    def __init__(self, place: Place, archive: tarfile.TarFile, left: list[Left]) -> None:
        self._place = place
        self._archive = archive
        self._left = left
        self._files: set[tuple[str, ...]] = set()
        self._directories: dict[tuple[str, ...], tuple[int, float]] = {}

    def run(self) -> None:
        for member in self._archive:
            self._archive.members = []  # type: ignore[attr-defined]  # it would keep them all
            problem = self._take(member)
            if problem:
                self._left.append(Left(member.name, problem))
        for parts, (mode, modified) in sorted(self._directories.items(), reverse=True):
            self._place.finish_directory(parts, mode, modified)

    def _take(self, member: tarfile.TarInfo) -> str:
        """'' or why it was left out."""
        parts, mode, modified = parts_of(member.name), member.mode & 0o777, float(member.mtime)
        if parts is None:
            return "its name leads out of the directory"
        if member.isdir():
            self._place.directory(parts)
            if parts:
                self._directories[tuple(parts)] = (mode | 0o700, modified)
            return ""
        if not parts:
            return "it has no name"
        if member.issparse():
            return "it is a sparse file of tar's own kind"
        if member.isreg():
            self._file(member, parts, mode, modified)
            return ""
        if member.issym():
            if not stays(len(parts) - 1, member.linkname):
                return f"it is a link that leads out of the directory, to {member.linkname}"
            self._files.discard(tuple(parts))
            self._place.symlink(parts, member.linkname)
            return ""
        if member.islnk():
            other = parts_of(member.linkname)
            if other is None or tuple(other) not in self._files:
                return f"it is a second name of {member.linkname}, which was not copied"
            self._place.link(parts, other)
            self._files.add(tuple(parts))
            return ""
        return "it is neither file, directory nor link"

    def _file(self, member: tarfile.TarInfo, parts: list[str], mode: int, modified: float) -> None:
        source = self._archive.extractfile(member)
        assert source is not None
        with self._place.file(parts, mode, modified) as file:
            rest = member.size
            while rest:
                piece = source.read(min(rest, PIECE))
                if not piece:
                    raise UnsafeArchive(f"What the sandbox sent ends in the middle of {member.name}.")
                file.write(piece)
                rest -= len(piece)
        self._files.add(tuple(parts))


# To the sandbox


async def put_tree(http: Http, sandbox_id: str, source: Path, path: str, user: str | None, on_bytes: OnBytes | None) -> None:
    """See AsyncFiles.upload_directory."""
    if not source.is_dir():
        raise NotADirectoryError(20, "Not a directory", str(source))
    await _make(http, sandbox_id, path, user)
    process = await _tar(http, sandbox_id, path, "-xpof", user)
    reader, writer = os.pipe()
    packing = asyncio.create_task(asyncio.to_thread(_pack, source, writer))
    async with process:
        ending = asyncio.create_task(process.wait())
        try:
            await _draw(process, reader, packing, on_bytes)
            packing.result()  # before the end of file, or a tree that could not be read would look whole
            await process.close_stdin()
            result = await ending
        except BaseException:
            await asyncio.gather(asyncio.shield(process.kill()), return_exceptions=True)
            raise
        finally:
            ending.cancel()
            await asyncio.gather(ending, return_exceptions=True)
    _check(result)


async def _draw(process: AsyncProcess, reader: int, packing: asyncio.Task[None], on_bytes: OnBytes | None) -> None:
    """The pipe into its stdin. When this ends, so has the packing: nothing of it is left behind."""
    done = 0
    try:
        while piece := await _read(reader):
            await process.write(piece)
            done += len(piece)
            await tell(on_bytes, done)
    finally:
        os.close(reader)
        await asyncio.wait([packing])


async def _read(descriptor: int) -> bytes:
    """Not left alone when cancelled: the descriptor must not be closed under the thread that reads it."""
    reading = asyncio.ensure_future(asyncio.to_thread(os.read, descriptor, PIECE))
    try:
        return await asyncio.shield(reading)
    except asyncio.CancelledError:
        await asyncio.wait([reading])
        raise


def _pack(source: Path, writer: int) -> None:
    with os.fdopen(writer, "wb") as stream:
        try:
            with tarfile.open(fileobj=stream, mode="w|", bufsize=PIECE, format=tarfile.PAX_FORMAT) as archive:
                archive.add(source, arcname=".", filter=_neutral)
        except BrokenPipeError:
            pass  # who reads it has the reason


def _neutral(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Owners are of this machine, devices stay here."""
    if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
        return None
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def _check(result: Result) -> None:
    if result.exit_code != 0:
        raise CommandFailed(f"tar ended with {result.exit_code} in the sandbox: {result.stderr.strip()[-500:]}", result)


# Both


async def _tar(http: Http, sandbox_id: str, path: str, flags: str, user: str | None) -> AsyncProcess:
    words = ["tar", flags, "-", "."] if flags.startswith("-c") else ["tar", flags, "-"]
    try:
        return await AsyncCommands(http, sandbox_id).start(words, cwd=path, user=user, stdin=flags.startswith("-x"))
    except NotFound as error:
        if error.reason == "guest_os_error":
            raise ClientError("The sandbox has no tar, which copies directories.", mend="Install it there, or copy file by file.") from None
        raise


async def _demand_directory(http: Http, sandbox_id: str, path: str) -> None:
    answer = await http.ask("POST", f"/v1/capsules/{segment(sandbox_id)}/files/stat", json={"path": path.rstrip("/") + "/."}, repeatable=True)
    tree = answer.tree()
    if read(FileState, tree.get("entry") if isinstance(tree, dict) else None).kind != "directory":
        raise InvalidRequest(f"{path} is no directory.", status=400)


async def _make(http: Http, sandbox_id: str, path: str, user: str | None) -> None:
    body = {"path": path} | ({"user": user} if user else {})
    try:
        await http.ask("POST", f"/v1/capsules/{segment(sandbox_id)}/files/mkdir", json=body)
    except Conflict:
        pass
