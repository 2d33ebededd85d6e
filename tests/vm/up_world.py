"""`make up` and `make down` of this checkout, or `torpor serve`, on a shared home with built images. `bootstrap` is left out: `make test` has run it."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cli_world import ENDED, end, served, started

CHECKOUT = Path(__file__).parents[2]
OF_THE_SERVER = ("torpor.db*", "client.json", "first-*", "server.log*", "host.id")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def variables(home: Path) -> dict[str, str]:
    """A newcomer's, but for the home and a port that is free."""
    port = free_port()
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return kept | {"TORPOR_HOME": str(home), "TORPOR_PORT": str(port), "TERM": "xterm", "TORPOR_NO_INSTALL": "yes", "TORPOR_POOL_SIZE": "0"}


def make(env: dict[str, str], target: str) -> subprocess.CompletedProcess[str]:
    words = ["make", "-o", "bootstrap", target]
    return subprocess.run(words, cwd=CHECKOUT, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=ENDED * 10, check=False)


@contextmanager
def up(home: Path) -> Iterator[tuple[dict[str, str], subprocess.CompletedProcess[str]]]:
    """The variables with which it was started, and what it said. Afterwards nothing of the server is left in the home."""
    env = variables(home)
    try:
        yield env, make(env, "up")
    finally:
        ended = make(env, "down")
        forget(home)
    assert ended.returncode == 0 and "nothing runs any more" in ended.stdout, ended


@contextmanager
def serving(home: Path, *words: str) -> Iterator[str]:
    """The address of a server on a shared home, of which nothing is left there."""
    try:
        with started(home, "serve", *words) as process:
            yield served(process)
            assert end(process) == 0
    finally:
        forget(home)


def forget(home: Path) -> None:
    for pattern in OF_THE_SERVER:
        for path in home.glob(pattern):
            path.unlink()
