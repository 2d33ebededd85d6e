"""An upload as multipart/form-data (RFC 7578), parsed as it arrives: memory stays flat however large the file is.

The `path` part should come before the `file` part, or the path be in the query; then the file streams into the guest while it arrives. A file that comes first
is kept on the server's disk until its path is known, and may have SPOOLED bytes at most.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import IO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from torpor.model.errors import InvalidInput, TooLarge

SPOOLED = 100 << 20
_MOST_FIELD = 8192
_BOUNDARY = re.compile(rb"[\x20-\x7e]{1,70}\Z")


@dataclass(frozen=True, slots=True)
class Begun:
    """A part begins."""

    name: str


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of the part that began last."""

    data: bytes


class Ended:
    """The part that began last is whole."""


Step = Begun | Piece | Ended


class Parts:
    """The parts of a request's body, step by step. Raises InvalidInput for what is no form, or a form that ends early."""

    def __init__(self, request: Request) -> None:
        kind, options = parse_options_header(request.headers.get("content-type", ""))
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not _BOUNDARY.match(boundary):
            raise InvalidInput("The body must be multipart/form-data with a boundary.")
        self._chunks = request.stream()
        self._steps: deque[Step] = deque()
        self._field = self._value = b""
        self._disposition = b""
        self._whole = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._part,
                "on_header_field": self._on_field,
                "on_header_value": self._on_value,
                "on_header_end": self._header,
                "on_headers_finished": self._named,
                "on_part_data": lambda data, start, end: self._steps.append(Piece(data[start:end])),
                "on_part_end": lambda: self._steps.append(Ended()),
                "on_end": self._finished,
            },
        )

    def _part(self) -> None:
        self._disposition = b""

    def _on_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = self._value
        self._field = self._value = b""

    def _named(self) -> None:
        kind, options = parse_options_header(self._disposition)
        if kind != b"form-data" or b"name" not in options:
            raise InvalidInput("A part of the form has no name.")
        self._steps.append(Begun(options[b"name"].decode("utf-8", "replace")))

    def _finished(self) -> None:
        self._whole = True

    async def next(self) -> Step | None:
        """The next step, None at the form's end."""
        while not self._steps:
            chunk = await anext(self._chunks, None)
            if chunk is None:
                if not self._whole:
                    raise InvalidInput("The form ends early.")
                return None
            try:
                self._parser.write(chunk)
            except FormParserError as error:
                raise InvalidInput(f"The form is malformed: {error}.") from None
        return self._steps.popleft()

    async def field(self) -> str:
        """The rest of a part that is a short text."""
        data = b""
        while isinstance(step := await self.next(), Piece):
            data += step.data
            if len(data) > _MOST_FIELD:
                raise InvalidInput(f"A field may have {_MOST_FIELD} bytes at most.")
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise InvalidInput("A field is not UTF-8.") from None

    async def data(self) -> AsyncIterator[bytes]:
        """The rest of a part that may be of any size."""
        while isinstance(step := await self.next(), Piece):
            yield step.data

    async def rest(self) -> dict[str, str]:
        """The fields that are still to come."""
        found = {}
        while (step := await self.next()) is not None:
            if isinstance(step, Begun):
                found[step.name] = await self.field()
        return found


class Upload:
    """A form with `path` and `file`. First `begin`, then `source` to its end."""

    def __init__(self, request: Request, path: str = "") -> None:
        self._parts = Parts(request)
        self._spool: IO[bytes] | None = None
        self.fields: dict[str, str] = {"path": path} if path else {}

    async def begin(self) -> str:
        """The path. Raises InvalidInput when the form has none, or no file; TooLarge for a file before its path that is too large to keep."""
        while True:
            step = await self._parts.next()
            if step is None:
                raise InvalidInput("The form has no part named file.")
            if not isinstance(step, Begun):
                continue
            if step.name != "file":
                self.fields[step.name] = await self._parts.field()
            elif "path" in self.fields:
                return self.fields["path"]
            else:
                await self._keep()
                self.fields |= await self._parts.rest()
                if "path" not in self.fields:
                    raise InvalidInput("The form has no part named path.")
                return self.fields["path"]

    async def _keep(self) -> None:
        self._spool, total = tempfile.TemporaryFile(), 0  # noqa: SIM115 - closed by `close`
        async for data in self._parts.data():
            total += len(data)
            if total > SPOOLED:
                raise TooLarge(f"A file of more than {SPOOLED} bytes must come after its path.")
            await asyncio.to_thread(self._spool.write, data)
        self._spool.seek(0)

    async def source(self) -> AsyncIterator[bytes]:
        """The file's bytes. After the last one the form was whole."""
        if self._spool is not None:
            while data := await asyncio.to_thread(self._spool.read, 1 << 18):
                yield data
            return
        async for data in self._parts.data():
            yield data
        self.fields |= await self._parts.rest()

    def close(self) -> None:
        """Gives up what was kept on disk. Idempotent."""
        if self._spool is not None:
            self._spool.close()
