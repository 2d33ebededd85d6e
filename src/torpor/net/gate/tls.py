"""TLS through the gate: the first hello is read and judged by its server name, then bytes are carried as they are.

    guest -- hello --> judged --> server           no name, or none that is allowed: an alert, and nothing of it reaches anybody
    guest <---------- answer ---- server           a HelloRetryRequest: the second hello is read like the first and must be for the same name
    guest <========= bytes =====> server

What is said inside is between the guest and the server of that name.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from torpor.model.domains import normal
from torpor.net.gate import hello
from torpor.net.gate.streams import Stream, join


class Refused(Exception):
    """`alert`: the number of the alert that the guest is told."""

    def __init__(self, alert: int) -> None:
        super().__init__(alert)
        self.alert = alert


async def read_hello(guest: Stream, first: bytes) -> tuple[str, bytes, bytes]:
    """The name, the records of the hello, and what came behind them. Raises Refused, OSError."""
    reader = hello.Hello()
    try:
        rest = reader.feed(first)
        while rest is None:
            data = await guest.receive()
            if not data:
                raise Refused(hello.DECODE_ERROR)
            rest = reader.feed(data)
        name = normal(hello.server_name(reader.message) or "")
    except hello.Broken:
        raise Refused(hello.DECODE_ERROR) from None
    if name is None:
        raise Refused(hello.UNRECOGNIZED_NAME)
    return name, reader.raw, rest


async def carry(guest: Stream, enter: Callable[[str], Awaitable[Stream]], name: str, records: bytes, rest: bytes, on_half: Callable[[], None]) -> None:
    """From the hello on. `enter(name)` judges and connects. Raises Refused, OSError."""
    server = await enter(name)
    await server.send(records)
    head = b""
    while len(head) < hello.SERVER_HEAD and (data := await server.receive()):
        head += data
        if head[0] != hello.HANDSHAKE:
            break
    try:
        again = hello.is_retry(head)
    except hello.Broken:
        raise ConnectionResetError("a ServerHello that cannot be read") from None
    await guest.send(head)
    if again:
        rest = await _second_hello(guest, server, name, rest)
    await server.send(rest)
    await join(guest, server, on_half)


async def _second_hello(guest: Stream, server: Stream, name: str, rest: bytes) -> bytes:
    """Passes on what may come before it, record by record, and it; returns what came behind."""
    while True:
        while len(rest) < hello.RECORD_HEAD or (rest[0] != hello.HANDSHAKE and len(rest) < _end(rest)):
            rest += await _more(guest)
        if rest[0] == hello.HANDSHAKE:
            found, records, rest = await read_hello(guest, rest)
            if found != name:
                raise Refused(hello.ACCESS_DENIED)
            await server.send(records)
            return rest
        end = _end(rest)
        await server.send(rest[:end])
        rest = rest[end:]


def _end(record: bytes) -> int:
    try:
        return hello.RECORD_HEAD + hello.record_size(record, hello.CHANGE_CIPHER_SPEC, hello.APPLICATION_DATA)
    except hello.Broken:
        raise ConnectionResetError("no TLS any more") from None


async def _more(guest: Stream) -> bytes:
    data = await guest.receive()
    if not data:
        raise ConnectionResetError("the guest broke off its hello")
    return data
