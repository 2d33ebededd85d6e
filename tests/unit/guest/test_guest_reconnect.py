"""The channel breaks in the middle of everything: nothing is lost, doubled, or done twice."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from guest_world import Agent, Cutter

from torpor.guestlink.guest import RemoteGuest
from torpor.guestlink.link import Link
from torpor.model.errors import GuestLost, GuestProtocolError
from torpor.model.sandbox import Identity
from torpor.ports.guest import ExecSpec, Exited, StreamName, Wake


def wake(generation: int) -> Wake:
    return Wake(generation=generation, clock=1.0, entropy=bytes(64), identity=Identity("a" * 25, "box", "0" * 32))


@pytest.fixture
async def cut_guest(cutter: Cutter) -> AsyncIterator[RemoteGuest]:
    session = await Link().connect(cutter.path, generation=None, timeout=100)
    yield session
    await session.close()


async def output(guest: RemoteGuest, *argv: str) -> bytes:
    process = await guest.exec(ExecSpec(argv))
    data = b"".join([piece.data async for piece in process.output() if piece.stream is StreamName.STDOUT])
    assert await process.wait() == Exited(0)
    return data


async def test_a_broken_channel_is_opened_again(cut_guest: RemoteGuest, cutter: Cutter) -> None:
    for _ in range(5):
        cutter.cut()
        await cut_guest.ping()


@pytest.mark.parametrize("seed", range(6))
async def test_everything_at_once_through_many_cuts(agent: Agent, cutter: Cutter, seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    cutter.budget = [chance.choice([500, 5000, 50_000, 500_000]) + chance.randrange(500) for _ in range(25)]
    guest = await Link().connect(cutter.path, generation=None, timeout=100)
    data = chance.randbytes(1_500_000)
    (tmp_path / "read").write_bytes(data)

    async def echo() -> None:
        process = await guest.exec(ExecSpec(["cat"], stdin=True))

        async def send() -> None:
            for at in range(0, len(data), 40_000):
                await process.write(data[at : at + 40_000])
            await process.close_stdin()

        sending = asyncio.create_task(send())
        got = b"".join([piece.data async for piece in process.output()])
        await sending
        assert got == data
        assert await process.wait() == Exited(0)

    async def upload() -> None:
        info = await guest.write_file(str(tmp_path / "written"), data)
        assert info.size == len(data)
        assert (tmp_path / "written").read_bytes() == data

    async def download() -> None:
        assert b"".join([piece async for piece in guest.read_file(str(tmp_path / "read"))]) == data

    async def count() -> None:
        for number in range(30):
            await guest.write_file(str(tmp_path / "log"), f"{number}\n".encode(), append=True)
        assert (tmp_path / "log").read_text() == "".join(f"{n}\n" for n in range(30))

    async def tcp() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while piece := await reader.read(65536):
                writer.write(piece)
                await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        stream = await guest.connect(server.sockets[0].getsockname()[1])

        async def send() -> None:
            await stream.write(data[:700_000])
            await stream.close_write()

        sending = asyncio.create_task(send())
        got = b""
        while piece := await stream.read():
            got += piece
        await sending
        assert got == data[:700_000]
        stream.close()
        server.close()

    await asyncio.gather(echo(), upload(), download(), count(), tcp())
    assert cutter.cuts >= 5
    await guest.close()


async def test_a_request_whose_answer_was_lost_is_not_done_again(agent: Agent, cutter: Cutter, tmp_path: Path) -> None:
    """Cuts right after the welcome, so that every first answer is lost."""
    guest = await Link().connect(cutter.path, generation=None, timeout=100)
    marks = str(tmp_path / "marks")
    for number in range(10):
        task = asyncio.create_task(output(guest, "sh", "-c", f"echo {number} >> {marks}; echo {number}"))
        await asyncio.sleep(0)
        cutter.cut()
        assert await task == f"{number}\n".encode()
    assert (tmp_path / "marks").read_text() == "".join(f"{n}\n" for n in range(10))
    await guest.close()


async def test_an_end_during_the_break_is_not_missed(cut_guest: RemoteGuest, cutter: Cutter, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go")
    process = await cut_guest.exec(ExecSpec(["sh", "-c", f"read x < {tmp_path}/go; echo late; exit 3"]))
    cutter.cut()
    (tmp_path / "go").write_text("\n")
    assert [piece.data async for piece in process.output()] == [b"late\n"]
    assert await process.wait() == Exited(3)


async def test_a_second_host_takes_over_and_finds_the_command(agent: Agent) -> None:
    first = await Link().connect(agent.socket, generation=None, timeout=100)
    process = await first.exec(ExecSpec(["sh", "-c", "echo begin; read x; echo $x"], stdin=True))
    assert (await anext(process.output())).data == b"begin\n"
    await first.close()
    second = await Link().connect(agent.socket, generation=None, timeout=100)
    (found,) = await second.processes()
    again = await second.attach(found.exec_id, stdout_offset=6)
    await again.write(b"word\n")
    assert [(p.offset, p.data) async for p in again.output()] == [(6, b"word\n")]
    assert await again.wait() == Exited(0)
    await second.close()


async def test_an_agent_that_died_is_lost(agent: Agent) -> None:
    guest = await Link().connect(agent.socket, generation=None, timeout=100)
    process = await guest.exec(ExecSpec(["sleep", "1000"]))
    agent.may_die = True
    agent.process.kill()
    agent.process.wait()
    for attempt in (process.wait(), guest.ping(), anext(process.output()), guest.exec(ExecSpec(["true"]))):
        with pytest.raises(GuestLost):
            await attempt
    await guest.close()
    os.killpg(process.pid, 9)


async def test_a_wake_ends_what_the_earlier_life_had_under_way(agent: Agent) -> None:
    guest = await Link().connect_and_wake(agent.socket, wake(5), timeout=100)
    process = await guest.exec(ExecSpec(["sh", "-c", "read x; echo $x"], stdin=True))
    await guest.wake(wake(6))
    assert guest.generation == 6
    with pytest.raises(GuestLost):
        await process.wait()
    again = await guest.attach(process.exec_id)
    await again.write(b"still here\n")
    assert [p.data async for p in again.output()] == [b"still here\n"]
    await guest.close()


async def test_the_same_wake_again_is_a_retry_and_an_older_one_is_refused(agent: Agent) -> None:
    for _ in range(2):
        guest = await Link().connect_and_wake(agent.socket, wake(5), timeout=100)
        assert guest.generation == 5
        await guest.ping()
        await guest.close()
    with pytest.raises(GuestProtocolError):
        await Link().connect_and_wake(agent.socket, wake(4), timeout=100)
    with pytest.raises(GuestProtocolError):
        await Link().connect(agent.socket, generation=4, timeout=100)
    guest = await Link().connect(agent.socket, generation=5, timeout=100)
    await guest.ping()
    await guest.close()


async def test_quiesce_is_quiet_until_thaw(agent: Agent) -> None:
    guest = await Link().connect(agent.socket, generation=None, timeout=100)
    process = await guest.exec(ExecSpec(["sh", "-c", "read x; echo said"], stdin=True))
    assert (await guest.quiesce()).frozen
    await process.write(b"\n")
    for _ in range(20):
        await guest.ping()
    first = asyncio.ensure_future(anext(process.output()))
    await guest.ping()
    assert not first.done()
    await guest.thaw()
    assert (await first).data == b"said\n"
    assert await process.wait() == Exited(0)
    await guest.close()
