"""Files of a sandbox: whole or in streams of flat memory, listed, arranged, watched; directories both ways. Paths are absolute, or begin at the default user's
home, as does `~`."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any, Self, cast

from torpor.client.answers import FileChange, FileState, read, read_list
from torpor.client.commands import threaded
from torpor.client.errors import ApiError, BadAnswer, Conflict, ConnectionLost
from torpor.client.events import QUIET_SECONDS as EVENT_SECONDS
from torpor.client.events import Sent, events_of
from torpor.client.safewrite import new_file
from torpor.client.transport import QUIET_SECONDS, Http, segment, translated
from torpor.client.trees import Left, OnBytes, get_tree, put_tree, tell

PIECE = 256 << 10
Bytes = bytes | str | Iterable[bytes] | AsyncIterable[bytes]


class AsyncFiles:
    """The files of one sandbox."""

    def __init__(self, http: Http, sandbox_id: str) -> None:
        self._http = http
        self._sandbox_id = sandbox_id
        self._path = f"/v1/capsules/{segment(sandbox_id)}/files"

    # Bytes

    async def read(self, path: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """A file's bytes, or `length` of them from `offset` on; nothing when it ends before. Raises NotFound, InvalidRequest for a directory."""
        return b"".join([piece async for piece in self.read_stream(path, offset=offset, length=length)])

    async def read_text(self, path: str) -> str:
        """Raises UnicodeDecodeError for what is no UTF-8, and what `read` raises."""
        return (await self.read(path)).decode()

    async def read_stream(self, path: str, *, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """The same in pieces, of any size. When the connection breaks it raises ConnectionLost: a part is never taken for the whole."""
        if length == 0:
            return
        headers = {}
        if offset or length is not None:
            headers["Range"] = f"bytes={offset}-{'' if length is None else offset + length - 1}"
        headers["Accept-Encoding"] = "identity"
        try:
            async with self._http.streamed("GET", f"{self._path}/content", params={"path": path}, headers=headers, quiet=QUIET_SECONDS) as response:
                expected, got = response.headers.get("content-length"), 0
                if "Range" in headers and response.status_code != 206:
                    expected, skip, most = None, offset, length
                else:
                    skip, most = 0, None
                with translated():
                    async for piece in response.aiter_bytes(PIECE):
                        got += len(piece)
                        if skip or most is not None:  # one of /proc, whose length nobody knows: it comes whole
                            piece, skip = piece[skip:], max(0, skip - len(piece))
                            piece = piece if most is None else piece[:most]
                            most = None if most is None else most - len(piece)
                        if piece:
                            yield piece
                        if most == 0:
                            return
                if expected is not None and expected.isdigit() and int(expected) != got:
                    raise ConnectionLost(f"The connection broke after {got} bytes of {expected}.")
        except ApiError as error:
            if error.status != 416:
                raise

    async def write(self, path: str, data: Bytes, *, mode: int | None = None, user: str | None = None) -> None:
        """Writes a file, making its parents; what stood there is replaced in one step, and stays if this fails. `data` may be pieces as they come, of any size.
        `mode` and `user` of a new file: 0o644 and the template's user unless given. Bytes are sent again when that is safe; pieces are not."""
        if isinstance(data, (bytes, str)):
            await self._again(path, data.encode() if isinstance(data, str) else data, mode, user)
        else:
            await self._send(path, _pieces(data), mode, user)

    async def _again(self, path: str, data: bytes, mode: int | None, user: str | None) -> None:
        try:
            await self._send(path, _cut(data), mode, user)
        except ConnectionLost:  # the same bytes to the same place: twice is once
            await self._send(path, _cut(data), mode, user)

    async def _send(self, path: str, pieces: AsyncIterator[bytes], mode: int | None, user: str | None) -> None:
        boundary = secrets.token_hex(16)
        fields = [(name, value) for name, value in (("mode", None if mode is None else f"{mode:04o}"), ("user", user)) if value is not None]
        head = "".join(f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields)
        head += f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="file"\r\nContent-Type: application/octet-stream\r\n\r\n'

        async def body() -> AsyncIterator[bytes]:
            yield head.encode()
            async for piece in pieces:
                yield piece
            yield f"\r\n--{boundary}--\r\n".encode()

        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        await self._http.upload(f"{self._path}/stream/write", body(), params={"path": path}, headers=headers)

    # Between here and there

    async def download(self, path: str, to: str | os.PathLike[str], *, on_bytes: OnBytes | None = None) -> None:
        """A file to a file here, which is there complete or not at all. Raises OSError for what happens here."""
        with new_file(Path(to)) as file:
            done = 0
            async with aclosing(cast("Any", self.read_stream(path))) as pieces:
                async for piece in pieces:
                    await asyncio.to_thread(file.write, piece)
                    done += len(piece)
                    await tell(on_bytes, done)

    async def upload(
        self, source: str | os.PathLike[str], path: str, *, mode: int | None = None, user: str | None = None, on_bytes: OnBytes | None = None
    ) -> None:
        """A file of this machine to `path`. Its permission bits go with it unless `mode` says others. Raises OSError for what happens here."""
        with open(source, "rb") as file:
            bits = os.fstat(file.fileno()).st_mode & 0o777 if mode is None else mode

            async def pieces() -> AsyncIterator[bytes]:
                done = 0
                while piece := await asyncio.to_thread(file.read, PIECE):
                    yield piece
                    done += len(piece)
                    await tell(on_bytes, done)

            await self._send(path, pieces(), bits, user)

    async def download_directory(self, path: str, to: str | os.PathLike[str], *, on_bytes: OnBytes | None = None) -> list[Left]:
        """What is in a directory into a directory here, which is made if need be: files, directories, links, permission bits and times. Nothing is ever written
        outside of `to`, whatever the sandbox sends. Returns what was left out: links that lead out of it, devices, and the like. Needs `tar` in the sandbox."""
        return await get_tree(self._http, self._sandbox_id, path, Path(to), on_bytes)

    async def upload_directory(self, source: str | os.PathLike[str], path: str, *, user: str | None = None, on_bytes: OnBytes | None = None) -> None:
        """What is in a directory here into a directory of the sandbox, which is made if need be. Files are owned by `user`, else the template's. Needs `tar` in
        the sandbox."""
        await put_tree(self._http, self._sandbox_id, Path(source), path, user, on_bytes)

    # Looking and arranging

    async def _ask(self, what: str, **body: Any) -> Any:
        given = {name: value for name, value in body.items() if value is not None}
        reading = what in ("list", "stat")
        answer = await self._http.ask("POST", f"{self._path}/{what}", json=given, repeatable=reading)
        return answer.tree() if answer.body else None

    async def list(self, path: str, *, depth: int = 1) -> list[FileState]:
        """A directory's entries down to `depth` levels (at most 64). Raises NotFound, InvalidRequest for what is no directory."""
        tree = await self._ask("list", path=path, depth=depth)
        if not isinstance(tree, dict):
            raise BadAnswer("The server sent no list of files.")
        return read_list(FileState, tree.get("entries"))

    async def stat(self, path: str) -> FileState:
        """One file, directory or link (not what it points to). Raises NotFound."""
        return _entry(await self._ask("stat", path=path))

    async def exists(self, path: str) -> bool:
        """A link that leads nowhere exists, too."""
        try:
            await self.stat(path)
        except ApiError as error:
            if error.status == 404 and error.reason == "guest_os_error":
                return False
            raise
        return True

    async def mkdir(self, path: str, *, mode: int | None = None, user: str | None = None, exist_ok: bool = False) -> None:
        """Makes a directory and its parents. Raises Conflict when it is there unless `exist_ok`, InvalidRequest when something else is."""
        try:
            await self._ask("mkdir", path=path, mode=mode, user=user)
        except Conflict:
            if not exist_ok:
                raise

    async def move(self, source: str, target: str) -> FileState:
        """Renames, as rename(2) does: a file at `target` is replaced; across file systems by copying."""
        return _entry(await self._ask("move", source=source, target=target))

    async def remove(self, path: str) -> None:
        """Removes a file, or a directory with all that is in it. Raises NotFound."""
        await self._ask("remove", path=path)

    async def watch(self, path: str, *, recursive: bool = False) -> AsyncWatch:
        """Changes below a directory: from when this returns, none is missed. Raises NotFound, InvalidRequest for what is no directory."""
        params = {"path": path, "recursive": "true" if recursive else "false"}
        async with AsyncExitStack() as stack:
            stream = self._http.streamed("GET", f"{self._path}/watch", params=params, quiet=EVENT_SECONDS)
            events = events_of(await stack.enter_async_context(stream))
            await stack.enter_async_context(aclosing(cast("Any", events)))
            first = await anext(events, None)
            if first is None or first.event != "ready":
                raise ConnectionLost("The watch broke off before it stood.")
            return AsyncWatch(events, stack.pop_all())
        raise AssertionError("the block above returns or raises")


class AsyncWatch:
    """A directory that is watched, until `close` or the end of its context."""

    def __init__(self, events: AsyncIterator[Sent], stack: AsyncExitStack) -> None:
        self._events = events
        self._stack = stack

    async def changes(self) -> AsyncIterator[FileChange]:
        """As they happen. Ends when the directory is gone. Raises ConnectionLost when the connection breaks or the server stops: some may have been missed."""
        async for sent in self._events:
            if sent.event == "end":
                return
            if sent.event == "error":
                raise ConnectionLost(f"The watch ended: {str(sent.tree().get('error'))[:500]}")
            yield read(FileChange, sent.tree())
        raise ConnectionLost("The watch broke off; changes may have been missed.")

    async def close(self) -> None:
        await self._stack.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _entry(tree: object) -> FileState:
    return read(FileState, tree.get("entry") if isinstance(tree, dict) else None)


async def _cut(data: bytes) -> AsyncIterator[bytes]:
    view = memoryview(data)
    for at in range(0, len(view), PIECE):
        yield bytes(view[at : at + PIECE])


async def _pieces(data: Iterable[bytes] | AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    if isinstance(data, AsyncIterable):
        async for piece in data:
            yield piece
        return
    async for piece in threaded(data):
        yield piece
