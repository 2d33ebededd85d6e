"""The agent's own host, for a moment at boot: it says over a socket pair what hosts say after every start, and before every pause.

A guest that was restored runs everything for the first time again: QEMU has translated nothing yet, and what Python and the loader do only once (specialise
bytecode, resolve symbols, fill caches) would be done, and translated, in each restored guest. After a few rounds it is in the memory that is saved.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from typing import Any

from torpor.guest.loop import Loop
from torpor.guest.session import Session
from torpor.wire import guest as wire

_ROUNDS = 6
"""CPython 3.13 specialises an instruction when it runs for the second time, and settles within a few more."""
_SECONDS = 10.0
"""After which a rehearsal that does not get on is given up."""
_HOST_NAME = "sandbox-00000000"
Json = dict[str, Any]


class Rehearsal:
    """`play` leaves the session without a port, its generation raised; what it started has ended."""

    def __init__(self, loop: Loop, session: Session) -> None:
        self._loop = loop
        self._session = session
        self._ours, theirs = socket.socketpair()
        self._ours.setblocking(False)
        theirs.setblocking(False)
        session.use_port(theirs.detach(), is_socket=True)
        self._reader = wire.FrameReader(lambda header: header.type == wire.WELCOME, watchful=False)
        self._frames: deque[wire.Frame] = deque()
        self._generation = self._request = 0
        self._end = time.monotonic() + _SECONDS

    def play(self) -> None:
        try:
            for _ in range(_ROUNDS):
                if not self._round():
                    break
        finally:
            self._ours.close()
            self._turn()
            self._loop.catch_up()

    def _round(self) -> bool:
        """One life of a sandbox; False if it got stuck."""
        self._generation += 1
        self._request = 0
        self._reader.hunting = True
        identity = {"sandbox_id": "0" * 25, "hostname": _HOST_NAME, "machine_id": "0" * 32, "names": {}}
        wake = {"clock": time.time(), "entropy": os.urandom(64).hex(), "identity": identity, "network": None, "disk_bytes": 0}
        hello = {"versions": [wire.VERSION], "link": self._generation, "wake": wake}
        self._send(wire.HELLO, 0, hello, offset=self._generation)
        if self._wait(wire.WELCOME) is None:
            return False
        none = {"stdin": False, "terminal": None, "timeout": None}
        command = {"argv": ["/bin/sh", "-c", "true"], "env": {}, "cwd": "", "user": "", "tag": "", "limit": 1 << 20} | none
        return all(self._ask(*step) for step in (("exec", command), ("ping", {}), ("quiesce", {}), ("thaw", {"clock": time.time()})))

    def _ask(self, operation: str, fields: Json) -> bool:
        """A request to its answer; a command to its end, if it began."""
        self._request += 1
        self._send(wire.REQUEST, self._request * 2, {"op": operation} | fields)
        answer = self._wait(wire.REPLY)
        if answer is not None and "exec_id" in answer:
            return self._wait(wire.EVENT) is not None
        return answer is not None

    def _send(self, type_: int, stream: int, fields: Json, offset: int = 0) -> None:
        self._ours.send(wire.encode(type_, stream, self._generation, offset, wire.to_json(fields)))

    def _wait(self, type_: int) -> Json | None:
        """What the next frame of this type says."""
        while time.monotonic() < self._end:
            while self._frames:
                frame = self._frames.popleft()
                if frame.type == type_:
                    return wire.from_json(frame.payload)
            self._turn()
            try:
                self._frames += self._reader.feed(self._ours.recv_into(self._reader.space()))
            except BlockingIOError:
                continue
        return None

    def _turn(self) -> None:
        """A turn that does not wait for ever."""
        timer = self._loop.later(0.1, lambda: None)
        self._loop.turn()
        timer.cancel()
