"""The guest channel of testing.fake_vmm's machines: enough of ports.guest for the host agent, with a memory of one text that shows what was kept.

What a fake guest knows (its text, whether it is frozen, its generation) lies in the RAM of its process, so pausing, resuming and crashes are real to it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torpor.model.errors import Denied, DenyReason, GuestLost, InternalError
from torpor.model.sandbox import Identity
from torpor.ports.guest import ExecSpec, Exited, Output, ProcessInfo, Quiesced, Terminal, Wake


class FakeProcess:
    """A command that has succeeded already and said nothing."""

    exec_id = "fake"
    pid = 1

    async def output(self) -> AsyncIterator[Output]:
        nothing: Sequence[Output] = ()
        for piece in nothing:
            yield piece

    async def wait(self) -> Exited:
        return Exited(0)

    async def write(self, data: bytes) -> None:
        raise Denied(DenyReason.NOT_RUNNING, "The fake's command was started without stdin.")

    async def close_stdin(self) -> None: ...

    async def resize(self, terminal: Terminal) -> None: ...

    async def signal(self, number: int) -> None: ...

    async def kill_tree(self) -> None: ...

    def detach(self) -> None: ...


class FakeGuest:
    """One connection. `text`, `remember` and `identity` are the test's own."""

    default_user = "root"
    default_home = "/root"
    disk_fault = ""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._turn = asyncio.Lock()
        self.generation = 0

    async def _ask(self, **order: Any) -> dict[str, Any]:
        async with self._turn:
            try:
                self._writer.write(json.dumps(order).encode() + b"\n")
                answer = await self._reader.readline()
            except ConnectionError as error:
                raise GuestLost("The fake guest's channel broke.") from error
        if not answer:
            raise GuestLost("The fake guest is gone.")
        fields: dict[str, Any] = json.loads(answer)
        self.generation = fields["generation"]
        return fields

    async def text(self) -> str:
        """What the guest remembers. Raises GuestLost, and InternalError from a guest that is frozen: no user process would run in it."""
        fields = await self._ask()
        if fields["frozen"]:
            raise InternalError("The fake guest is frozen.")
        return str(fields["text"])

    async def remember(self, text: str) -> None:
        await self._ask(poke=text)

    async def identity(self) -> Identity:
        """What it was told at its last wake."""
        return Identity(**(await self._ask())["identity"])

    async def ping(self) -> None:
        await self._ask()

    async def exec(self, spec: ExecSpec) -> FakeProcess:
        await self._ask()
        return FakeProcess()

    async def processes(self) -> Sequence[ProcessInfo]:
        return ()

    async def signal(self, exec_id: str, number: int) -> None: ...

    async def kill_tree(self, exec_id: str) -> None: ...

    async def forget(self, exec_id: str) -> None: ...

    async def grow_root(self) -> int:
        await self._ask()
        return 0

    async def sync(self) -> None:
        await self._ask()

    async def quiesce(self) -> Quiesced:
        await self._ask(inner={"frozen": True})
        return Quiesced(True, 0.0)

    async def thaw(self) -> None:
        await self._ask(inner={"frozen": False})

    async def wake(self, wake: Wake) -> None:
        known = asdict(wake.identity)
        await self._ask(inner={"frozen": False, "generation": wake.generation, "identity": known})

    async def shutdown(self) -> None:
        await self._ask(off=True)

    async def close(self) -> None:
        self._writer.close()


class FakeLink:
    """A ports.guest.GuestLink to fake guests. With `deaf`, no guest ever answers."""

    def __init__(self) -> None:
        self.deaf = False

    async def connect(self, socket: Path, *, generation: int | None, timeout: float) -> Any:
        if self.deaf:
            raise GuestLost("The fake guest does not answer.")
        try:
            guest = FakeGuest(*await asyncio.open_unix_connection(str(socket)))
        except OSError as error:
            raise GuestLost(f"The fake guest cannot be reached: {error.strerror}.") from error
        try:
            await guest.ping()
            if generation is not None and guest.generation != generation:
                raise GuestLost(f"The fake guest is of generation {guest.generation}, not {generation}.")
        except BaseException:
            await guest.close()
            raise
        return guest

    async def connect_and_wake(self, socket: Path, wake: Wake, *, timeout: float) -> Any:
        guest = await self.connect(socket, generation=None, timeout=timeout)
        try:
            await guest.wake(wake)
        except BaseException:
            await guest.close()
            raise
        return guest
