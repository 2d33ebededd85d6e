"""`torpor cp`: files and directories in either direction."""

from __future__ import annotations

import asyncio
import os
import posixpath
import re
import sys
import time
from argparse import Namespace
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

from torpor.apps.console import PIECE, write_all
from torpor.cli.remote import find, run
from torpor.cli.show import Screen
from torpor.client.answers import FileState
from torpor.client.asynchronous import AsyncClient
from torpor.client.errors import ApiError
from torpor.client.files import AsyncFiles
from torpor.model.errors import InvalidInput, NotFound

_REMOTE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*):(.*)\Z", re.DOTALL)


def remote(text: str) -> tuple[str, str] | None:
    """SANDBOX:PATH; None for a path here, which may be written with ./ when it has a colon. Without a PATH it is the home."""
    found = _REMOTE.match(text)
    return (found[1], found[2] or "~") if found else None


def base(path: str) -> str:
    """The last name in a path of a sandbox; '' where there is none to take over: `/`, `.`, `..`, `~`."""
    name = posixpath.basename(path.rstrip("/"))
    return "" if name in (".", "..", "~") else name


def cp(words: Namespace, screen: Screen) -> int:
    source, target = remote(words.source), remote(words.target)
    if (source is None) == (target is None):
        raise InvalidInput("One of the two must be in a sandbox, and only one.", mend="As in: torpor cp SANDBOX:/etc/os-release . ")

    async def work(client: AsyncClient) -> int:
        if source is not None:
            return await _out(client, source, words, screen)
        assert target is not None
        await _in(client, words.source, target, words, screen)
        return 0

    code = run(words, screen, work)
    if words.json:
        screen.document({"source": words.source, "target": words.target, "complete": code == 0})
    return code


class _Meter:
    """Progress on a terminal, when it takes a moment."""

    def __init__(self, screen: Screen, words: Namespace, what: str, size: int) -> None:
        self._shown = not words.quiet and not words.json and sys.stderr.isatty()
        self._screen, self._what, self._size = screen, what, size
        self._next = time.monotonic() + 0.5

    def __call__(self, done: int) -> None:
        if self._shown and time.monotonic() >= self._next:
            self._next = time.monotonic() + 0.1
            what = f"{self._what}: {done >> 20} MiB"
            self._screen.progress(what, done / self._size if self._size else 0.0)


async def _stat(files: AsyncFiles, path: str) -> FileState | None:
    """What a path leads to; None for nothing."""
    try:
        found = await files.stat(path)
        if found.kind != "symlink":
            return found
        return await files.stat(path.rstrip("/") + "/.")
    except ApiError as error:
        if error.status == 404 and error.reason == "guest_os_error":
            return None
        if error.status == 400 and not path.endswith("/."):
            return found  # a link to a file
        raise


# Out of a sandbox


async def _out(client: AsyncClient, source: tuple[str, str], words: Namespace, screen: Screen) -> int:
    sandbox = await find(client, source[0])
    files, path = sandbox.files, source[1]
    found = await _stat(files, path)
    if found is None:
        raise NotFound(f"There is no {path} in {sandbox.id}.")
    if words.target == "-":
        return await _to_stdout(files, path, found)
    target = Path(words.target)
    name = base(path)
    meter = _Meter(screen, words, name or path, found.size if found.kind == "file" else 0)
    if found.kind != "directory":
        if target.is_dir() or words.target.endswith("/"):
            target = target / name
        await files.download(path, target, on_bytes=meter)
        return 0
    if target.exists() and not target.is_dir():
        raise InvalidInput(f"{target} exists and is no directory.")
    left = await files.download_directory(path, target / name if target.is_dir() else target, on_bytes=meter)
    for each in left:
        screen.warn(f"left out {each.name!r}: {each.reason}.")
    return 1 if left else 0


async def _to_stdout(files: AsyncFiles, path: str, found: FileState) -> int:
    if found.kind == "directory":
        raise InvalidInput(f"{path} is a directory; only files go to standard output.")
    async with aclosing(cast("Any", files.read_stream(path))) as pieces:
        async for piece in pieces:
            await asyncio.to_thread(write_all, 1, piece)
    return 0


# Into a sandbox


async def _in(client: AsyncClient, source: str, target: tuple[str, str], words: Namespace, screen: Screen) -> None:
    sandbox = await find(client, target[0])
    files, path = sandbox.files, target[1]
    there = await _stat(files, path)
    into = path.endswith("/") or (there is not None and there.kind == "directory")
    if source == "-":
        if into:
            raise InvalidInput(f"{path} is a directory; standard input needs the name of a file.")
        await files.write(path, _stdin(), user=words.user)
        return
    here = Path(source)
    if not here.exists():
        raise NotFound(f"There is no {source} here.")
    name = os.path.basename(os.path.realpath(here))
    if here.is_dir():
        if there is not None and there.kind != "directory":
            raise InvalidInput(f"{path} exists and is no directory.")
        whole = posixpath.join(path, name) if there is not None else path
        await files.upload_directory(here, whole, user=words.user, on_bytes=_Meter(screen, words, name, 0))
        return
    meter: Callable[[int], None] = _Meter(screen, words, name, here.stat().st_size)
    await files.upload(here, posixpath.join(path, name) if into else path, user=words.user, on_bytes=meter)


async def _stdin() -> AsyncIterator[bytes]:
    while piece := await asyncio.to_thread(os.read, 0, PIECE):
        yield piece
