"""The host end against a guest that breaks the rules: an error of the tree, the session closed, memory bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from torpor.guestlink.link import Link
from torpor.model.errors import GuestError, GuestLost, GuestProtocolError, InvalidInput, NotFound
from torpor.ports.guest import ExecSpec
from torpor.wire import guest as wire

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class FakeGuest:
    """Says a proper welcome, then follows a script."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.script: Script = self.silent
        self.welcome: bytes | None = None
        self.connections = 0
        self.dead = False

    async def silent(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    def says(self, *frames: bytes) -> None:
        """After the first request: these bytes, then silence."""

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(wire.HEADER.size)
            for frame in frames:
                writer.write(frame)
            while await reader.read(65536):
                pass

        self.script = script

    async def serve(self) -> None:
        self.server = await asyncio.start_unix_server(self._accept, self.path)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.dead:
            writer.close()
            return
        try:
            await reader.readexactly(len(wire.MAGIC))
            header = wire.Header(*wire.HEADER.unpack(await reader.readexactly(wire.HEADER.size)))
            await reader.readexactly(header.length)
            fields = {"version": 1, "resumed": self.connections > 1, "user": "u"}
            writer.write(self.welcome if self.welcome is not None else wire.encode(wire.WELCOME, 0, 1, header.offset, wire.to_json(fields)))
            await self.script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        writer.close()


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[FakeGuest]:
    guest = FakeGuest(tmp_path / "s")
    await guest.serve()
    yield guest
    guest.server.close()


def frame(kind: int, stream: int = 2, offset: int = 0, payload: bytes = b"", generation: int = 1) -> bytes:
    return wire.encode(kind, stream, generation, offset, payload)


reply = frame(wire.REPLY, payload=wire.to_json({"exec_id": "p1", "pid": 1, "stdin": False, "terminal": False, "starts": [0, 0], "exited": None}))

BREACHES = {
    "garbage": b"\xaa" * 64,
    "a reply to nothing": frame(wire.REPLY, stream=100, payload=b"{}"),
    "data for nothing": frame(wire.DATA, stream=100, payload=b"x"),
    "a hello": wire.encode(wire.HELLO, 0, 1, 0, b"{}"),
    "a request": frame(wire.REQUEST, payload=b"{}"),
    "a second welcome": frame(wire.WELCOME),
    "json that is none": frame(wire.REPLY, payload=b"{"),
    "an error that is none": frame(wire.REPLY, payload=b'{"error":5}'),
    "starts that are none": frame(wire.REPLY, payload=b'{"starts":[-1]}'),
    "a reply without its fields": frame(wire.REPLY, payload=b"{}"),
    "data out of order": reply + frame(wire.DATA, offset=5, payload=b"x"),
    "data beyond the window": reply + b"".join(frame(wire.DATA, offset=n * 65536, payload=bytes(65536)) for n in range(5)),
    "an end too early": reply + frame(wire.END, offset=5),
    "data behind the end": reply + frame(wire.END) + frame(wire.DATA, payload=b"x"),
    "credit for what was not sent": reply + frame(wire.CREDIT, payload=wire.WINDOW_PAIR.pack(5, 10)),
    "a window of the wrong size": reply + frame(wire.CREDIT, payload=b"x"),
    "an end of the command that is none": reply + frame(wire.EVENT, payload=b'{"exited":5}'),
    "an end without its fields": reply + frame(wire.EVENT, payload=b'{"exited":{"code":"x"}}'),
}


@pytest.mark.parametrize("breach", BREACHES.values(), ids=BREACHES.keys())
async def test_every_breach_ends_the_session(fake: FakeGuest, breach: bytes) -> None:
    fake.says(breach)
    guest = await Link().connect(fake.path, generation=None, timeout=100)

    async def use() -> None:
        process = await guest.exec(ExecSpec(["true"]))
        await process.wait()

    with pytest.raises(GuestProtocolError):
        await use()
    with pytest.raises(GuestProtocolError):
        await guest.ping()
    assert fake.connections == 1


async def read_frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    header = wire.Header(*wire.HEADER.unpack(await reader.readexactly(wire.HEADER.size)))
    return header.type, await reader.readexactly(header.length)


async def test_a_listing_without_end_is_cut_off(fake: FakeGuest) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_frame(reader)
        writer.write(frame(wire.REPLY, payload=b"{}"))
        offset, limit = 0, wire.WINDOW
        line = b'{"x":"' + b"y" * 59000 + b'"}\n'
        while True:
            while offset + len(line) > limit:
                kind, payload = await read_frame(reader)
                if kind == wire.CREDIT:
                    limit = wire.window_pair(payload)[1]
            writer.write(frame(wire.DATA, offset=offset, payload=line))
            offset += len(line)

    fake.script = script
    guest = await Link().connect(fake.path, generation=None, timeout=100)
    with pytest.raises(GuestProtocolError, match="bounds"):
        async for _ in guest._lines("list", {}):
            pass


async def test_a_guest_cannot_make_us_speak_without_end(fake: FakeGuest) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(wire.HEADER.size)
        noise = frame(wire.REPLY, stream=2, payload=b"{}") * 1000
        while True:
            writer.write(noise)
            await writer.drain()

    fake.script = script
    guest = await Link().connect(fake.path, generation=None, timeout=100)
    await guest.ping()
    with pytest.raises(GuestProtocolError):
        await guest.ping()


async def test_frames_of_another_generation_are_dropped(fake: FakeGuest) -> None:
    fake.says(frame(wire.REPLY, payload=b'{"error":{"kind":"invalid","message":"old"}}', generation=7) + frame(wire.REPLY, payload=b"{}"))
    guest = await Link().connect(fake.path, generation=None, timeout=100)
    await guest.ping()
    await guest.close()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (b'{"error":{"kind":"invalid","message":"m"}}', InvalidInput),
        (b'{"error":{"kind":"not_found","message":"m"}}', NotFound),
        (b'{"error":{"kind":"what?","message":"m"}}', GuestProtocolError),
    ],
)
async def test_errors_are_of_the_tree(fake: FakeGuest, error: bytes, kind: type[Exception]) -> None:
    fake.says(frame(wire.REPLY, payload=error))
    guest = await Link().connect(fake.path, generation=None, timeout=100)
    with pytest.raises(kind, match="m"):
        await guest.ping()
    await guest.close()


async def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(GuestLost):
        await Link().connect(tmp_path / "none", generation=None, timeout=100)


async def test_no_welcome_in_time(fake: FakeGuest) -> None:
    fake.welcome = b""
    with pytest.raises(GuestLost):
        await Link().connect(fake.path, generation=None, timeout=0.01)


async def test_cancelled_while_connecting(fake: FakeGuest) -> None:
    fake.welcome = b""
    task = asyncio.create_task(Link().connect(fake.path, generation=None, timeout=100))
    while not fake.connections:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_guest_that_hangs_up_for_ever_is_lost(fake: FakeGuest) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        fake.dead = True
        writer.close()

    fake.script = script
    guest = await Link().connect(fake.path, generation=None, timeout=100)
    with pytest.raises(GuestLost):
        await guest.ping()


chunk = st.one_of(
    st.binary(max_size=100),
    st.just(reply),
    st.builds(
        frame,
        st.integers(0, 14),
        st.integers(0, 8),
        st.integers(0, 100),
        st.one_of(
            st.binary(max_size=60),
            st.sampled_from([b"{}", b"[]", b'{"exited":{}}', b'{"stdin":"broken"}', b'{"error":{"kind":"os","errno":2}}', wire.WINDOW_PAIR.pack(0, 9)]),
        ),
        st.integers(0, 2),
    ),
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chunks=st.lists(chunk, max_size=8))
def test_whatever_comes_is_an_answer_or_an_error_of_the_tree(tmp_path_factory: pytest.TempPathFactory, chunks: list[bytes]) -> None:
    async def scene() -> None:
        fake = FakeGuest(tmp_path_factory.mktemp("f") / "s")

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(wire.HEADER.size)
            for piece in chunks:
                writer.write(piece)
            fake.dead = True
            writer.close()

        fake.script = script
        await fake.serve()
        guest = await Link().connect(fake.path, generation=None, timeout=100)
        try:
            process = await guest.exec(ExecSpec(["true"]))
            async for piece in process.output():
                assert len(piece.data) <= 60
            await process.wait()
        except (GuestError, InvalidInput, NotFound):
            pass
        await guest.close()
        fake.server.close()

    asyncio.run(scene())
