"""Watching directories and connecting to ports, through the real agent and the real host end."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from torpor.guestlink.guest import RemoteGuest
from torpor.model.errors import GuestOSError
from torpor.ports.guest import WatchEvent, WatchKind


class Watch:
    """A watch under way and what it has reported."""

    def __init__(self, events: AsyncIterator[WatchEvent]) -> None:
        self._events = events
        self._first = asyncio.ensure_future(anext(events))

    async def until(self, kind: WatchKind, path: str) -> WatchEvent:
        while True:
            event = await (self._first if self._first is not None else anext(self._events))
            self._first = None  # type: ignore[assignment]
            if (event.kind, event.path) == (kind, path):
                return event


async def watching(guest: RemoteGuest, path: Path, *, recursive: bool = False) -> Watch:
    """A watch that stands: what it reports of a probe proves it."""
    watch = Watch(guest.watch(str(path), recursive=recursive))
    number = 0
    while not watch._first.done():
        number += 1
        (path / f"probe{number}").touch()
        await guest.ping()
    return watch


async def test_what_happens_is_reported(guest: RemoteGuest, tmp_path: Path) -> None:
    watch = await watching(guest, tmp_path)
    (tmp_path / "f").write_text("x")
    await watch.until(WatchKind.CREATED, "f")
    await watch.until(WatchKind.WRITTEN, "f")
    (tmp_path / "f").chmod(0o600)
    await watch.until(WatchKind.ATTRIBUTES, "f")
    (tmp_path / "f").rename(tmp_path / "g")
    assert (await watch.until(WatchKind.RENAMED, "f")).new_path == "g"
    (tmp_path / "g").unlink()
    await watch.until(WatchKind.REMOVED, "g")


async def test_moves_over_the_border_are_removals_and_creations(guest: RemoteGuest, tmp_path: Path) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    (tmp_path / "from").touch()
    watch = await watching(guest, inside)
    (tmp_path / "from").rename(inside / "here")
    await watch.until(WatchKind.CREATED, "here")
    (inside / "here").rename(tmp_path / "gone")
    await watch.until(WatchKind.REMOVED, "here")


async def test_new_folders_join_and_nothing_in_them_is_missed(guest: RemoteGuest, tmp_path: Path) -> None:
    watch = await watching(guest, tmp_path, recursive=True)
    (tmp_path / "a/b/c").mkdir(parents=True)
    (tmp_path / "a/b/c/f").write_text("x")
    await watch.until(WatchKind.CREATED, "a/b/c/f")
    (tmp_path / "a/b").rename(tmp_path / "z")
    (tmp_path / "z/c/late").touch()
    await watch.until(WatchKind.CREATED, "z/c/late")


async def test_many_files_in_new_folders_are_each_reported_once(guest: RemoteGuest, tmp_path: Path) -> None:
    watch = await watching(guest, tmp_path, recursive=True)
    wanted = {f"d{n % 7}/s{n % 3}/f{n}" for n in range(300)}
    for path in sorted(wanted):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    (tmp_path / "last").touch()
    seen: list[str] = []
    async for event in watch._events:
        if event.kind is WatchKind.CREATED and "/f" in event.path:
            seen.append(event.path)
        if event.path == "last":
            break
    while set(seen) != wanted:
        event = await anext(watch._events)
        if event.kind is WatchKind.CREATED and "/f" in event.path:
            seen.append(event.path)
    assert sorted(seen) == sorted(wanted)


async def test_a_watch_ends_with_its_folder(guest: RemoteGuest, tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    watch = await watching(guest, folder)
    shutil.rmtree(folder)
    assert [e async for e in watch._events][-1].kind is WatchKind.REMOVED


async def test_a_watch_nobody_reads_overflows(guest: RemoteGuest, tmp_path: Path) -> None:
    watch = await watching(guest, tmp_path)
    for number in range(20000):
        (tmp_path / f"{'n' * 60}{number}").touch()
        if number % 500 == 0:
            await guest.ping()
    await watch.until(WatchKind.OVERFLOW, "")


async def test_watching_what_is_no_folder(guest: RemoteGuest) -> None:
    for path, name in (("/no/such", "ENOENT"), ("/etc/passwd", "ENOTDIR")):
        with pytest.raises(GuestOSError) as caught:
            await anext(guest.watch(path))
        assert caught.value.name == name


@pytest.fixture
async def echo() -> AsyncIterator[int]:
    """A TCP server on the loopback that sends back what it gets and ends when its client does."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def test_a_connection_carries_both_ways_and_ends(guest: RemoteGuest, echo: int) -> None:
    data = os.urandom(2_000_000)
    stream = await guest.connect(echo)

    async def send() -> None:
        await stream.write(data)
        await stream.close_write()

    sending = asyncio.create_task(send())
    got = b""
    while piece := await stream.read(10_000):
        assert len(piece) <= 10_000
        got += piece
    await sending
    assert got == data
    stream.close()


async def test_many_connections(guest: RemoteGuest, echo: int) -> None:
    async def one(number: int) -> bytes:
        stream = await guest.connect(echo, "127.0.0.1")
        await stream.write(str(number).encode())
        await stream.close_write()
        got = b""
        while piece := await stream.read():
            got += piece
        stream.close()
        return got

    assert await asyncio.gather(*[one(n) for n in range(100)]) == [str(n).encode() for n in range(100)]


async def test_nobody_listens(guest: RemoteGuest) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(GuestOSError) as caught:
            await guest.connect(unused.getsockname()[1])
    assert caught.value.name == "ECONNREFUSED"


async def test_a_reset_is_told_apart_from_an_end(guest: RemoteGuest) -> None:
    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)

    async def use() -> None:
        stream = await guest.connect(server.sockets[0].getsockname()[1], "127.0.0.1")
        await stream.read()

    with pytest.raises(GuestOSError) as caught:
        await use()
    assert caught.value.name == "ECONNRESET"
    server.close()


async def test_closing_on_our_side_reaches_the_server(guest: RemoteGuest) -> None:
    ended: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
            ended.set_result(None)
        except ConnectionError as error:
            ended.set_result(error)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    stream = await guest.connect(server.sockets[0].getsockname()[1])
    await stream.write(b"x")
    stream.close()
    assert isinstance(await ended, ConnectionResetError)
    server.close()
