"""An upload as multipart/form-data (RFC 7578), parsed as it arrives: memory stays flat however large the file is.

The `path` part should come before the `file` part, or the path be in the query; then the file streams into the guest while it arrives. A file that comes first
is kept on the server's disk until its path is known, and may have SPOOLED bytes at most.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from typing import IO

from starlette.requests import Request

from torpor.api.form import Begun, Parts
from torpor.model.errors import InvalidInput, TooLarge

SPOOLED = 100 << 20


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
