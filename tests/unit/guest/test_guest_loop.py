"""The agent's loop by itself."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator

import pytest

from torpor.guest.loop import Loop


@pytest.fixture
def reports() -> list[BaseException]:
    return []


@pytest.fixture
def loop(reports: list[BaseException]) -> Iterator[Loop]:
    loop = Loop(reports.append)
    yield loop
    loop.close()


def test_idle_work_waits_until_nothing_else_is_to_be_done(loop: Loop) -> None:
    done: list[str] = []
    read, write = os.pipe()
    loop.register(read, select.EPOLLIN, lambda _events: done.append(os.read(read, 1).decode()))
    loop.idle(lambda: done.append("idle"))
    os.write(write, b"12")
    for _ in range(3):
        loop.turn()
    assert done == ["1", "2", "idle"]
    loop.unregister(read)
    os.close(read)
    os.close(write)


def test_soon_comes_before_idle(loop: Loop) -> None:
    done: list[str] = []
    loop.idle(lambda: done.append("idle"))
    loop.soon(lambda: done.append("soon"))
    loop.turn()
    loop.turn()
    assert done == ["soon", "idle"]


def test_catching_up_does_idle_work_at_once_and_survives_what_fails(loop: Loop, reports: list[BaseException]) -> None:
    done: list[str] = []
    error = ValueError("broken")

    def fail() -> None:
        raise error

    loop.idle(fail)
    loop.idle(lambda: done.append("idle"))
    loop.catch_up()
    assert (done, reports) == (["idle"], [error])


def test_a_descriptor_changes_hands(loop: Loop) -> None:
    done: list[str] = []
    read, write = os.pipe()
    loop.register(read, select.EPOLLIN, lambda _events: done.append("old"))
    loop.hand_over(read, lambda _events: done.append("new"))
    os.write(write, b"x")
    loop.turn()
    assert done == ["new"]
    loop.unregister(read)
    os.close(read)
    os.close(write)
