"""Files of a sandbox: streamed both ways, listed, made, moved, removed, watched. Paths are absolute, or begin at the default user's home."""

from __future__ import annotations

import asyncio
import base64
import json
import posixpath
import re
import stat as modes
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing
from typing import Annotated, Any, cast

from fastapi import Depends, Query
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from torpor.api.auth import Needs
from torpor.api.errors import body_of, clean
from torpor.api.middleware import request_id_of
from torpor.api.native.common import CapsuleId, FileReader, FileWriter, Given, Inside, router
from torpor.api.native.ids import Prefix, inner
from torpor.api.native.models import Entries, Entry, Listing, MakeDirectory, Move, OnPath, Path
from torpor.api.native.multipart import Upload
from torpor.api.native.paths import absolute
from torpor.api.native.sse import EVENT_STREAM, Server, sse
from torpor.api.ranges import Unsatisfiable, part_of
from torpor.api.services import Services
from torpor.api.streaming import Streamed
from torpor.model.errors import Conflict, GuestLost, InvalidInput, TorporError
from torpor.ports.guest import FileInfo, FileKind, Guest, WatchEvent
from torpor.service.caller import Caller

files = router("files", kind=Inside)

WRITE_LIMIT = 100 << 20
"""Bytes of a body of files/write; files/stream/write has no limit."""
_OCTETS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The bytes.", "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}},
    206: {"description": "The part that Range asked for.", "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}},
    416: {"description": "The file has no such part."},
}
_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"path": {"type": "string"}, "file": {"type": "string", "format": "binary"}},
                    "required": ["file"],
                }
            }
        },
    }
}
InQuery = Annotated[Path, Query()]


def entry(info: FileInfo) -> dict[str, Any]:
    """The JSON of a file."""
    tree: dict[str, Any] = {
        "name": clean(posixpath.basename(info.path) or "/"),
        "path": clean(info.path),
        "type": "file" if info.kind is FileKind.OTHER else info.kind.value,
        "kind": info.kind.value,
        "size": info.size,
        "mode": info.mode,
        "permissions": {FileKind.DIRECTORY: "d", FileKind.SYMLINK: "L"}.get(info.kind, "-") + modes.filemode(info.mode)[1:],
        "owner": clean(info.user),
        "group": clean(info.group),
        "modified_at": int(info.modified),
    }
    if info.kind is FileKind.SYMLINK:
        tree["symlink_target"] = clean(info.target)
    if tree["path"] != info.path:
        tree["raw_path"] = base64.b64encode(info.path.encode("utf-8", "surrogateescape")).decode()
    return tree


# Reading


async def _download(request: Request, services: Services, caller: Caller, capsule_id: str, path: str) -> Response:
    """The sandbox is in use until the last byte has gone. The first piece is read before the answer begins, so that errors are typed; a later one breaks the
    connection, for a truncated file must not look whole."""
    async with AsyncExitStack() as stack:
        guest = await stack.enter_async_context(services.sandboxes.use(caller, inner(Prefix.SANDBOX, capsule_id), "read"))
        target = absolute(path, guest.default_home)
        info = await guest.stat(target)
        try:
            part = part_of(request.headers.get("range"), info.size)
        except Unsatisfiable:
            return Response(status_code=416, headers={"Content-Range": f"bytes */{info.size}"})
        length = part.end - part.first if info.size else None  # size 0: perhaps one of /proc, whose length only reading tells
        pieces = guest.read_file(target, offset=part.first, length=length)
        head = await anext(pieces, b"")
        headers = {"Accept-Ranges": "bytes"}
        if length is not None:
            headers["Content-Length"] = str(length)
        if not part.whole:
            headers["Content-Range"] = f"bytes {part.first}-{part.end - 1}/{info.size}"
        body = _body(head, pieces, length, stack.pop_all())
        return Streamed(body, 200 if part.whole else 206, headers, "application/octet-stream")


async def _body(head: bytes, pieces: AsyncIterator[bytes], length: int | None, stack: AsyncExitStack) -> AsyncGenerator[bytes, None]:
    async with stack, aclosing(cast("AsyncGenerator[bytes, None]", pieces)):
        sent = 0
        while head:
            sent += len(head)
            yield head
            head = await anext(pieces, b"")
        if length is not None and sent != length:
            raise GuestLost(f"The file became shorter while it was read: {sent} bytes of {length}.")


@files.post("/capsules/{capsule_id}/files/read", response_class=Response, responses=_OCTETS)
async def read(request: Request, capsule_id: CapsuleId, body: OnPath, caller: FileReader, services: Given) -> Response:
    """A file's bytes, streamed; `Range` asks for a part."""
    return await _download(request, services, caller, capsule_id, body.path)


@files.post("/capsules/{capsule_id}/files/stream/read", response_class=Response, responses=_OCTETS)
async def stream_read(request: Request, capsule_id: CapsuleId, body: OnPath, caller: FileReader, services: Given) -> Response:
    """The same as files/read."""
    return await _download(request, services, caller, capsule_id, body.path)


@files.get("/capsules/{capsule_id}/files/content", response_class=Response, responses=_OCTETS)
async def content(
    request: Request, capsule_id: CapsuleId, path: InQuery, caller: Annotated[Caller, Depends(Needs("files:read", ticket=True))], services: Given
) -> Response:
    """The same by GET, for links and for tools that resume downloads."""
    return await _download(request, services, caller, capsule_id, path)


# Writing


async def _upload(request: Request, services: Services, caller: Caller, capsule_id: str, path: str) -> Response:
    upload = Upload(request, path)
    try:
        async with services.sandboxes.use(caller, inner(Prefix.SANDBOX, capsule_id), "write") as guest:
            target = absolute(await upload.begin(), guest.default_home)
            await guest.write_file(target, upload.source(), mode=_mode(upload.fields.get("mode")), user=upload.fields.get("user", ""))
    finally:
        upload.close()
    return Response(status_code=204)


def _mode(text: str | None) -> int | None:
    """Raises InvalidInput."""
    if text is None:
        return None
    if not re.match(r"0?[0-7]{3,4}\Z", text):
        raise InvalidInput("mode must be three or four octal digits.")
    return int(text, 8)


Where = Annotated[str, Query(max_length=4096, description="The path, instead of a part of the form.")]


@files.post("/capsules/{capsule_id}/files/write", status_code=204, response_class=Response, openapi_extra=_FORM)
async def write(request: Request, capsule_id: CapsuleId, caller: FileWriter, services: Given, path: Where = "") -> Response:
    """Writes a file of up to 100 MiB; parents are made, and it is replaced in one step. Parts `mode` (octal) and `user` may come before `file`."""
    return await _upload(request, services, caller, capsule_id, path)


@files.post("/capsules/{capsule_id}/files/stream/write", status_code=204, response_class=Response, openapi_extra=_FORM)
async def stream_write(request: Request, capsule_id: CapsuleId, caller: FileWriter, services: Given, path: Where = "") -> Response:
    """The same as files/write for files of any size."""
    return await _upload(request, services, caller, capsule_id, path)


# Looking and arranging


@files.post("/capsules/{capsule_id}/files/list", response_model=Entries)
async def list_(capsule_id: CapsuleId, body: Listing, caller: FileReader, services: Given) -> Response:
    """A directory's entries down to `depth` levels."""
    async with services.sandboxes.use(caller, inner(Prefix.SANDBOX, capsule_id), "list") as guest:
        found = await guest.list_directory(absolute(body.path, guest.default_home), depth=max(1, body.depth))
    return JSONResponse({"entries": [entry(info) for info in found]})


@files.post("/capsules/{capsule_id}/files/stat", response_model=Entry)
async def stat(capsule_id: CapsuleId, body: OnPath, caller: FileReader, services: Given) -> Response:
    """One file, directory or link (not what it points to)."""
    async with services.sandboxes.use(caller, inner(Prefix.SANDBOX, capsule_id), "stat") as guest:
        return JSONResponse({"entry": entry(await guest.stat(absolute(body.path, guest.default_home), follow=False))})


@files.post("/capsules/{capsule_id}/files/mkdir", response_model=Entry)
async def mkdir(capsule_id: CapsuleId, body: MakeDirectory, caller: FileWriter, services: Given) -> Response:
    """Makes a directory and its parents. One that is there already is a 409, anything else there a 400."""
    async with services.sandboxes.use(caller, inner(Prefix.SANDBOX, capsule_id), "mkdir") as guest:
        path = absolute(body.path, guest.default_home)
        return JSONResponse({"entry": entry(await _make(guest, path, body))})


async def _make(guest: Guest, path: str, body: MakeDirectory) -> FileInfo:
    try:
        made = await guest.make_directory(path, mode=0o755 if body.mode is None else body.mode, user=body.user or "")
    except TorporError as error:
        if getattr(error, "name", "") == "EEXIST":
            raise InvalidInput(f"{path} exists and is no directory.") from None
        raise
    if not made:
        raise Conflict(f"{path} exists.")
    return await guest.stat(path)


@files.post("/capsules/{capsule_id}/files/move", response_model=Entry)
async def move(capsule_id: CapsuleId, body: Move, caller: FileWriter, services: Given) -> Response:
    """Renames, as rename(2) does; across file systems by copying."""
    async with services.sandboxes.use(caller, inner(Prefix.SANDBOX, capsule_id), "move") as guest:
        source, target = (absolute(path, guest.default_home) for path in (body.source, body.target))
        await guest.move(source, target)
        return JSONResponse({"entry": entry(await guest.stat(target, follow=False))})


@files.post("/capsules/{capsule_id}/files/remove", status_code=204, response_class=Response)
async def remove(capsule_id: CapsuleId, body: OnPath, caller: FileWriter, services: Given) -> Response:
    """Removes a file, or a directory with all that is in it."""
    async with services.sandboxes.use(caller, inner(Prefix.SANDBOX, capsule_id), "remove") as guest:
        await guest.remove(absolute(body.path, guest.default_home), recursive=True)
    return Response(status_code=204)


@files.get("/capsules/{capsule_id}/files/watch", response_class=Response, responses=EVENT_STREAM)
async def watch(
    request: Request,
    capsule_id: CapsuleId,
    path: InQuery,
    caller: Annotated[Caller, Depends(Needs("files:read", ticket=True))],
    services: Given,
    recursive: bool = False,
) -> Response:
    """Changes below a directory, as they happen: events `created`, `written`, `removed`, `renamed`, `attributes`; `overflow` says that some were lost. The
    first event, `ready`, says that from here on nothing is missed."""
    async with AsyncExitStack() as stack:
        guest = await stack.enter_async_context(services.sandboxes.use(caller, inner(Prefix.SANDBOX, capsule_id), "watch"))
        target = absolute(path, guest.default_home)
        if (await guest.stat(target)).kind is not FileKind.DIRECTORY:
            raise InvalidInput(f"{target} is no directory.")
        events = guest.watch(target, recursive=recursive)
        coming = asyncio.ensure_future(_next(events))
        await _armed(guest, coming)
        return sse(request, _watched(events, coming, request_id_of(request.scope), stack.pop_all()))


async def _next(events: AsyncIterator[WatchEvent]) -> WatchEvent | None:
    return await anext(events, None)


async def _armed(guest: Guest, coming: asyncio.Future[WatchEvent | None]) -> None:
    """The guest takes requests in order: when it has answered a ping sent after the watch, the watch is set."""
    await asyncio.sleep(0)  # the watch's request goes first
    try:
        await guest.ping()
    except BaseException:
        coming.cancel()
        raise


async def _watched(
    events: AsyncIterator[WatchEvent], coming: asyncio.Future[WatchEvent | None], request_id: str, stack: AsyncExitStack
) -> AsyncGenerator[Server, None]:
    async with stack:
        try:
            yield Server("ready", "{}")
            while (event := await coming) is not None:
                coming = asyncio.ensure_future(_next(events))
                tree = {"kind": event.kind.value, "path": clean(event.path), "is_directory": event.is_directory}
                if event.new_path:
                    tree["new_path"] = clean(event.new_path)
                yield Server(event.kind.value, json.dumps(tree))
            yield Server("end", "{}")
        except TorporError as error:
            yield Server("error", json.dumps(body_of(error, request_id)))
        finally:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
            await cast("AsyncGenerator[WatchEvent, None]", events).aclose()
