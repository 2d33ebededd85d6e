"""How an answer leaves: head and body of a short one in one write, and no head kept back for a body that is late."""

from __future__ import annotations

import asyncio

import pytest

from torpor.api.protocol import _Answer


class Wire(asyncio.Transport):
    """What was written, and when it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.closed_after = -1

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))

    def close(self) -> None:
        self.closed_after = len(self.written)

    def is_closing(self) -> bool:
        return self.closed_after >= 0


@pytest.fixture
async def wire() -> Wire:
    return Wire()


@pytest.fixture
async def answer(wire: Wire) -> _Answer:
    return _Answer(wire, asyncio.get_running_loop())


async def test_head_and_body_of_one_turn_are_one_write(wire: Wire, answer: _Answer) -> None:
    answer.write(b"head ")
    answer.write(b"body")
    await asyncio.sleep(0)
    assert wire.written == [b"head body"]


async def test_a_head_waits_for_this_turn_only(wire: Wire, answer: _Answer) -> None:
    answer.write(b"head ")
    await asyncio.sleep(0)
    assert wire.written == [b"head "]
    answer.write(b"first ")
    answer.write(b"second")
    assert wire.written == [b"head ", b"first ", b"second"]


async def test_an_end_leaves_nothing_behind(wire: Wire, answer: _Answer) -> None:
    answer.write(b"head")
    answer.close()
    assert answer.is_closing()
    assert (wire.written, wire.closed_after) == ([b"head"], 1)
    await asyncio.sleep(0)
    assert wire.written == [b"head"]
