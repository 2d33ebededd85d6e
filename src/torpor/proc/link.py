"""The daemon's end of the keeper: starts one when none answers, asks, and hands exits to whoever waits."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torpor.durable import files
from torpor.model.errors import HostError
from torpor.proc.keeper import protocol

_START_TRIES = 3
_HELLO_SECONDS = 20.0
ANSWER_SECONDS = 60.0
"""A keeper that does not answer for so long, because a step of a child's start hangs, is as good as dead."""
_SOURCE = Path(__file__).resolve().parents[2]
_BOOT = "import sys; sys.path.insert(0, sys.argv.pop(1)); from torpor.proc.keeper.main import main; main()"

ExitHandler = Callable[[int, int, dict[str, Any]], None]
"""Called with (pid, start time, record)."""


class KeeperLink:
    """One connection. When it is lost, everything pending fails with ConnectionError and `on_lost` is called once."""

    def __init__(self, connection: socket.socket, on_exit: ExitHandler, on_lost: Callable[[], None]) -> None:
        self._socket = connection
        self._on_exit = on_exit
        self._on_lost = on_lost
        self._pending: dict[int, asyncio.Future[tuple[dict[str, Any], list[int]]]] = {}
        self._next_id = 1  # 0 is the hello's
        self._loop = asyncio.get_running_loop()
        self._sending = asyncio.Lock()  # one writer per socket in the event loop: a second one would take the first one's place, and that one wait for ever
        self.greeting: dict[str, Any] = {}
        connection.setblocking(False)
        self._loop.add_reader(connection.fileno(), self._readable)

    @property
    def lost(self) -> bool:
        return self._socket.fileno() < 0

    @classmethod
    async def open(cls, home: Path, on_exit: ExitHandler, on_lost: Callable[[], None]) -> KeeperLink:
        """Connects to the home's keeper, starting it when there is none. Raises HostError when it does not come up."""
        problem: Exception | None = None
        for _ in range(_START_TRIES):
            connection = connect(home) or await _start(home)
            link = cls(connection, on_exit, on_lost)
            try:
                async with asyncio.timeout(_HELLO_SECONDS):
                    link.greeting, _ = await link.ask({"op": "hello"})
                return link
            except (ConnectionError, TimeoutError) as error:  # it was just leaving, or something else listens there
                problem = error
                link._lose(quietly=True)
            except BaseException:
                link._lose(quietly=True)
                raise
        raise HostError(f"The keeper of {home} does not start: {problem!r}.", mend=f"See {home}/keeper.log.")

    async def ask(self, message: dict[str, Any], fds: Sequence[int] = ()) -> tuple[dict[str, Any], list[int]]:
        """Sends a request and returns the answer with its descriptors, which the caller then owns. Raises ConnectionError, also when no answer came in
        ANSWER_SECONDS: the connection is given up then, and a child that is born later is killed by the keeper. A cancelled request is still carried out."""
        if self.lost:
            raise ConnectionResetError("the keeper is gone")
        if message["op"] == "hello":
            number = 0
        else:
            number = self._next_id
            self._next_id += 1
        answer: asyncio.Future[tuple[dict[str, Any], list[int]]] = self._loop.create_future()
        self._pending[number] = answer
        packet = protocol.encode({**message, "id": number})
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                async with self._sending:
                    await self._send(packet, fds)
                return await answer
        except TimeoutError:
            self._lose()
            raise ConnectionResetError(f"the keeper said nothing for {ANSWER_SECONDS:g} s") from None
        finally:
            self._pending.pop(number, None)

    async def _send(self, packet: bytes, fds: Sequence[int]) -> None:
        while True:
            try:
                socket.send_fds(self._socket, [packet], list(fds))
                return
            except BlockingIOError:
                await self._writable()
            except OSError as error:
                self._lose()
                raise ConnectionResetError(str(error)) from error

    async def _writable(self) -> None:
        ready = asyncio.Event()
        self._loop.add_writer(self._socket.fileno(), ready.set)
        try:
            await ready.wait()
        finally:
            if not self.lost:
                self._loop.remove_writer(self._socket.fileno())

    def _readable(self) -> None:
        try:
            packet, fds, _, _ = socket.recv_fds(self._socket, protocol.PACKET, protocol.MAX_FDS)
        except BlockingIOError:
            return
        except OSError:
            packet, fds = b"", []
        if not packet:
            self._lose()
            return
        message = protocol.decode(packet)
        if message["op"] == "exit":
            self._on_exit(message["pid"], message["start_time"], message["record"])
            return
        waiting = self._pending.get(message.get("id", 0))
        if waiting is not None and not waiting.done():
            waiting.set_result((message, fds))
            return
        for fd in fds:
            os.close(fd)

    def _lose(self, *, quietly: bool = False) -> None:
        if self.lost:
            return
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
        for waiting in self._pending.values():
            if not waiting.done():
                waiting.set_exception(ConnectionResetError("the keeper is gone"))
        if not quietly:
            self._on_lost()

    def close(self) -> None:
        """Hangs up; the keeper stays while it has children."""
        self._lose(quietly=True)


def connect(home: Path) -> socket.socket | None:
    """None when nobody listens."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    directory = os.open(home, os.O_PATH | os.O_DIRECTORY)
    try:
        connection.connect(f"/proc/self/fd/{directory}/{protocol.socket_name()}")  # through the descriptor: a home's path may exceed 107 bytes
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    except OSError:
        connection.close()
        raise
    finally:
        os.close(directory)
    return connection


def _listen(home: Path) -> socket.socket:
    name = protocol.socket_name()
    (home / name).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    directory = os.open(home, os.O_PATH | os.O_DIRECTORY)
    mask = os.umask(0o177)
    try:
        listener.bind(f"/proc/self/fd/{directory}/{name}")
        listener.listen(16)
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(mask)
        os.close(directory)
    return listener


async def _start(home: Path) -> socket.socket:
    """Opens the socket first, then starts the keeper on it: a connection waits in the backlog, nothing polls."""
    with files.disk_errors(f"starting the keeper of {home}"):
        listener = _listen(home)
        try:
            log = os.open(home / "keeper.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError:
            listener.close()
            raise
    try:
        starter = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-S",
            "-c",
            _BOOT,
            str(_SOURCE),
            str(home),
            str(listener.fileno()),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
            pass_fds=(listener.fileno(),),
            start_new_session=True,
        )
        try:
            await starter.wait()
        except asyncio.CancelledError:
            await asyncio.shield(starter.wait())
            raise
    finally:
        listener.close()
        os.close(log)
    connection = connect(home)
    if connection is None:
        raise HostError(f"The keeper of {home} ended at once.", mend=f"See {home}/keeper.log.")
    return connection
