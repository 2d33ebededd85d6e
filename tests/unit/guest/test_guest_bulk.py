"""Large files, whose bytes the agent never holds: what a reader gets, whatever happens on the way."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from unittest import mock

import pytest
from guest_world import Agent

from torpor.guest.loads import Load, LoadSender, Pipe
from torpor.guestlink.guest import RemoteGuest
from torpor.guestlink.link import Link
from torpor.model.errors import GuestOSError
from torpor.wire import guest as wire

SIZE = 5_000_001


@pytest.fixture
def much(tmp_path: Path) -> tuple[Path, bytes]:
    data = os.urandom(SIZE)
    path = tmp_path / "much"
    path.write_bytes(data)
    return path, data


async def read(guest: RemoteGuest, path: Path, **fields: int) -> bytes:
    return b"".join([piece async for piece in guest.read_file(str(path), **fields)])


@pytest.mark.parametrize(("offset", "length"), [(0, None), (1, None), (4095, 1_000_000), (SIZE - 70_000, 70_000), (100, SIZE), (SIZE, None), (0, 0)])
async def test_any_part_comes_as_it_is(guest: RemoteGuest, much: tuple[Path, bytes], offset: int, length: int | None) -> None:
    path, data = much
    fields = {"offset": offset} | ({"length": length} if length is not None else {})
    assert await read(guest, path, **fields) == data[offset : None if length is None else offset + length]


async def test_what_was_written_comes_back(guest: RemoteGuest, tmp_path: Path) -> None:
    data = os.urandom(SIZE)
    await guest.write_file(str(tmp_path / "a"), data)
    assert await read(guest, tmp_path / "a") == data


async def test_frames_are_large_for_who_asked_only(guest: RemoteGuest, much: tuple[Path, bytes]) -> None:
    path, data = much
    pieces = [piece async for piece in guest.read_file(str(path))]
    assert max(map(len, pieces)) == wire.BULK_PAYLOAD
    with mock.patch.object(wire, "LEVEL", 2):
        plain = await guest._opened("read", {"path": str(path), "offset": 0, "length": None, "user": ""}, (False, True))
    got = []
    while piece := await plain[0].streams[0].read():
        got.append(piece)
    assert b"".join(got) == data
    assert max(map(len, got)) <= wire.GUEST_PAYLOAD


async def test_a_file_that_is_cut_while_it_is_read_ends_there(guest: RemoteGuest, much: tuple[Path, bytes]) -> None:
    path, data = much
    stream = guest.read_file(str(path))
    got = await anext(stream)
    os.truncate(path, 3_000_000)
    got += b"".join([piece async for piece in stream])
    assert 3_000_000 <= len(got) < SIZE or got == data
    assert got[:3_000_000] == data[:3_000_000]


async def test_who_stops_reading_leaves_no_descriptor(agent: Agent, guest: RemoteGuest, much: tuple[Path, bytes]) -> None:
    path, _ = much
    folder = Path(f"/proc/{agent.process.pid}/fd")
    await guest.ping()
    before = len(list(folder.iterdir()))
    for _ in range(20):
        stream = guest.read_file(str(path))
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
    for _ in range(3):
        await read(guest, path)
    await guest.close()  # two that live would take the agent from each other
    again = await Link().connect(agent.socket, generation=None, timeout=100)
    while len(list(folder.iterdir())) > before:
        await again.ping()
    await again.close()


async def test_a_port_that_loses_a_payload_fails_the_reading_and_nothing_else(tmp_path: Path) -> None:
    """Linux says 0 where it has no memory for a large write to a virtio port. A load is replaced by as many bytes, and said to be worth nothing."""
    ends: list[bool] = []
    (tmp_path / "f").write_bytes(b"x" * 100_000)
    pipe = Pipe()
    with open(tmp_path / "f", "rb") as file:
        load = Load(pipe, pipe.fill(file.fileno(), 0, 100_000), lambda _load, whole: ends.append(whole))
    sender = LoadSender()
    sender.add(load)
    assert sender.pull_load(6, 1) == (wire.HEADER.pack(wire.DATA, 0, 0, 100_000, 6, 1, 0), load)
    with mock.patch("os.splice", return_value=0):
        assert load.go_on(-1) == bytes(100_000)
    assert load.left == 0
    load.sent()
    assert (ends, load.failure is not None) == ([False], True)
    pipe.close()


async def test_where_descriptors_are_short_reading_goes_on_with_fewer_or_says_so(agent: Agent, guest: RemoteGuest, much: tuple[Path, bytes]) -> None:
    path, data = much
    await guest.ping()
    held = len(list(Path(f"/proc/{agent.process.pid}/fd").iterdir()))
    for more, works in ((4, True), (2, False), (1, False)):  # the file and one pipe need three
        resource.prlimit(agent.process.pid, resource.RLIMIT_NOFILE, (held + more, 4096))
        if works:
            assert await read(guest, path) == data
        else:
            with pytest.raises(GuestOSError):
                await read(guest, path)
    resource.prlimit(agent.process.pid, resource.RLIMIT_NOFILE, (1024, 4096))
    assert await read(guest, path) == data


async def test_a_directory_is_no_file(guest: RemoteGuest, tmp_path: Path) -> None:
    with pytest.raises(GuestOSError):
        await read(guest, tmp_path)
