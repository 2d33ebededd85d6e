"""Requests to one owner, performed one after another in a task of its own. A request belongs to the owner: a caller that leaves changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from torpor.log import Log
from torpor.model.errors import Denied, DenyReason, TorporError

log = Log()

Work = Callable[[], Awaitable[Any]]


@dataclass(slots=True)
class _Order:
    work: Work
    answer: asyncio.Future[Any]
    preemptible: bool = True
    task: asyncio.Task[Any] | None = None


class Owner:
    """The queue and the task of the sandbox `sandbox_id`. `over` is notified after each request."""

    def __init__(self, sandbox_id: str) -> None:
        self.over = asyncio.Condition()
        self._id = sandbox_id
        self._inbox: asyncio.Queue[_Order] = asyncio.Queue()
        self._current: _Order | None = None
        self._ended = False
        self._task = asyncio.create_task(self._own(), name=f"owner-{sandbox_id}")

    async def ask(self, work: Work, *, preemptible: bool = True) -> Any:
        """Performs `work` in its turn; returns what it returns. Raises what it raises; Denied when it was preempted, or the owner has gone."""
        if self._ended:
            raise Denied(DenyReason.ENDED, f"Sandbox {self._id} was let go of.")
        return await asyncio.shield(self._put(work, preemptible))

    def tell(self, work: Work, *, preemptible: bool = False) -> None:
        """The same for work nobody waits for."""
        self._put(work, preemptible)

    def preempt(self) -> None:
        """Cancels what is under way, unless it must not be."""
        if self._current is not None and self._current.preemptible and self._current.task is not None:
            self._current.task.cancel()

    def end(self) -> None:
        """Called in a turn: it is the last. What waits is denied."""
        self._ended = True

    def _put(self, work: Work, preemptible: bool) -> asyncio.Future[Any]:
        order = _Order(work, asyncio.get_running_loop().create_future(), preemptible)
        self._inbox.put_nowait(order)
        return order.answer

    async def _own(self) -> None:
        try:
            while not self._ended:
                order = self._current = await self._inbox.get()
                order.task = asyncio.ensure_future(_run(order.work))
                await asyncio.wait({order.task})
                self._answer(order, order.task)
                self._current = None
                async with self.over:
                    self.over.notify_all()
        finally:  # also when the event loop is torn down: who asked, or asks now, must not wait for an owner that is no more
            self._ended = True
            let_go = Denied(DenyReason.ENDED, f"Sandbox {self._id} was let go of.")
            if self._current is not None:
                _fail(self._current.answer, let_go)
            while not self._inbox.empty():
                _fail(self._inbox.get_nowait().answer, let_go)

    def _answer(self, order: _Order, task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            _fail(order.answer, Denied(DenyReason.ENDING, f"Sandbox {self._id} is being killed."))
            return
        error = task.exception()
        if error is None:
            if not order.answer.done():
                order.answer.set_result(task.result())
            return
        if not isinstance(error, TorporError):
            log.error("operation_failed", sandbox=self._id, exc_info=error)
        _fail(order.answer, error)


async def _run(work: Work) -> Any:
    return await work()


def _fail(answer: asyncio.Future[Any], error: BaseException) -> None:
    if not answer.done():
        answer.set_exception(error)
        answer.exception()
