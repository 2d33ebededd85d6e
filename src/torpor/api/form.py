"""multipart/form-data (RFC 7578), parsed as it arrives."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from torpor.model.errors import InvalidInput

_MOST_FIELD = 8192
_BOUNDARY = re.compile(rb"[\x20-\x7e]{1,70}\Z")


@dataclass(frozen=True, slots=True)
class Begun:
    """A part begins. `filename`: as the form has it, directories too; None for a plain field."""

    name: str
    filename: str | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of the part that began last."""

    data: bytes


class Ended:
    """The part that began last is whole."""


Step = Begun | Piece | Ended


class Parts:
    """The parts of a request's body, or of `body`, what it is once decoded, step by step.
    Raises InvalidInput for what is no form, or a form that ends early."""

    def __init__(self, request: Request, body: AsyncIterator[bytes] | None = None) -> None:
        kind, options = parse_options_header(request.headers.get("content-type", ""))
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not _BOUNDARY.match(boundary):
            raise InvalidInput("The body must be multipart/form-data with a boundary.")
        self._chunks = body if body is not None else request.stream()
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
        filename = options.get(b"filename")
        self._steps.append(Begun(options[b"name"].decode("utf-8", "replace"), filename.decode("utf-8", "surrogateescape") if filename is not None else None))

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
