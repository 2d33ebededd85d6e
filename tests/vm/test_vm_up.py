"""`make up` and `make down` for real, and every command for sandboxes once on a real microVM, as the user who ran `make up`: with no further setting."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from pathlib import Path

import pytest
from cli_world import ENDED, TORPOR, Terminal, left
from up_world import make, up, variables

pytestmark = pytest.mark.vm


def torpor(variables: dict[str, str], *words: str, code: int = 0, stdin: str = "") -> str:
    done = subprocess.run([TORPOR, *words], env=variables, input=stdin, capture_output=True, text=True, timeout=ENDED * 2, check=False)
    assert done.returncode == code, done
    return done.stdout


def test_up_again_finds_it_running_and_down_leaves_nothing(images_home: Path, tmp_path: Path) -> None:
    with up(images_home) as (env, begun):
        assert begun.returncode == 0, begun
        assert "Hello from a microVM: Linux 6.1" in begun.stdout and "torpor is ready" in begun.stdout
        assert f":{env['TORPOR_PORT']}" in begun.stdout
        assert "trp_" not in begun.stdout + begun.stderr + (images_home / "server.log").read_text(), "no key where a log may be"
        pid = json.loads((images_home / "host.lock").read_text())["pid"]
        again = make(env, "up")
        assert again.returncode == 0 and "torpor is ready" in again.stdout, again
        assert json.loads((images_home / "host.lock").read_text())["pid"] == pid
        every_command(env, tmp_path)
    assert left(images_home) == {}


def every_command(env: dict[str, str], tmp_path: Path) -> None:
    (box,) = torpor(env, "create", "-q", "minimal", "--name", "box", "--disk", "1024", "--memory", "256").split()
    assert torpor(env, "exec", "box", "--", "sh", "-c", "cat; exit 3", code=3, stdin="in") == "in"
    torpor(env, "exec", "box", "--", "sh", "-c", "echo kept > /dev/shm/x; mkdir d; ln -s ../etc d/out; echo 1 > d/f")
    torpor(env, "cp", "box:d", str(tmp_path / "d"), code=1)
    assert (tmp_path / "d" / "f").read_text() == "1\n"
    torpor(env, "cp", str(tmp_path / "d"), "box:/tmp/back")
    assert torpor(env, "cp", "box:/tmp/back/f", "-") == "1\n"
    assert torpor(env, "exec", "-d", "--tag", "job", "box", "sh", "-c", "echo said").split() == ["job"]
    assert torpor(env, "logs", "-f", "box", "job") == "said\n"
    assert "job" in torpor(env, "ps", "-a", "box")
    torpor(env, "snapshot", "-q", "box", "snap")
    assert "snap" in torpor(env, "templates", "-q").split()
    torpor(env, "pause", "box")
    torpor(env, "resume", "box")
    assert torpor(env, "exec", "box", "cat", "/dev/shm/x") == "kept\n"
    (copy,) = torpor(env, "fork", "-q", "box").split()
    torpor(env, "rollback", "box", "snap")
    terminal = Terminal(30, 100)
    with terminal.running(Path(env["TORPOR_HOME"]), "shell", copy, env=env) as process:
        terminal.type(b"stty size; cat /dev/shm/x; exit 7\n")
        terminal.until(b"30 100\r\n")
        terminal.until(b"kept\r\n")
        assert process.wait(ENDED) == 7
    terminal.close()
    torpor(env, "pause", "-q", copy)
    torpor(env, "boot", "-q", copy)
    assert re.search(r"state +running", torpor(env, "show", copy))
    torpor(env, "kill", "-q", box, copy)
    torpor(env, "templates", "--remove", "snap")
    assert torpor(env, "list", "-q") == ""


def test_a_port_that_is_taken_is_named(images_home: Path) -> None:
    env = variables(images_home)
    with socket.create_server(("127.0.0.1", int(env["TORPOR_PORT"]))):
        refused = make(env, "up")
    assert refused.returncode != 0
    assert env["TORPOR_PORT"] in refused.stderr and "TORPOR_PORT=" in refused.stderr
