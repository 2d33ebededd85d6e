"""/files: bytes of files, up and down, while they arrive; and /files/compose.

    GET  /files?path&username                                  the file, a Range of it, or gzip'ed where the client asks for that
    POST /files?path&username    multipart/form-data           parts named `file`; without `path` each part's file name is its path
    POST /files?path&username    application/octet-stream      the file itself
    POST /files/compose          {"source_paths": [...], "destination", "username"?}

Content-Encoding: gzip is undone. X-Metadata-<key> headers become the file's metadata, in place of what it had.
"""

from __future__ import annotations

import json
import mimetypes
import posixpath
import re
import secrets
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from torpor.api.e2b.envd.entries import METADATA
from torpor.api.e2b.envd.faults import Fault
from torpor.api.e2b.envd.session import Account, Session, account_of
from torpor.api.errors import clean
from torpor.api.form import Begun, Parts
from torpor.api.ranges import Part, Unsatisfiable, part_of
from torpor.api.streaming import Streamed
from torpor.model.errors import GuestOSError, InternalError, InvalidInput
from torpor.ports.guest import FileInfo, FileKind, Guest

MOST_NAME, MOST_METADATA = 246, 4096
"""Bytes of one key of a file's metadata, and of all keys and values."""
_HEADER = b"x-metadata-"
_GZIP = 16 + zlib.MAX_WBITS
_STEP = 1 << 18
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+\-.^_`|~]+\Z")
_MOST_COMPOSE = 1 << 20


async def download(session: Session, request: Request) -> Response:
    """Raises before the answer begins what keeps the file from being read; a later fault breaks the connection, for a part must not look whole."""
    coding = _coding(request.headers.get("accept-encoding", ""))
    plan = _Plan()
    pieces = _pieces(session, request, coding, plan)
    try:
        await anext(pieces)  # opens the file, and fills the plan
    except BaseException:
        await pieces.aclose()
        raise
    if request.method == "HEAD" or plan.status == 416:
        await pieces.aclose()
        return Response(status_code=plan.status, headers=plan.headers)
    return Streamed(pieces, plan.status, plan.headers)


@dataclass(slots=True)
class _Plan:
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


async def _pieces(session: Session, request: Request, coding: str, plan: _Plan) -> AsyncGenerator[bytes, None]:
    """Nothing first, once the plan stands; then the bytes."""
    async with session.guest("a download") as guest:
        account = await account_of(guest, session.user)
        path = account.path(request.query_params.get("path", ""))
        found = await guest.stat(path)
        if found.kind is FileKind.DIRECTORY:
            raise InvalidInput(f"path '{path}' is a directory")
        if found.kind is not FileKind.FILE:
            raise InvalidInput(f"path '{path}' is no regular file")
        try:
            part = part_of(request.headers.get("range"), found.size)
        except Unsatisfiable:
            plan.status, plan.headers = 416, {"Content-Range": f"bytes */{found.size}"}
            yield b""
            return
        length = None if found.size == 0 else part.end - part.first  # /proc's files have no size, and all the same something in them
        async with aclosing(_read(guest, path, part, length)) as data:
            first = await anext(data, b"")
            compress = coding == "gzip" and part.whole and first != b""
            plan.status, plan.headers = _head(path, found, part, compress, known=length is not None or first == b"")
            yield b""
            if compress:
                async for piece in _deflated(first, data):
                    yield piece
                return
            yield first
            async for piece in data:
                yield piece


async def _read(guest: Guest, path: str, part: Part, length: int | None) -> AsyncGenerator[bytes, None]:
    total = 0
    async for data in guest.read_file(path, offset=part.first, length=length, user="root"):
        total += len(data)
        yield data
    if length is not None and total < length:
        raise InternalError(f"a file ended after {total} of {length} bytes while it was read")


async def _deflated(first: bytes, data: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    machine = zlib.compressobj(1, wbits=_GZIP)
    if small := machine.compress(first):
        yield small
    async for piece in data:
        if small := machine.compress(piece):
            yield small
    yield machine.flush()


def _head(path: str, found: FileInfo, part: Part, compress: bool, *, known: bool) -> tuple[int, dict[str, str]]:
    kind, _ = mimetypes.guess_type(path)
    kind = kind or "application/octet-stream"
    headers = {
        "Content-Type": f"{kind}; charset=utf-8" if kind.startswith("text/") else kind,
        "Content-Disposition": _disposition(posixpath.basename(path)),
        "Vary": "Accept-Encoding",
    }
    if compress:
        return 200, headers | {"Content-Encoding": "gzip"}
    headers["Accept-Ranges"] = "bytes"
    if known:
        headers["Content-Length"] = str(part.end - part.first)
    if part.whole:
        return 200, headers
    return 206, headers | {"Content-Range": f"bytes {part.first}-{part.end - 1}/{part.size}"}


def _disposition(name: str) -> str:
    if _TOKEN.match(name):
        return f"inline; filename={name}"
    if name.isascii() and name.isprintable():
        escaped = name.replace("\\", "\\\\").replace('"', '\\"')
        return f'inline; filename="{escaped}"'
    return f"inline; filename*=utf-8''{quote(name.encode('utf-8', 'surrogateescape'), safe='')}"


def _coding(header: str) -> str:
    """`gzip` or `identity`, as Accept-Encoding (RFC 9110, 12.5.3) has it. Raises NotAcceptable when neither will do."""
    weights: dict[str, float] = {}
    for part in header.split(","):
        name, _, rest = part.partition(";")
        quality = rest.strip().lower().removeprefix("q=") if rest.strip().lower().startswith("q=") else "1"
        try:
            weights[name.strip().lower()] = float(quality)
        except ValueError:
            continue
    identity = weights.get("identity", weights.get("*", 1.0) if "*" in weights else 1.0)
    gzipped = weights.get("gzip", weights.get("*", 0.0))
    if gzipped <= 0 and identity <= 0:
        raise NotAcceptable
    return "gzip" if gzipped > 0 and (gzipped >= identity or "identity" not in weights) else "identity"


class NotAcceptable(Exception):
    """The client takes neither of the forms in which a file can be sent."""


# Uploads


async def upload(session: Session, request: Request) -> Response:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    attributes = _metadata(request.headers.raw)
    async with session.guest("an upload") as guest:
        account = await account_of(guest, session.user)
        target = _Target(guest, account, attributes)
        body = _plain(request)
        if kind == "multipart/form-data":
            await _form(request, body, target)
        elif kind == "application/octet-stream":
            path = request.query_params.get("path", "")
            if not path:
                raise InvalidInput("an upload of a file's own bytes needs the query parameter path")
            await target.take(path, body)
        else:
            raise InvalidInput("the body must be multipart/form-data or application/octet-stream")
    return JSONResponse(target.made)


@dataclass(slots=True)
class _Target:
    """Where files go. `made`: what the answer says of them."""

    guest: Guest
    account: Account
    attributes: Mapping[str, bytes]
    made: list[dict[str, Any]] = field(default_factory=list)

    async def take(self, path: str, source: AsyncIterator[bytes]) -> None:
        path = self.account.path(path)
        await self.guest.rewrite_file(path, source, owner=self.account.name, attributes=self.attributes, replaced=METADATA)
        self.made.append(_made(path, self.attributes))


def _made(path: str, attributes: Mapping[str, bytes]) -> dict[str, Any]:
    made: dict[str, Any] = {"name": clean(posixpath.basename(path)), "type": "file", "path": clean(path)}
    if attributes:
        made["metadata"] = {name.removeprefix(METADATA): value.decode() for name, value in attributes.items()}
    return made


async def _form(request: Request, body: AsyncIterator[bytes], target: _Target) -> None:
    path = request.query_params.get("path", "")
    parts = Parts(request, body)
    while (step := await parts.next()) is not None:
        if not isinstance(step, Begun) or step.name != "file":
            continue
        if path and target.made:
            raise InvalidInput("a form with the query parameter path has one file only")
        name = path or step.filename or ""
        if not name:
            raise InvalidInput("a part named file has no file name, which is to be its path")
        await target.take(name, parts.data())
    if not target.made:
        raise InvalidInput("the form has no part named file")


def _metadata(headers: list[tuple[bytes, bytes]]) -> dict[str, bytes]:
    """Extended attributes by name. Raises InvalidInput."""
    found: dict[str, bytes] = {}
    for name, value in headers:
        if not name.lower().startswith(_HEADER):
            continue
        key = name.lower()[len(_HEADER) :].decode("latin-1")
        if not key or len(key) > MOST_NAME:
            raise InvalidInput(f"a metadata key has 1 to {MOST_NAME} bytes")
        if not value.decode("latin-1").isascii() or not value.decode("latin-1").isprintable():
            raise InvalidInput(f"the metadata of {key!r} is not printable ASCII")
        found[METADATA + key] = value
    if sum(len(name) - len(METADATA) + len(value) for name, value in found.items()) > MOST_METADATA:
        raise InvalidInput(f"a file's metadata may have {MOST_METADATA} bytes in all")
    return found


async def _plain(request: Request) -> AsyncIterator[bytes]:
    """The body with its Content-Encoding undone. Raises InvalidInput."""
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding in ("", "identity"):
        async for data in request.stream():
            yield data
        return
    if coding != "gzip":
        raise InvalidInput(f"the Content-Encoding {coding[:40]!r} is not understood; gzip is")
    machine = zlib.decompressobj(_GZIP)
    begun = False
    async for data in request.stream():
        while data:
            begun = True
            if machine.eof:  # a gzip file may have members, one after the other
                machine = zlib.decompressobj(_GZIP)
            try:
                plain = machine.decompress(data, _STEP)
            except zlib.error:
                raise InvalidInput("the body is no gzip") from None
            data = machine.unconsumed_tail or machine.unused_data
            if plain:
                yield plain
    if begun and not machine.eof:
        raise InvalidInput("the gzip'ed body ends early")


# Composing


async def compose(session: Session, request: Request) -> Response:
    """Files one behind the other as one. They are put together beside the destination, which may be one of them."""
    sources, destination, username = await _wish(request)
    async with session.guest("files to be put together") as guest:
        account = await account_of(guest, username)
        paths = [account.path(each) for each in sources]
        target = account.path(destination)
        for path in paths:
            if (await guest.stat(path)).kind is not FileKind.FILE:
                raise InvalidInput(f"path '{path}' is no regular file")
        with suppress(GuestOSError):
            if (await guest.stat(target)).kind is FileKind.DIRECTORY:
                raise InvalidInput(f"path '{target}' is a directory")
        beside = posixpath.join(posixpath.dirname(target), f".compose-{secrets.token_hex(6)}")
        try:
            await guest.rewrite_file(beside, _joined(guest, paths), owner=account.name)
            await guest.move(beside, target)
        except BaseException:
            with suppress(GuestOSError):
                await guest.remove(beside)
            raise
    return JSONResponse(_made(target, {}))


async def _joined(guest: Guest, paths: list[str]) -> AsyncIterator[bytes]:
    for path in paths:
        async for data in guest.read_file(path, user="root"):
            yield data


async def _wish(request: Request) -> tuple[list[str], str, str]:
    body = bytearray()
    async for data in request.stream():
        body += data
        if len(body) > _MOST_COMPOSE:
            raise Fault("resource_exhausted", f"the request may have {_MOST_COMPOSE} bytes")
    try:
        wish = json.loads(body.decode())
        sources, destination, username = wish["source_paths"], wish["destination"], wish.get("username") or ""
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InvalidInput("the body must be JSON with source_paths and destination") from None
    if not isinstance(sources, list) or not sources or not all(isinstance(each, str) and each for each in (*sources, destination)):
        raise InvalidInput("source_paths must be a list of paths, and destination a path")
    if not isinstance(username, str):
        raise InvalidInput("username must be a string")
    return sources, destination, username
