"""`make up` and `make down` for real, and every command for sandboxes once on a real microVM, as the user who ran `make up`: with no further setting."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_world import ENDED, Terminal, left

pytestmark = pytest.mark.vm

CHECKOUT = Path(__file__).parents[2]
TORPOR = str(CHECKOUT / ".venv/bin/torpor")


@pytest.fixture
def variables(images_home: Path) -> dict[str, str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return kept | {"TORPOR_HOME": str(images_home), "TORPOR_PORT": str(port), "TERM": "xterm", "TORPOR_NO_INSTALL": "yes", "TORPOR_POOL_SIZE": "0"}


def make(variables: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *words], cwd=CHECKOUT, env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=ENDED * 10)


@pytest.fixture
def up(variables: dict[str, str], images_home: Path) -> Iterator[dict[str, str]]:
    begun = make(variables, "-o", "bootstrap", "up")
    try:
        assert begun.returncode == 0, begun
        assert "Hello from a microVM: Linux 6.1" in begun.stdout and "torpor is ready" in begun.stdout
        assert f":{variables['TORPOR_PORT']}" in begun.stdout
        assert "trp_" not in begun.stdout + begun.stderr + (images_home / "server.log").read_text(), "no key where a log may be"
        yield variables
    finally:
        ended = make(variables, "-o", "bootstrap", "down")
    assert ended.returncode == 0 and "nothing runs any more" in ended.stdout, ended


def torpor(variables: dict[str, str], *words: str, code: int = 0, stdin: str = "") -> str:
    done = subprocess.run([TORPOR, *words], env=variables, input=stdin, capture_output=True, text=True, timeout=ENDED * 2, check=False)
    assert done.returncode == code, done
    return done.stdout


def test_up_again_finds_it_running_and_down_leaves_nothing(up: dict[str, str], images_home: Path, tmp_path: Path) -> None:
    pid = json.loads((images_home / "host.lock").read_text())["pid"]
    again = make(up, "-o", "bootstrap", "up")
    assert again.returncode == 0 and "torpor is ready" in again.stdout, again
    assert json.loads((images_home / "host.lock").read_text())["pid"] == pid
    every_command(up, tmp_path)
    assert make(up, "-o", "bootstrap", "down").returncode == 0
    assert left(images_home) == {}


def every_command(up: dict[str, str], tmp_path: Path) -> None:
    (box,) = torpor(up, "create", "-q", "minimal", "--name", "box", "--disk", "1024", "--memory", "256").split()
    assert torpor(up, "exec", "box", "--", "sh", "-c", "cat; exit 3", code=3, stdin="in") == "in"
    torpor(up, "exec", "box", "--", "sh", "-c", "echo kept > /dev/shm/x; mkdir d; ln -s ../etc d/out; echo 1 > d/f")
    torpor(up, "cp", "box:d", str(tmp_path / "d"), code=1)
    assert (tmp_path / "d" / "f").read_text() == "1\n"
    torpor(up, "cp", str(tmp_path / "d"), "box:/tmp/back")
    assert torpor(up, "cp", "box:/tmp/back/f", "-") == "1\n"
    assert torpor(up, "exec", "-d", "--tag", "job", "box", "sh", "-c", "echo said").split() == ["job"]
    assert torpor(up, "logs", "-f", "box", "job") == "said\n"
    assert "job" in torpor(up, "ps", "-a", "box")
    torpor(up, "snapshot", "-q", "box", "snap")
    assert "snap" in torpor(up, "templates", "-q").split()
    torpor(up, "pause", "box")
    torpor(up, "resume", "box")
    assert torpor(up, "exec", "box", "cat", "/dev/shm/x") == "kept\n"
    (copy,) = torpor(up, "fork", "-q", "box").split()
    torpor(up, "rollback", "box", "snap")
    terminal = Terminal(30, 100)
    with terminal.running(Path(up["TORPOR_HOME"]), "shell", copy, env=up) as process:
        terminal.type(b"stty size; cat /dev/shm/x; exit 7\n")
        terminal.until(b"30 100\r\n")
        terminal.until(b"kept\r\n")
        assert process.wait(ENDED) == 7
    terminal.close()
    torpor(up, "pause", "-q", copy)
    torpor(up, "boot", "-q", copy)
    assert re.search(r"state +running", torpor(up, "show", copy))
    torpor(up, "kill", "-q", box, copy)
    torpor(up, "templates", "--remove", "snap")
    assert torpor(up, "list", "-q") == ""


def test_a_port_that_is_taken_is_named(variables: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", int(variables["TORPOR_PORT"]))):
        refused = make(variables, "-o", "bootstrap", "up")
    assert refused.returncode != 0
    assert variables["TORPOR_PORT"] in refused.stderr and "TORPOR_PORT=" in refused.stderr
