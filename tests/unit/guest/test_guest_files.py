"""Files, through the real agent and the real host end."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from torpor.guestlink.guest import RemoteGuest
from torpor.model.errors import GuestOSError, InvalidInput
from torpor.ports.guest import FileKind
from torpor.wire import guest as wire


async def read(guest: RemoteGuest, path: Path | str, **fields: Any) -> bytes:
    return b"".join([piece async for piece in guest.read_file(str(path), **fields)])


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


@pytest.mark.parametrize("size", [0, 1, 32736, 65536, 3_000_001])
async def test_what_is_written_is_read(guest: RemoteGuest, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    info = await guest.write_file(str(tmp_path / "a/b/file"), data)
    assert (info.size, info.kind, info.mode) == (size, FileKind.FILE, 0o644)
    assert await read(guest, tmp_path / "a/b/file") == data == (tmp_path / "a/b/file").read_bytes()


async def test_the_magic_in_a_file_is_only_bytes(guest: RemoteGuest, tmp_path: Path) -> None:
    data = (wire.MAGIC * 5 + b"x" + wire.MAGIC[:40]) * 3000
    await guest.write_file(str(tmp_path / "magic"), pieces(data[:1000], data[1000:]))
    assert await read(guest, tmp_path / "magic") == data


async def test_what_a_slow_source_sent_is_in_the_file_before_its_end(guest: RemoteGuest, tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"begun ")

    async def slow() -> AsyncIterator[bytes]:
        for number, word in enumerate((b"one ", b"two ", b"x" * 300_000)):
            yield word
            while (tmp_path / "log").stat().st_size < (10, 14, 300_014)[number]:  # only a write makes it grow
                await guest.ping()

    await guest.write_file(str(tmp_path / "log"), slow(), append=True)
    assert (tmp_path / "log").read_bytes() == b"begun one two " + b"x" * 300_000


async def test_a_fast_source_and_a_slow_reader_of_much(guest: RemoteGuest, tmp_path: Path) -> None:
    """More than any window, up and down, with other requests in between."""
    data = os.urandom(9_000_001)
    await guest.write_file(str(tmp_path / "much"), pieces(*(data[at : at + 333_333] for at in range(0, len(data), 333_333))))
    got = bytearray()
    async for piece in guest.read_file(str(tmp_path / "much")):
        got += piece
        if len(got) < 2_000_000:
            await guest.ping()
    assert got == data


async def test_ranges(guest: RemoteGuest, tmp_path: Path) -> None:
    data = os.urandom(500_000)
    (tmp_path / "f").write_bytes(data)
    assert await read(guest, tmp_path / "f", offset=1000, length=300_000) == data[1000:301_000]
    assert await read(guest, tmp_path / "f", offset=499_990, length=100) == data[-10:]
    assert await read(guest, tmp_path / "f", offset=600_000) == b""
    with pytest.raises(InvalidInput):
        await read(guest, tmp_path / "f", offset=-1)


async def test_a_reader_that_stops_early_leaves_the_channel_well(guest: RemoteGuest, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(5_000_000))
    for _ in range(5):
        stream = guest.read_file(str(tmp_path / "f"))
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
    assert await read(guest, tmp_path / "f", length=10) == bytes(10)


async def test_in_place_and_append(guest: RemoteGuest, tmp_path: Path) -> None:
    path = str(tmp_path / "f")
    await guest.write_file(path, b"0123456789")
    await guest.write_file(path, b"ab", offset=4)
    await guest.write_file(path, b"end", append=True)
    assert await read(guest, path) == b"0123ab6789end"


async def test_replacing_keeps_mode_and_follows_symlinks(guest: RemoteGuest, tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "real").chmod(0o751)
    (tmp_path / "link").symlink_to("real")
    info = await guest.write_file(str(tmp_path / "link"), b"new", sync=True)
    assert (tmp_path / "link").is_symlink()
    assert ((tmp_path / "real").read_bytes(), info.mode) == (b"new", 0o751)
    assert (await guest.write_file(str(tmp_path / "real"), b"x", mode=0o600)).mode == 0o600
    assert sorted(os.listdir(tmp_path)) == ["link", "real"]


async def test_a_cancelled_write_leaves_the_old_file(guest: RemoteGuest, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")
    begun = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield b"new"
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(guest.write_file(str(tmp_path / "f"), endless()))
    await begun.wait()
    await guest.ping()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    while len(os.listdir(tmp_path)) > 1:  # the temporary file goes as soon as the guest has heard
        await guest.ping()
    assert (tmp_path / "f").read_bytes() == b"old"


async def test_a_source_that_fails_leaves_the_old_file(guest: RemoteGuest, tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"new"
        raise RuntimeError("source")

    with pytest.raises(RuntimeError, match="source"):
        await guest.write_file(str(tmp_path / "f"), broken())
    while os.listdir(tmp_path):
        await guest.ping()


async def test_a_refused_write_says_why_also_in_the_middle_of_much(guest: RemoteGuest, tmp_path: Path) -> None:
    async def much() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield bytes(65536)

    with pytest.raises(GuestOSError) as caught:
        await guest.write_file(str(tmp_path / "no/such"), much(), make_parents=False)
    assert caught.value.name == "ENOENT"
    with pytest.raises(GuestOSError) as caught:
        await guest.write_file("/dev/full", b"x" * 100_000, append=True)
    assert caught.value.name == "EINVAL"
    await guest.ping()


@pytest.mark.parametrize(("path", "name"), [("/no/such", "ENOENT"), ("/tmp", "EISDIR"), ("/dev/null", "EINVAL")])
async def test_reading_what_is_no_file(guest: RemoteGuest, path: str, name: str) -> None:
    with pytest.raises(GuestOSError) as caught:
        await read(guest, path)
    assert caught.value.name == name


async def test_a_fifo_does_not_hang_the_agent(guest: RemoteGuest, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(GuestOSError):
        await read(guest, tmp_path / "fifo")
    with pytest.raises(GuestOSError):
        await guest.write_file(str(tmp_path / "fifo"), b"x")


@pytest.mark.parametrize("path", ["relative", "", "/nul\0byte"])
async def test_paths_are_absolute(guest: RemoteGuest, path: str) -> None:
    with pytest.raises(InvalidInput):
        await guest.stat(path)


async def test_names_that_are_not_utf8(guest: RemoteGuest, tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\xfe \xc3\xa4")
    await guest.write_file(str(tmp_path / name), b"x")
    assert [os.path.basename(i.path) for i in await guest.list_directory(str(tmp_path))] == [name]
    assert await read(guest, tmp_path / name) == b"x"


async def test_stat_and_symlinks(guest: RemoteGuest, tmp_path: Path) -> None:
    await guest.symlink("target text", str(tmp_path / "l"))
    info = await guest.stat(str(tmp_path / "l"), follow=False)
    assert (info.kind, info.target) == (FileKind.SYMLINK, "target text")
    with pytest.raises(GuestOSError):
        await guest.stat(str(tmp_path / "l"))
    info = await guest.stat("/dev/null")
    assert (info.kind, info.user, info.uid) == (FileKind.OTHER, "root", 0)


async def test_listing(guest: RemoteGuest, tmp_path: Path) -> None:
    for name in ("b/c/d", "a", "e"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "b/f").write_text("x")
    (tmp_path / "loop").symlink_to(".")

    async def names(depth: int) -> list[str]:
        return [os.path.relpath(i.path, tmp_path) for i in await guest.list_directory(str(tmp_path), depth=depth)]

    assert await names(1) == ["a", "b", "e", "loop"]
    assert await names(2) == ["a", "b", "b/c", "b/f", "e", "loop"]
    assert await names(9) == ["a", "b", "b/c", "b/c/d", "b/f", "e", "loop"]
    for path, name in (("/no/such", "ENOENT"), ("/etc/passwd", "ENOTDIR")):
        with pytest.raises(GuestOSError) as caught:
            await guest.list_directory(path)
        assert caught.value.name == name


async def test_a_long_listing(guest: RemoteGuest, tmp_path: Path) -> None:
    for number in range(3000):
        (tmp_path / f"{number:05}").touch()
    assert len(await guest.list_directory(str(tmp_path))) == 3000


async def test_directories(guest: RemoteGuest, tmp_path: Path) -> None:
    path = str(tmp_path / "x/y")
    assert await guest.make_directory(path, mode=0o700) is True
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
    assert await guest.make_directory(path) is False
    (tmp_path / "f").touch()
    for make, name in ((guest.make_directory(str(tmp_path / "f")), "EEXIST"), (guest.make_directory(str(tmp_path / "1/2"), parents=False), "ENOENT")):
        with pytest.raises(GuestOSError) as caught:
            await make
        assert caught.value.name == name


async def test_moving_and_removing(guest: RemoteGuest, tmp_path: Path) -> None:
    (tmp_path / "d/e").mkdir(parents=True)
    (tmp_path / "d/e/f").write_text("content")
    await guest.move(str(tmp_path / "d"), str(tmp_path / "m"))
    assert (tmp_path / "m/e/f").read_text() == "content"
    with pytest.raises(GuestOSError) as caught:
        await guest.remove(str(tmp_path / "m"))
    assert caught.value.name == "ENOTEMPTY"
    await guest.remove(str(tmp_path / "m"), recursive=True)
    assert os.listdir(tmp_path) == []


async def test_moving_across_file_systems(guest: RemoteGuest, tmp_path: Path) -> None:
    other = Path("/dev/shm") / f"torpor-{tmp_path.name}-{os.getpid()}"
    if os.stat("/dev/shm").st_dev == os.stat(tmp_path).st_dev:
        pytest.fail("this test needs two file systems")
    (tmp_path / "d/e").mkdir(parents=True)
    (tmp_path / "d/e/f").write_text("content")
    (tmp_path / "d/e/f").chmod(0o640)
    (tmp_path / "d/l").symlink_to("e/f")
    try:
        await guest.move(str(tmp_path / "d"), str(other))
        assert (other / "l").read_text() == "content"
        assert stat.S_IMODE((other / "e/f").stat().st_mode) == 0o640
        assert os.listdir(tmp_path) == []
    finally:
        await guest.remove(str(other), recursive=True)


async def test_modes_and_owners(guest: RemoteGuest, tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    await guest.chmod(str(tmp_path / "f"), 0o4711)
    await guest.chown(str(tmp_path / "f"), "root", "root")
    assert (await guest.stat(str(tmp_path / "f"))).uid == 0
    with pytest.raises(InvalidInput):
        await guest.chown(str(tmp_path / "f"), "nobody-here")


async def test_extended_attributes(guest: RemoteGuest, tmp_path: Path) -> None:
    path = str(tmp_path / "f")
    await guest.write_file(path, b"")
    await guest.set_xattr(path, "user.a", b"\0\xff")
    await guest.set_xattr(path, "user.b", b"x" * 2000)
    assert await guest.get_xattrs(path) == {"user.a": b"\0\xff", "user.b": b"x" * 2000}
    await guest.set_xattr(path, "user.b", None)
    assert await guest.get_xattrs(path) == {"user.a": b"\0\xff"}
    with pytest.raises(GuestOSError):
        await guest.set_xattr(path, "user.b", None)


@pytest.mark.root
async def test_a_user_writes_only_where_the_user_may(guest: RemoteGuest, tmp_path: Path) -> None:
    """As `nobody`: a symlink to root's file leads nowhere."""
    for folder in (tmp_path, *list(tmp_path.parents)[:3]):
        folder.chmod(0o755)
    (tmp_path / "root").write_bytes(b"root's")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "open/link").symlink_to("../root")
    attempts: list[Callable[[], Coroutine[Any, Any, object]]] = [
        lambda: guest.write_file(str(tmp_path / "open/link"), b"mine", user="nobody"),
        lambda: guest.write_file(str(tmp_path / "open/link"), b"mine", user="nobody", append=True),
        lambda: guest.write_file(str(tmp_path / "new"), b"mine", user="nobody"),
        lambda: guest.make_directory(str(tmp_path / "new"), user="nobody"),
        lambda: guest.symlink("x", str(tmp_path / "new"), user="nobody"),
        lambda: read(guest, "/etc/shadow", user="nobody"),
    ]
    for attempt in attempts:
        with pytest.raises(GuestOSError) as caught:
            await attempt()
        assert caught.value.name == "EACCES"
    info = await guest.write_file(str(tmp_path / "open/mine"), b"mine", user="nobody")
    assert info.user == "nobody"
    assert (tmp_path / "root").read_bytes() == b"root's"
