"""How a program without an event loop uses the asynchronous client: on a loop of its own, in a thread.

    caller's thread --run(coroutine)--> loop's thread
                    <--calls of the caller's functions, one by one, then the result--

Functions that the caller gave (for output, for progress) are called in the caller's thread, which waits there anyhow: so they may use the client themselves.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
A = TypeVar("A")


class Portal:
    """One loop and its thread. `close` ends both."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="torpor-client", daemon=True)
        self._thread.start()
        self._closed = False

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        self.loop.close()

    @property
    def open(self) -> bool:
        return not self._closed

    def run(self, work: Awaitable[T]) -> T:
        """The result of `work`. An exception in the waiting thread (Ctrl-C) cancels it, and comes out when it has ended."""
        return Call(self).run(work)

    def iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        """The items as they come. Closed early, it closes the other too."""
        try:
            while True:
                try:
                    item = self.run(items.__anext__())
                except StopAsyncIteration:
                    return
                yield item
        finally:
            aclose = getattr(items, "aclose", None)
            if aclose is not None and not self._closed:
                self.run(aclose())

    def close(self) -> None:
        """Idempotent. What still runs is cancelled."""
        if self._closed:
            return
        self._closed = True
        self.run(_cancel_all())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()


class Call:
    """One call into the loop."""

    def __init__(self, portal: Portal) -> None:
        self._portal = portal
        self._said: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    def here(self, function: Callable[[A], Any] | None) -> Callable[[A], Awaitable[None]] | None:
        """A function of the caller's, to be called from the loop."""
        if function is None:
            return None
        loop = self._portal.loop

        async def called(value: A) -> None:
            done: asyncio.Future[None] = loop.create_future()

            def call() -> None:
                try:
                    function(value)
                except BaseException as error:
                    loop.call_soon_threadsafe(_settle, done, error)
                    if not isinstance(error, Exception):
                        raise
                else:
                    loop.call_soon_threadsafe(_settle, done, None)

            self._said.put(call)
            await done

        return called

    def run(self, work: Awaitable[T]) -> T:
        """See Portal.run."""
        if threading.current_thread() is self._portal._thread:
            raise RuntimeError("The client cannot be used from its own thread.")

        async def whole() -> T:
            return await work

        tasks: list[asyncio.Task[T]] = []

        def begin() -> None:
            tasks.append(self._portal.loop.create_task(whole()))
            tasks[0].add_done_callback(lambda _: self._said.put(None))

        self._portal.loop.call_soon_threadsafe(begin)
        try:
            while (call := self._said.get()) is not None:
                call()
        except BaseException:
            self._portal.loop.call_soon_threadsafe(lambda: tasks[0].cancel())
            while self._said.get() is not None:
                pass
            raise
        return tasks[0].result()


def _settle(done: asyncio.Future[None], error: BaseException | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error if isinstance(error, Exception) else asyncio.CancelledError())
