"""The agent's one event loop: epoll, timers, threads for calls that may block, work for idle moments. No periodic timer; an idle agent never wakes."""

from __future__ import annotations

import heapq
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
Handler = Callable[[int], None]
_MAX_THREADS = 32


class Timer:
    """A call due at `due` (time.monotonic seconds); `cancel` is idempotent."""

    __slots__ = ("call", "due")

    def __init__(self, due: float, call: Callable[[], None]) -> None:
        self.due = due
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None

    def __lt__(self, other: Timer) -> bool:
        return self.due < other.due


class Threads:
    """Runs blocking work. Threads are made when none is idle, up to 32, and kept; one that hangs in the kernel costs itself only."""

    def __init__(self) -> None:
        self._work: deque[Callable[[], None]] = deque()
        self._ready = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._idle = 0
        self._count = 0

    def submit(self, work: Callable[[], None]) -> None:
        """Only the loop's thread calls this. `work` must not raise."""
        self._work.append(work)
        if self._idle < len(self._work) and self._count < _MAX_THREADS:
            self.grow()
        self._ready.release()

    def grow(self) -> None:
        """One thread more; at boot, so that the first request after a restore finds one warm."""
        self._count += 1
        with self._lock:
            self._idle += 1
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            self._ready.acquire()
            with self._lock:
                self._idle -= 1
            work = self._work.popleft()
            work()
            with self._lock:
                self._idle += 1


class Loop:
    """`report` gets exceptions that escape a handler: nothing ends the loop but `stop`."""

    def __init__(self, report: Callable[[BaseException], None]) -> None:
        self._report = report
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._timers: list[Timer] = []
        self._posted: deque[Callable[[], None]] = deque()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._soon: deque[Callable[[], None]] = deque()
        self._idle: deque[Callable[[], None]] = deque()
        self._running = False
        self.after: Callable[[], None] = lambda: None
        self.threads = Threads()
        self.register(self._bell, select.EPOLLIN, self._ring)

    def register(self, fd: int, events: int, handler: Handler) -> None:
        self._handlers[fd] = handler
        self._epoll.register(fd, events)

    def hand_over(self, fd: int, handler: Handler) -> None:
        """Another handler for a registered descriptor, without a system call."""
        self._handlers[fd] = handler

    def modify(self, fd: int, events: int) -> None:
        self._epoll.modify(fd, events)

    def unregister(self, fd: int) -> None:
        """Idempotent; before the descriptor is closed."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def later(self, seconds: float, call: Callable[[], None]) -> Timer:
        timer = Timer(time.monotonic() + seconds, call)
        heapq.heappush(self._timers, timer)
        return timer

    def soon(self, call: Callable[[], None]) -> None:
        """In the next turn; for work cut into pieces, so that no piece starves the others."""
        self._soon.append(call)

    def idle(self, call: Callable[[], None]) -> None:
        """Once nothing else is to be done: for what makes later requests faster, so that it never delays one."""
        self._idle.append(call)

    def catch_up(self) -> None:
        """Does now what waited for an idle moment."""
        while self._idle:
            self._guard(self._idle.popleft())

    def post(self, call: Callable[[], None]) -> None:
        """From any thread: run `call` in the loop's."""
        self._posted.append(call)
        os.eventfd_write(self._bell, 1)

    def in_thread(self, work: Callable[[], T], done: Callable[[T | None, BaseException | None], None]) -> None:
        """Runs `work` in a thread, then `done(result, error)` in the loop."""

        def run() -> None:
            result: T | None = None
            failure: BaseException | None = None
            try:
                result = work()
            except BaseException as error:
                failure = error
            self.post(lambda: done(result, failure))

        self.threads.submit(run)

    def run(self) -> None:
        """Until `stop`."""
        self._running = True
        while self._running:
            self.turn()

    def turn(self) -> None:
        """Waits for something to happen, and does what there is to do."""
        ready = self._wait()
        for fd, events in ready:
            handler = self._handlers.get(fd)
            if handler is not None:
                try:
                    handler(events)
                except Exception as error:
                    self._report(error)
        if self._soon:
            for _ in range(len(self._soon)):
                self._guard(self._soon.popleft())
        elif self._idle and not ready:
            self._guard(self._idle.popleft())
        if self._timers:
            self._fire()
        self._guard(self.after)

    def stop(self) -> None:
        self._running = False

    def close(self) -> None:
        """After `run`: gives the descriptors back."""
        self._epoll.close()
        os.close(self._bell)

    def _wait(self) -> list[tuple[int, int]]:
        while self._timers and self._timers[0].call is None:
            heapq.heappop(self._timers)
        if self._soon or self._idle:
            timeout = 0.0
        elif self._timers:
            timeout = max(0.0, self._timers[0].due - time.monotonic())
        else:
            timeout = -1.0
        return self._epoll.poll(timeout)

    def _fire(self) -> None:
        while self._timers and (self._timers[0].call is None or self._timers[0].due <= time.monotonic()):
            call = heapq.heappop(self._timers).call
            if call is not None:
                self._guard(call)

    def _ring(self, _events: int) -> None:
        os.eventfd_read(self._bell)
        for _ in range(len(self._posted)):
            self._guard(self._posted.popleft())

    def _guard(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            self._report(error)
