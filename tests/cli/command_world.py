"""`torpor` as a user starts it, with a server at hand, and a terminal to start it on."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client_world import Restartable

from patience import PATIENCE

TORPOR = Path(sys.executable).with_name("torpor")


@dataclass(frozen=True)
class Done:
    code: int
    out: bytes
    err: str

    @property
    def tree(self) -> Any:
        return json.loads(self.out)

    @property
    def words(self) -> list[str]:
        return self.out.decode().split()


def environment(server: Restartable, home: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return kept | {"TORPOR_HOME": str(home), "TORPOR_URL": server.url, "TORPOR_API_KEY": server.key, "TERM": "xterm"}


@asynccontextmanager
async def begun(server: Restartable, *words: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> AsyncIterator[asyncio.subprocess.Process]:
    pipe = asyncio.subprocess.PIPE
    variables = environment(server, server.home / "none") | (env or {})
    process = await asyncio.create_subprocess_exec(TORPOR, *words, env=variables, cwd=cwd, stdin=pipe, stdout=pipe, stderr=pipe)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def torpor(server: Restartable, *words: str, stdin: bytes = b"", env: dict[str, str] | None = None, cwd: Path | None = None) -> Done:
    """To its end."""
    async with begun(server, *words, env=env, cwd=cwd) as process:
        out, err = await asyncio.wait_for(process.communicate(stdin), PATIENCE)
        assert process.returncode is not None
        return Done(process.returncode, out, err.decode())


class Terminal:
    """A pseudo-terminal and what a program says on it."""

    def __init__(self, rows: int = 24, columns: int = 80) -> None:
        self.ours, self.theirs = os.openpty()
        self.resize(rows, columns)
        self.said = b""

    def resize(self, rows: int, columns: int) -> None:
        termios.tcsetwinsize(self.ours, (rows, columns))

    def modes(self) -> list[Any]:
        return termios.tcgetattr(self.theirs)

    @property
    def raw(self) -> bool:
        return not self.modes()[3] & (termios.ICANON | termios.ECHO | termios.ISIG)

    def type(self, text: bytes) -> None:
        os.write(self.ours, text)

    async def until(self, text: bytes) -> None:
        await asyncio.to_thread(self._until, text)

    def _until(self, text: bytes) -> None:
        while text not in self.said:
            readable, _, _ = select.select([self.ours], [], [], PATIENCE)
            assert readable, f"{text!r} never came: {self.said!r}"
            self.said += os.read(self.ours, 65536)
        self.said = self.said.partition(text)[2]

    @contextmanager
    def running(self, server: Restartable, *words: str) -> Iterator[subprocess.Popen[bytes]]:
        process = subprocess.Popen(
            [TORPOR, *words],
            env=environment(server, server.home / "none"),
            stdin=self.theirs,
            stdout=self.theirs,
            stderr=self.theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()

    def close(self) -> None:
        os.close(self.ours)
        os.close(self.theirs)


async def ended(process: subprocess.Popen[bytes]) -> int:
    return await asyncio.to_thread(process.wait, PATIENCE)
