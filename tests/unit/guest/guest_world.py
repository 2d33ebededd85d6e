"""A live agent on this host, and a proxy before it that cuts connections."""

from __future__ import annotations

import asyncio
import subprocess
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parents[3] / "src"


@dataclass
class Agent:
    """`socket` of the agent, `home` a folder of its own, also the default home in the "guest"."""

    socket: Path
    home: Path
    process: subprocess.Popen[bytes]
    may_die: bool = False


class Cutter:
    """A proxy before the agent whose connections can be cut, also by themselves after so many bytes from the agent: what is on its way then is lost."""

    def __init__(self, target: Path, path: Path) -> None:
        self.path = path
        self.cuts = 0
        self.budget: list[int] = []
        self._target = target
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        self._server = await asyncio.start_unix_server(self._accept, self.path)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_unix_connection(self._target)
        self._writers = [writer, far_writer]
        budget = self.budget.pop(0) if self.budget else None
        for pair in ((reader, far_writer, None), (far_reader, writer, budget)):
            task = asyncio.create_task(self._carry(*pair))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, budget: int | None) -> None:
        try:
            while data := await reader.read(65536):
                if budget is not None:
                    if budget <= len(data):
                        writer.write(data[:budget])
                        self.cut()
                        return
                    budget -= len(data)
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        writer.close()

    def cut(self) -> None:
        """Drops the present connection on both sides."""
        self.cuts += 1
        writers, self._writers = self._writers, []
        for writer in writers:
            writer.transport.abort()

    async def close(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
