"""The gate's process. Descriptors 3 and 4: the socket that the guest's connections are led to, and the control socket; argv: the file with its rules."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import sys
from pathlib import Path

from torpor.net.gate import rules
from torpor.net.gate.lookup import Lookup
from torpor.net.gate.serve import Gate
from torpor.net.plan import DNS_PORT, GATEWAY

LISTENER, CONTROL = 3, 4


async def serve(listener: socket.socket, control: socket.socket, file: Path) -> None:
    """For ever. What cannot be read as rules ends it: nothing passes then."""
    gate = Gate(listener, Lookup((str(GATEWAY), DNS_PORT)), rules.read(file))
    loop = asyncio.get_running_loop()
    control.setblocking(False)
    gc.freeze()
    while True:
        caller, _ = await loop.sock_accept(control)
        with caller, contextlib.suppress(ConnectionError):
            caller.setblocking(False)
            if await loop.sock_recv(caller, 1) == rules.CALL:
                await gate.change(rules.read(file))
                await loop.sock_sendall(caller, rules.DONE)


def main() -> None:
    asyncio.run(serve(socket.socket(fileno=LISTENER), socket.socket(fileno=CONTROL), Path(sys.argv[1])))
