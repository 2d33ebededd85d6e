"""README.md's examples, each word of them, read out of README.md: whoever changes one there changes what runs here.

Of `make up` the part `bootstrap` is left out: it installs, and `make test` has run it. The server listens on a port that is free. The internet of
`--net on` is a make-believe one: its example.com is found and called, but has no certificate, so that curl ends at the handshake.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_world import ENDED, Terminal, end, left, served, settle, started
from e2b_sdk_world import PYTHON_VERSIONS, python_package
from net_world import World, make_world
from test_vm_network import answer
from up_world import free_port, serving, up

import published
from listings import CLIENT_SAYS, blocks, client_program
from torpor.net.resolver import parse_resolvers

pytestmark = [pytest.mark.vm, pytest.mark.root]

CHECKOUT = Path(__file__).parents[2]
BLOCKS = blocks("README.md")
LINES = [line.partition(" #")[0].rstrip() for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
LISTINGS = [text for kind, text in BLOCKS if kind == "python"]
FIRST_BYTES_OF_TLS = b"\x16\x03"
TLS_FAILED = 35
"""curl(1): the handshake failed."""

Check = Callable[[subprocess.CompletedProcess[str]], bool]


def said(text: str, code: int = 0) -> Check:
    return lambda done: (done.returncode, done.stdout) == (code, text)


EXPECTED: dict[str, Check] = {
    ".venv/bin/torpor run -- python3 -c 'print(6*7)'": said("42\n"),
    "echo hello | .venv/bin/torpor run -- tr a-z A-Z": said("HELLO\n"),
    ".venv/bin/torpor run -- sh -c 'exit 3'; echo $?": said("3\n"),
    ".venv/bin/torpor run --timeout 2 -- sleep 60; echo $?": said("124\n"),
    ".venv/bin/torpor run --vcpus 2 --memory 1024 -- nproc": said("2\n"),
    ".venv/bin/torpor run --json -- uname -r": lambda done: done.returncode == 0 and '"exit_code": 0' in done.stdout and '"stdout": "6.1' in done.stdout,
}
ON_A_TERMINAL = ".venv/bin/torpor run -- bash"
ON_A_NETWORK = ".venv/bin/torpor run --net on -- curl -sI https://example.com"
SERVE = ".venv/bin/torpor serve"
KEY = "export KEY=trp_..."
UP = "make up"
SANDBOXES = [line for line in LINES if re.match(r"\.venv/bin/torpor (create|exec|cp|pause|resume|fork|list|kill)\b", line)]
E2B = [line for line in LINES if line.startswith("export E2B_")]
INTERPRETER = ".venv/bin/torpor build --warm code-interpreter-v1"
SERVE_TLS = ".venv/bin/torpor serve --port 3943 --domain sbx.localhost:3943 --tls auto"
OVER_HTTP = [line for line in LINES if line.startswith("curl ")]


def environment(home: Path) -> dict[str, str]:
    """A newcomer's, but for the home."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return kept | {"TORPOR_HOME": str(home), "TERM": "xterm", "TORPOR_NO_INSTALL": "yes"}


def shell(home: Path, line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", line], cwd=CHECKOUT, env=environment(home), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=ENDED * 4
    )


@pytest.fixture
def home(images_home: Path) -> Iterator[Path]:
    """The shared home: `make up` warms shapes that other tests start from, too."""
    yield images_home
    assert left(images_home) == {}


def test_every_example_is_known_here() -> None:
    assert sorted(LINES) == sorted([*EXPECTED, ON_A_TERMINAL, ON_A_NETWORK, SERVE, KEY, UP, INTERPRETER, SERVE_TLS, *E2B, *SANDBOXES, *OVER_HTTP])
    assert {kind for kind, _ in BLOCKS} == {"sh", "python"}
    assert len(LISTINGS) == 3
    assert len(E2B) == 3


@pytest.mark.parametrize("line", EXPECTED)
def test_a_line_of_the_readme(home: Path, line: str) -> None:
    done = shell(home, line)
    assert EXPECTED[line](done), done


def test_the_readmes_sandboxes(home: Path, tmp_path: Path) -> None:
    """After `make up`, with no further setting."""
    with up(home) as (env, begun):
        assert begun.returncode == 0, begun
        for line in SANDBOXES:
            done = subprocess.run(
                ["bash", "-c", line.replace("/tmp/answer", str(tmp_path / "answer"))],
                cwd=CHECKOUT,
                env=env,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=ENDED,
            )
            assert (done.returncode, done.stderr) == (0, b""), line
        assert (tmp_path / "answer").read_text() == "42\n"
        subprocess.run(["bash", "-c", ".venv/bin/torpor kill $(.venv/bin/torpor list -q)"], cwd=CHECKOUT, env=env, check=True, timeout=ENDED)


def test_the_readmes_terminal(home: Path) -> None:
    with contextlib.closing(Terminal()) as terminal:
        with terminal.running(home, *ON_A_TERMINAL.split()[1:]) as process:
            terminal.type(b"tty; exit 5\n")
            terminal.until(b"/dev/pts/")
            assert process.wait(ENDED) == 5


def test_the_readmes_program(home: Path, tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(LISTINGS[2])
    done = subprocess.run([sys.executable, tmp_path / "example.py"], env=environment(home), capture_output=True, text=True, timeout=ENDED * 4, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "42\n", "")
    settle(home)  # the program ends while disks of its copies wait to be collected: that is the next owner's


def test_the_readmes_server(fresh_home: Path) -> None:
    """Each line in turn; what a reader copies from one answer to the next request is copied here. The first start of a fresh home boots a warm image, which
    takes longer than an answer waits."""
    with started(fresh_home, *SERVE.split()[1:], "--port", "0") as process:
        url = served(process)
        key = (fresh_home / "first-key").read_text().strip()
        values: dict[str, str] = {"KEY": key}
        answers = []
        for line in OVER_HTTP:
            done = subprocess.run(
                ["bash", "-c", line.replace("http://127.0.0.1:8080", url)], env=environment(fresh_home) | values, capture_output=True, text=True, timeout=ENDED
            )
            assert (done.returncode, done.stderr) == (0, ""), line
            answers.append(json.loads(done.stdout))
            values.setdefault("ID", answers[0]["id"])
        created, ran, paused = answers
        assert created["status"] in ("starting", "running")
        assert (ran["stdout"], ran["exit_code"], paused["status"]) == ("42\n", 0, "paused")
        delete = ["curl", "-sf", "-X", "DELETE", "-H", f"X-API-Key: {key}", f"{url}/v1/sandboxes/{values['ID']}"]
        subprocess.run(delete, check=True, timeout=ENDED)
        assert end(process) == 0
    assert left(fresh_home) == {}


def exported(lines: list[str], home: Path, *changes: tuple[str, str]) -> dict[str, str]:
    """What a shell has after these lines, in which a reader puts the key in place of the dots."""
    text = "\n".join(lines).replace("e2b_...", (home / "first-e2b-key").read_text().strip())
    for before, after in changes:
        text = text.replace(before, after)
    said = subprocess.run(["bash", "-c", f"{text}\nenv -0"], env=environment(home), capture_output=True, text=True, timeout=ENDED, check=True).stdout
    return dict(line.split("=", 1) for line in said.rstrip("\0").split("\0"))


def program(tmp_path: Path, listing: str, variables: dict[str, str], packages: Path) -> str:
    """What the listing prints."""
    (tmp_path / "example.py").write_text(listing)
    ending = "import os, runpy, sys; runpy.run_path(sys.argv[1]); sys.stdout.flush(); os._exit(0)"  # the package's threads may break an ordinary end
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ending, tmp_path / "example.py"],
        env=variables | {"PYTHONPATH": str(packages)},
        capture_output=True,
        text=True,
        timeout=ENDED * 5,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


@pytest.mark.parametrize("version", PYTHON_VERSIONS)
def test_the_readmes_program_for_e2b(home: Path, tmp_path: Path, version: str) -> None:
    with serving(home, "--port", "0") as url:
        variables = exported(E2B[:2], home, ("http://127.0.0.1:8080", url))
        assert program(tmp_path, LISTINGS[0], variables, python_package(version)) == "hello\n42\n\n"


@pytest.mark.timeout(1800)
def test_the_readmes_code_interpreter(home: Path, tmp_path: Path) -> None:
    """The first run builds the template, and boots it once."""
    built = subprocess.run(["bash", "-c", INTERPRETER], cwd=CHECKOUT, env=environment(home), stdin=subprocess.DEVNULL, capture_output=True, timeout=1200)
    assert built.returncode == 0, built
    port = str(free_port())
    with serving(home, *SERVE_TLS.replace("3943", port).split()[2:]):
        variables = exported(E2B[2:], home, ("3943", port))
        packages = published.from_pypi("e2b-code-interpreter-2.11.5", "e2b-code-interpreter==2.11.5")
        length, words = program(tmp_path, LISTINGS[1], variables, packages).split(maxsplit=1)
        assert (int(length) > 1000, words) == (True, "characters of PNG\n")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with make_world(tmp_path) as made:
        yield made


def test_the_python_clients_examples(home: Path, tmp_path: Path) -> None:
    """docs/client.md's, against a server as a user starts it."""
    with serving(home, "--port", "0") as url:
        variables = environment(home) | {"TORPOR_URL": url, "TORPOR_API_KEY": (home / "first-key").read_text().strip()}
        (tmp_path / "example.py").write_text(client_program())
        done = subprocess.run([sys.executable, tmp_path / "example.py"], env=variables, capture_output=True, text=True, timeout=ENDED * 4, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, CLIENT_SAYS, "")


@contextlib.contextmanager
def resolvers(world: World) -> Iterator[None]:
    """At the addresses that this machine's own resolv.conf names, which are the host's in that world."""
    names = [ipaddress.ip_address(name) for name in parse_resolvers(Path("/etc/resolv.conf").read_text())]
    world.host.ip(*(f"address replace {name}/{name.max_prefixlen} dev lo" for name in names))
    with contextlib.ExitStack() as stack:
        for name in names:
            listener = stack.enter_context(socket.socket(socket.AF_INET if name.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM))
            listener.bind((str(name), 53))
            thread = threading.Thread(target=_answer, args=(listener,))
            thread.start()
            stack.callback(thread.join)
            stack.callback(listener.sendto, b"", (str(name), 53))
        yield


def _answer(listener: socket.socket) -> None:
    while question := (received := listener.recvfrom(4096))[0]:
        listener.sendto(answer(question), received[1])


@contextlib.contextmanager
def site(world: World) -> Iterator[list[bytes]]:
    """Port 443 of the internet: keeps what each visitor says first, and hangs up."""
    heard: list[bytes] = []
    listener = world.internet.run(lambda: socket.create_server(("151.101.1.69", 443)))

    def serve() -> None:
        while True:
            visitor, _ = listener.accept()
            with visitor:
                heard.append(visitor.recv(4096))
                if not heard[-1]:
                    return

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield heard
    finally:
        world.internet.run(lambda: socket.create_connection(("151.101.1.69", 443)).close())
        thread.join()
        listener.close()


def test_the_readmes_network(home: Path, world: World) -> None:
    with resolvers(world), site(world) as heard:
        done = shell(home, ON_A_NETWORK)
        assert (done.returncode, done.stdout, done.stderr) == (TLS_FAILED, "", "")
        assert heard[0].startswith(FIRST_BYTES_OF_TLS)
        assert b"example.com" in heard[0]
    assert world.links() == []
