"""A rename is two events. Where the second comes late to its reader, it is a rename all the same; where there is none, the name was removed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from torpor.guest.watch import _EVENT, _Watch


class Timers:
    """Of the agent's loop, only what a watch needs."""

    def __init__(self) -> None:
        self.due: list[Callable[[], None]] = []

    def register(self, *_: object) -> None:
        return

    unregister = register

    def later(self, _seconds: float, call: Callable[[], None]) -> Any:
        self.due.append(call)
        return SimpleNamespace(cancel=lambda: self.due.remove(call))


class Sender:
    pending, ended = 0, False

    def __init__(self) -> None:
        self.said: list[tuple[str, str, str]] = []

    def write(self, line: bytes) -> None:
        event = json.loads(line)
        self.said.append((event["kind"], event["path"], event["new_path"]))


@pytest.fixture
def timers() -> Timers:
    return Timers()


@pytest.fixture
def sender() -> Sender:
    return Sender()


@pytest.fixture
def watch(tmp_path: Path, timers: Timers, sender: Sender) -> Iterator[Any]:
    (tmp_path / "a").touch()
    made: Any = _Watch(timers, str(tmp_path), False, False)  # type: ignore[arg-type]
    made.begin(SimpleNamespace(sender=sender, wake=lambda: None, on_close=None, on_room=None))
    yield made
    made.close()


def halves(watch: Any, tmp_path: Path, old: str, new: str) -> tuple[bytes, bytes]:
    """The two events of a rename, as they are read."""
    (tmp_path / old).rename(tmp_path / new)
    data = os.read(watch._fd, 65536)
    first = _EVENT.size + _EVENT.unpack_from(data)[3]
    return data[:first], data[first:]


def test_a_half_that_waits_in_the_queue_is_found_when_the_time_is_over(watch: Any, timers: Timers, sender: Sender, tmp_path: Path) -> None:
    first, second = halves(watch, tmp_path, "a", "b")
    watch._events(first)
    watch._more, watch._on_readable = lambda: True, lambda _: watch._events(second)
    timers.due.pop()()
    assert (sender.said, timers.due) == ([("renamed", "a", "b")], [])


def test_a_half_without_another_was_removed(watch: Any, timers: Timers, sender: Sender, tmp_path: Path) -> None:
    watch._events(halves(watch, tmp_path, "a", "b")[0])
    assert sender.said == []
    timers.due.pop()()
    assert (sender.said, timers.due) == ([("removed", "a", "")], [])


def test_a_half_waits_while_a_directory_is_looked_through(watch: Any, timers: Timers, sender: Sender, tmp_path: Path) -> None:
    watch._events(halves(watch, tmp_path, "a", "b")[0])
    watch._holding = True
    timers.due.pop()()
    assert (sender.said, len(timers.due)) == ([], 1)


def test_the_time_of_one_rename_is_not_counted_for_the_next(watch: Any, timers: Timers, sender: Sender, tmp_path: Path) -> None:
    first, second = halves(watch, tmp_path, "a", "b")
    watch._events(first)
    watch._events(second)
    assert timers.due == []
    watch._events(halves(watch, tmp_path, "b", "c")[0])
    assert (sender.said, len(timers.due)) == ([("renamed", "a", "b")], 1)
