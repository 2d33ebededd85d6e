"""`make up` and `make down` of this checkout on a home whose images are built; `bootstrap` is left out: `make test` has run it."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cli_world import ENDED

CHECKOUT = Path(__file__).parents[2]
OF_THE_SERVER = ("torpor.db*", "client.json", "first-*", "server.log*", "host.id")


def variables(home: Path) -> dict[str, str]:
    """A newcomer's, but for the home and a port that is free."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
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
        for pattern in OF_THE_SERVER:
            for path in home.glob(pattern):
                path.unlink()
    assert ended.returncode == 0 and "nothing runs any more" in ended.stdout, ended
