"""Files through the client, on both of its faces, and what a hostile sandbox cannot do with those it sends."""

from __future__ import annotations

import asyncio
import io
import os
import random
import tarfile
import threading
from pathlib import Path
from typing import Any

import pytest
from client_world import Restartable

from torpor.client import Conflict, ConnectionLost, InvalidRequest, NotFound, UnsafeArchive
from torpor.client.trees import Left, unpack


async def test_bytes_text_parts_and_streams(client: Any, sandbox: Any, server: Restartable) -> None:
    data = random.Random(1).randbytes(3_000_001)
    await sandbox.files.write("~/a/b", data, mode=0o750)
    assert (server.home / "a" / "b").read_bytes() == data
    assert (server.home / "a" / "b").stat().st_mode & 0o777 == 0o750
    assert await sandbox.files.read("a/b") == data
    assert await sandbox.files.read("a/b", offset=5, length=7) == data[5:12]
    assert await sandbox.files.read("a/b", offset=3_000_000) == data[-1:]
    assert await sandbox.files.read("a/b", offset=4_000_000) == b""
    assert b"".join([piece async for piece in sandbox.files.read_stream("a/b")]) == data
    await sandbox.files.write("c", (data[at : at + 100_000] for at in range(0, len(data), 100_000)))
    assert await sandbox.files.read("c") == data
    await sandbox.files.write("text", "grüße\n")
    assert await sandbox.files.read_text("text") == "grüße\n"
    await sandbox.files.write("empty", b"")
    assert await sandbox.files.read("empty") == b""
    assert (await sandbox.files.read("/proc/self/stat", length=3)).isascii()


async def test_looking_and_arranging(client: Any, sandbox: Any) -> None:
    await sandbox.files.mkdir("d/e")
    await sandbox.files.mkdir("d/e", exist_ok=True)
    with pytest.raises(Conflict):
        await sandbox.files.mkdir("d/e")
    await sandbox.files.write("d/f", b"12345")
    assert [(each.name, each.kind, each.size if each.kind == "file" else 0) for each in await sandbox.files.list("d")] == [
        ("e", "directory", 0),
        ("f", "file", 5),
    ]
    moved = await sandbox.files.move("d/f", "d/e/g")
    assert moved.path.endswith("/d/e/g") and (await sandbox.files.stat("d/e/g")).size == 5
    assert await sandbox.files.exists("d/e/g") and not await sandbox.files.exists("d/f")
    await sandbox.files.remove("d")
    with pytest.raises(NotFound):
        await sandbox.files.read("d/e/g")
    with pytest.raises(InvalidRequest):
        await sandbox.files.read("/")


async def test_a_watch_misses_nothing_from_when_it_stands(client: Any, sandbox: Any, server: Restartable) -> None:
    watch = await sandbox.files.watch("~", recursive=True)
    async with watch:
        (server.home / "new").mkdir()
        found = []
        async for change in watch.changes():
            found.append((change.kind, change.path.rpartition("/")[2], change.is_directory))
            break
        assert found == [("created", "new", True)]
    with pytest.raises(NotFound):
        await sandbox.files.watch("/no/such")


async def test_files_go_both_ways_whole_or_not_at_all(client: Any, sandbox: Any, server: Restartable, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(random.Random(2).randbytes(1_000_000))
    source.chmod(0o705)
    seen: list[int] = []
    await sandbox.files.upload(source, "up", on_bytes=seen.append)
    assert (server.home / "up").read_bytes() == source.read_bytes() and (server.home / "up").stat().st_mode & 0o777 == 0o705
    assert seen == sorted(seen) and seen[-1] == 1_000_000
    target.write_text("old")
    await sandbox.files.download("up", target, on_bytes=seen.append)
    assert target.read_bytes() == source.read_bytes()
    with pytest.raises(NotFound):
        await sandbox.files.download("nothing", target)
    assert target.read_bytes() == source.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


async def test_a_download_that_is_cut_leaves_what_was_there(client: Any, sandbox: Any, server: Restartable, tmp_path: Path) -> None:
    with (server.home / "big").open("wb") as file:
        file.truncate(200_000_000)
    target = tmp_path / "target"
    target.write_text("old")

    def cut(_count: int) -> None:
        loop.call_soon_threadsafe(server.cut)

    loop = asyncio.get_running_loop()
    with pytest.raises(ConnectionLost):
        await sandbox.files.download("big", target, on_bytes=cut)
    assert target.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def grow(folder: Path) -> None:
    (folder / "sub" / "deep").mkdir(parents=True)
    (folder / "empty").mkdir()
    (folder / "one").write_text("1")
    (folder / "sub" / "run").write_text("#!/bin/sh\n")
    (folder / "sub" / "run").chmod(0o755)
    (folder / "sub" / "deep" / "big").write_bytes(random.Random(3).randbytes(700_000))
    (folder / "name with \n and ü").write_text("odd")
    (folder / ("n" * 200)).write_text("long")
    (folder / "sub" / "up").symlink_to("../one")
    os.link(folder / "one", folder / "sub" / "second")


def shape(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.lstat().st_mode, os.readlink(path).encode() if path.is_symlink() else path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
    }


async def test_directories_go_both_ways(client: Any, sandbox: Any, server: Restartable, tmp_path: Path) -> None:
    grow(tmp_path / "here")
    await sandbox.files.upload_directory(tmp_path / "here", "~/there")
    assert shape(server.home / "there") == shape(tmp_path / "here")
    assert await sandbox.files.download_directory("there", tmp_path / "back") == []
    assert shape(tmp_path / "back") == shape(tmp_path / "here")
    assert (tmp_path / "back" / "one").stat().st_nlink == 2
    (server.home / "there" / "out").symlink_to("/etc/passwd")
    left = await sandbox.files.download_directory("there", tmp_path / "back")
    assert [each.name for each in left] == ["./out"]
    with pytest.raises(NotFound):
        await sandbox.files.download_directory("no-such", tmp_path / "never")
    with pytest.raises(InvalidRequest):
        await sandbox.files.download_directory("there/one", tmp_path / "never")
    with pytest.raises(NotADirectoryError):
        await sandbox.files.upload_directory(tmp_path / "here" / "one", "x")


async def test_a_server_that_restarts_does_not_break_a_download_of_a_directory(client: Any, sandbox: Any, server: Restartable, tmp_path: Path) -> None:
    grow(server.home / "there")
    loop, restarts = asyncio.get_running_loop(), []

    def restart(_count: int) -> None:
        if not restarts:
            restarts.append(asyncio.run_coroutine_threadsafe(server.restart(), loop))

    assert await sandbox.files.download_directory("there", tmp_path / "back", on_bytes=restart) == []
    await asyncio.wrap_future(restarts[0])
    assert shape(tmp_path / "back") == shape(server.home / "there")


# What a hostile sandbox may send


def tar(*members: tuple[tarfile.TarInfo, bytes]) -> io.BytesIO:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for member, data in members:
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    stream.seek(0)
    return stream


def member(name: str, kind: bytes = tarfile.REGTYPE, to: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.mode = kind, to, mode
    return made


LINK, HARD = tarfile.SYMTYPE, tarfile.LNKTYPE


@pytest.mark.parametrize(
    "members",
    [
        [(member("../evil"), b"x")],
        [(member("a/../../evil"), b"x")],
        [(member("/evil"), b"x")],
        [(member("TARGET/../evil"), b"x")],
        [(member("out", LINK, ".."), b""), (member("out/evil"), b"x")],
        [(member("out", LINK, "/OUTSIDE"), b""), (member("out/evil"), b"x")],
        [(member("out", LINK, "a/../.."), b""), (member("out/evil"), b"x")],
        [(member("in", LINK, "."), b""), (member("out", LINK, "in/.."), b""), (member("out/evil"), b"x")],
        [(member("d", tarfile.DIRTYPE, mode=0o755), b""), (member("d/up", LINK, "../.."), b"")],
        [(member("evil", HARD, "../secret"), b"")],
        [(member("evil", HARD, "/OUTSIDE/secret"), b"")],
        [(member("s", LINK, "../secret"), b""), (member("evil", HARD, "s"), b"")],
        [(member("there", HARD, "mine"), b"")],
        [(member("fifo", tarfile.FIFOTYPE), b""), (member("tty", tarfile.CHRTYPE), b"")],
        [(member("..", tarfile.DIRTYPE, mode=0o777), b"")],
        [(member("."), b"x"), (member(""), b"x")],
    ],
    ids=lambda members: " + ".join(f"{each.name}{'>' + each.linkname if each.linkname else ''}" for each, _ in members),
)
def test_nothing_is_written_outside(tmp_path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    outside, target = tmp_path / "outside", tmp_path / "outside" / "target"
    target.mkdir(parents=True)
    (outside / "secret").write_text("secret")
    (target / "mine").write_text("mine")
    before = shape(outside)
    for each, _ in members:
        each.name, each.linkname = each.name.replace("TARGET", str(target)), each.linkname.replace("OUTSIDE", str(outside)[1:])
    try:
        left = unpack(tar(*members), target)
    except OSError:
        left = [Left("", "")]
    assert left or members[0][0].name in (".", "in")
    after = shape(outside)
    assert {name: each for name, each in after.items() if not name.startswith("target")} == {n: e for n, e in before.items() if not n.startswith("target")}
    assert (outside / "secret").stat().st_nlink == (target / "mine").stat().st_nlink == 1
    for path in target.rglob("*"):
        assert os.path.realpath(path).startswith(str(target)), "no link leads out"


def test_a_link_of_ones_own_in_the_target_is_not_followed(tmp_path: Path) -> None:
    outside, target = tmp_path / "outside", tmp_path / "target"
    outside.mkdir()
    target.mkdir()
    (target / "link").symlink_to(outside)
    with pytest.raises(OSError):
        unpack(tar((member("link/evil"), b"x")), target)
    assert list(outside.iterdir()) == []
    unpack(tar((member("link"), b"now a file")), target)
    assert (target / "link").read_text() == "now a file" and not (target / "link").is_symlink()


def test_no_bits_of_power_are_taken_over(tmp_path: Path) -> None:
    unpack(tar((member("a", mode=0o6777), b"x")), tmp_path)
    assert (tmp_path / "a").stat().st_mode & 0o7777 == 0o777


@pytest.mark.parametrize("length", [100, 512, 700, 1700, 5000])
def test_a_stream_that_ends_early_is_no_whole_one(tmp_path: Path, length: int) -> None:
    whole = tar((member("a"), b"x" * 300), (member("b"), b"y" * 9000)).getvalue()
    with pytest.raises(UnsafeArchive):
        unpack(io.BytesIO(whole[:length]), tmp_path)
    assert not (tmp_path / "b").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_name_without_end_takes_no_memory(tmp_path: Path) -> None:
    head = member("x", tarfile.GNUTYPE_LONGNAME)
    head.size = 1 << 40
    reader, writer = os.pipe()

    def send() -> None:
        try:
            with os.fdopen(writer, "wb") as file:
                file.write(head.tobuf(tarfile.GNU_FORMAT))
                for _ in range(1000):
                    file.write(b"n" * 65536)
        except BrokenPipeError:
            pass

    thread = threading.Thread(target=send)
    thread.start()
    with pytest.raises(UnsafeArchive, match="1 MiB"):
        unpack(os.fdopen(reader, "rb"), tmp_path)
    thread.join()
