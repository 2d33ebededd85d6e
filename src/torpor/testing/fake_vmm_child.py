"""The fake VMM's process: maps guest RAM as a real VMM would, and does what it is told. Started as a program of its own; standard library only.

argv: memory file, 'shared' or 'private', milliseconds to live (0: no limit). Descriptor 3 listens for the monitor, 4 for the guest channel; both speak JSON
lines. The guest remembers one text, at the start of its RAM, and behind it whether it is frozen and its generation, so that all of it travels through
saving and restoring. Its disk is written to by remembering: the text goes to the overlay too.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import selectors
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

_TEXT_BYTES = 4096
_STATE_WORD = "torpor fake device state"


class Refused(Exception):
    """Told to the monitor as an error."""


class FakeMachine:
    def __init__(self, memory_file: str, shared: bool) -> None:
        flags = mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE
        fd = os.open(memory_file, os.O_RDWR if shared else os.O_RDONLY)
        self.memory = mmap.mmap(fd, 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        os.close(fd)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.paused = True
        self.overlay = -1
        self.overlay_path = ""

    def monitor(self, order: dict[str, Any]) -> dict[str, Any]:
        do = order["do"]
        if do == "load":
            with open(order["path"]) as file:
                if json.load(file)["word"] != _STATE_WORD:
                    raise ValueError("no device state")
        elif do in ("pause", "resume"):
            self.paused = do == "pause"
        elif do == "save":
            if not self.paused:
                raise Refused("not paused")
            with open(order["path"], "x") as file:
                json.dump({"word": _STATE_WORD}, file)
        elif do == "disk":
            if not os.path.exists(order["path"]):
                raise Refused(f"no such overlay {order['path']}")
            if self.overlay >= 0:
                os.close(self.overlay)
            self.overlay = os.open(order["path"], os.O_RDWR)
            self.overlay_path = order["path"]
        elif do == "quit":
            sys.exit(0)
        return {"overlay": self.overlay_path, "address": self.address, "size": len(self.memory), "paused": self.paused}

    def guest(self, order: dict[str, Any]) -> dict[str, Any]:
        if "poke" in order:
            text = order["poke"].encode()
            self.memory[:_TEXT_BYTES] = text.ljust(_TEXT_BYTES, b"\0")
            os.lseek(self.overlay, 0, os.SEEK_END)
            os.write(self.overlay, text)
        page = self.memory[_TEXT_BYTES : 2 * _TEXT_BYTES].rstrip(b"\0")
        inner: dict[str, Any] = json.loads(page) if page else {"frozen": False, "generation": 0}
        if "inner" in order:
            inner |= order["inner"]
            self.memory[_TEXT_BYTES : 2 * _TEXT_BYTES] = json.dumps(inner).encode().ljust(_TEXT_BYTES, b"\0")
        if "off" in order:
            sys.exit(0)
        return {"text": self.memory[:_TEXT_BYTES].rstrip(b"\0").decode(), **inner}


class Server:
    """Answers JSON lines on both sockets; the guest's wait while the machine is paused."""

    def __init__(self, machine: FakeMachine) -> None:
        self.machine = machine
        self.selector = selectors.DefaultSelector()
        self.held: list[tuple[socket.socket, bytes]] = []
        self.monitors: list[socket.socket] = []

    def listen(self, fd: int, is_monitor: bool) -> None:
        listener = socket.socket(fileno=fd)
        self.selector.register(listener, selectors.EVENT_READ, lambda: self.accept(listener, is_monitor))

    def accept(self, listener: socket.socket, is_monitor: bool) -> None:
        client, _ = listener.accept()
        if is_monitor:
            self.monitors.append(client)
        lines = client.makefile("rb")
        serve: Callable[[socket.socket, bytes], None] = self.serve_monitor if is_monitor else self.serve_guest

        def readable() -> None:
            try:
                line = lines.readline()
            except ConnectionResetError:
                line = b""
            if line:
                serve(client, line)
                return
            self.selector.unregister(client)
            if client in self.monitors:
                self.monitors.remove(client)
            client.close()

        self.selector.register(client, selectors.EVENT_READ, readable)

    def serve_monitor(self, client: socket.socket, line: bytes) -> None:
        try:
            answer = self.machine.monitor(json.loads(line))
        except (Refused, OSError) as error:
            answer = {"error": str(error)}
        _send(client, answer)
        if not self.machine.paused:
            held, self.held = self.held, []
            for waiting, order in held:
                self.serve_guest(waiting, order)

    def serve_guest(self, client: socket.socket, line: bytes) -> None:
        if self.machine.paused:
            self.held.append((client, line))
            return
        order = json.loads(line)
        if "off" in order:
            for monitor in self.monitors:
                monitor.sendall(b'{"event": "guest_shutdown"}\n')
        _send(client, self.machine.guest(order))

    def run(self) -> None:
        while True:
            for key, _ in self.selector.select():
                key.data()


def _send(client: socket.socket, answer: dict[str, Any]) -> None:
    """To who may have been killed while it was waiting: a VMM lives on."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        client.sendall(json.dumps(answer).encode() + b"\n")


def main() -> None:
    memory_file, sharing, milliseconds = sys.argv[1:4]
    if int(milliseconds):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, int(milliseconds) / 1000)
    server = Server(FakeMachine(memory_file, sharing == "shared"))
    server.listen(3, True)
    server.listen(4, False)
    server.run()


if __name__ == "__main__":
    main()
