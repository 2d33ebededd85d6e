"""Cancels an operation at each of its suspensions in turn: the systematic way to ask whether a cancel leaves anything behind."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")


@types.coroutine
def _cancel_at(work: Coroutine[Any, Any, T], number: int) -> Generator[Any, Any, T]:
    """Drives `work`; when it suspends for the `number`th time (from 1), cancels the task it runs in, as a caller would."""
    task = asyncio.current_task()
    assert task is not None
    suspensions = 0
    throw: BaseException | None = None
    while True:
        try:
            waited_for = work.send(None) if throw is None else work.throw(throw)
        except StopIteration as done:
            result: T = done.value
            return result
        suspensions += 1
        if suspensions == number:
            asyncio.get_running_loop().call_soon(task.cancel)
        throw = None
        try:
            yield waited_for
        except BaseException as error:
            throw = error


async def cancel_everywhere(
    work: Callable[[], Coroutine[Any, Any, T]],
    completed: Callable[[T], Awaitable[None]],
    after_each: Callable[[], Awaitable[None]],
    limit: int = 500,
) -> int:
    """Runs `work()` again and again, cancelled at its 1st, 2nd, ... suspension, with `after_each` after every run, until one run ends without having been
    cancelled; its result goes to `completed`. Returns the number of runs that were cancelled."""
    for number in range(1, limit):
        task = asyncio.ensure_future(_run(work(), number))
        await asyncio.wait({task})
        if task.cancelled():
            await after_each()
            continue
        await completed(task.result())
        await after_each()
        return number - 1
    raise AssertionError(f"the operation suspends {limit} times or more")


async def _run(work: Coroutine[Any, Any, T], number: int) -> T:
    return await _cancel_at(work, number)
