"""What a machine, a home or a disk can do to `torpor` on the command line: each time the cause, the mend, exit code 125, and nothing left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_world import ENDED, TORPOR, agent_of, end, environment, left, network, started, torpor
from vm_world import open_engine, shell

from torpor.host.agent import CreateSpec
from torpor.model.shapes import Shape
from torpor.snapshot.manifest import seal

pytestmark = [pytest.mark.vm, pytest.mark.root]

NOBODY = 65534
TINY = ("run", "--template", "minimal", "--memory", "256", "--disk", "1024")


def told(done: subprocess.CompletedProcess[bytes], *words: str) -> None:
    """One cause, with these words in it or in its mend, and no more."""
    text = done.stderr.decode()
    assert (done.returncode, done.stdout) == (125, b""), text
    errors = [line for line in text.splitlines() if not line.startswith(("torpor: booting", "torpor: waiting"))]
    assert errors[0].startswith("torpor: ")
    assert len(errors) <= 2, text
    assert [word for word in words if word not in text] == [], text


@pytest.fixture
def quiet_network() -> Iterator[None]:
    before = network()
    yield
    assert network() == before


def without(tool: str, home: Path, *words: str) -> subprocess.CompletedProcess[bytes]:
    """On a machine where this tool is no program: something else lies over it, for our child alone."""
    where = shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    assert where is not None
    script = 'mount --bind /dev/null "$(readlink -f "$1")"; shift; exec "$@"'
    argv = ["unshare", "--mount", "sh", "-c", script, "sh", where, str(TORPOR), *words]
    return subprocess.run(argv, env=environment(home), stdin=subprocess.DEVNULL, capture_output=True, timeout=ENDED, check=False)


@pytest.mark.parametrize(
    ("tool", "words", "said"),
    [
        ("qemu-system-x86_64", (*TINY, "--", "true"), ["no qemu-system-x86_64", "Install qemu-system-x86"]),
        ("nft", (*TINY, "--net", "on", "--", "true"), ["nft", "apt install nftables"]),
    ],
)
def test_a_missing_tool_is_named_with_its_package(images_home: Path, quiet_network: None, tool: str, words: tuple[str, ...], said: list[str]) -> None:
    """In the shared home, so that nothing else is missing."""
    told(without(tool, images_home, *words), *said)
    assert left(images_home) == {}


@pytest.mark.parametrize("tool", ["mmdebstrap", "mke2fs", "debugfs", "e2fsck"])
def test_a_tool_that_a_build_needs_is_missed_before_anything_is_fetched(tmp_path: Path, tool: str) -> None:
    told(without(tool, tmp_path / "home", "build", "minimal"), tool, f"apt-get install {'mmdebstrap' if tool == 'mmdebstrap' else 'e2fsprogs'}")
    assert [path.name for path in (tmp_path / "home" / "images").rglob("*") if path.is_file()] == ["build.lock"]


def as_nobody(home: Path, *words: str) -> subprocess.CompletedProcess[bytes]:
    """By a user without rights; where the checkout is closed to others, with the right to read it."""
    closed = not all(parent.stat().st_mode & 0o005 == 0o005 for parent in Path(__file__).resolve().parents[:-1])
    rights = ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"] if closed else []
    argv = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *rights, str(TORPOR), *words]
    return subprocess.run(argv, env=environment(home, HOME="/nonexistent"), stdin=subprocess.DEVNULL, capture_output=True, timeout=ENDED * 2, check=False)


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """Everybody may look into it; pytest's own directories are closed to others."""
    with tempfile.TemporaryDirectory(prefix="torpor-test-") as path:
        Path(path).chmod(0o755)
        yield Path(path)


@pytest.mark.parametrize("command", [("run", "--", "true"), ("build",), ("host",), ("templates",)], ids=lambda words: words[0])
def test_a_home_that_may_not_be_written_is_named(open_directory: Path, command: tuple[str, ...]) -> None:
    home = open_directory
    done = as_nobody(home, *command)
    if command == ("templates",):
        assert done.returncode == 0, "looking needs no right to write"
    else:
        told(done, str(home), "TORPOR_HOME")
    assert list(home.iterdir()) == []


def test_a_home_that_is_no_directory_is_named(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.write_text("mine\n")
    for command in (("run", "--", "true"), ("build",), ("host",)):
        told(torpor(home, *command), str(home))
    assert home.read_text() == "mine\n"


async def test_a_snapshot_that_is_damaged_or_of_another_machine_is_refused(fresh_home: Path) -> None:
    async with open_engine(fresh_home, keep=True) as engine:
        sandbox = await engine.agent.create(CreateSpec("minimal", Shape(1, 256, 1024)))
        await shell(await sandbox.guest(), "echo kept > /root/note; sync")
        snapshot = await engine.agent.snapshot(sandbox.id, "noted")
        await engine.agent.kill(sandbox.id)
        await engine.agent.idle()
    words = ("run", "--template", snapshot.id, "--", "cat", "/root/note")
    manifest = fresh_home / "store" / "artefacts" / snapshot.id / "manifest.json"
    sound = manifest.read_bytes()
    tree = json.loads(sound)
    tree["fingerprint"]["hard"]["cpu"] = "another"
    refusals = ((sound[:-40], (snapshot.id, "damaged")), (b"", (snapshot.id, "damaged")), (seal(tree), ("differs: cpu another",)))
    for text, said in refusals:
        manifest.write_bytes(text)
        told(torpor(fresh_home, *words), *said)
        assert set(left(fresh_home)) <= {"store"}, "files that only a damaged manifest names are kept"
        assert manifest.read_bytes() == text, "it is left for a human to look at"
    manifest.write_bytes(sound)
    assert torpor(fresh_home, *words).stdout == b"kept\n"
    memory = fresh_home / "store" / "memory" / f"{tree['memory']['id']}.mem"
    with memory.open("r+b") as file:
        file.seek(memory.stat().st_size // 2)
        file.write(b"damage")
    told(torpor(fresh_home, *words), "digest")


def test_a_home_may_lie_deeper_than_a_sockets_address(images_home: Path, tmp_path: Path) -> None:
    home = tmp_path.joinpath(*["a-directory-with-a-long-name"] * 5) / "home"
    home.mkdir(parents=True)
    (home / "images").symlink_to(images_home / "images")
    assert len(str(home)) > 140
    with agent_of(home) as agent:
        done = torpor(home, *TINY, "--", "echo", "deep")
        assert (done.returncode, done.stdout) == (0, b"deep\n"), done.stderr
        with started(home, *TINY, "--", "sh", "-c", "echo ready; sleep 1000") as process:
            assert process.stdout.readline() == b"ready\n"
            assert end(process, signal.SIGINT) == 130
        assert end(agent) == 0
    assert left(home) == {}


@pytest.fixture
def small_home(tmp_path: Path, images_home: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A home with images, on a file system of so many MiB."""
    home = tmp_path / "small"
    home.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={request.param}m,mode=755", "torpor-test", home], check=True)
    (home / "images").symlink_to(images_home / "images")
    yield home
    subprocess.run(["umount", "--lazy", home], check=True)  # the keeper may be about to end


@pytest.mark.parametrize("small_home", [1, 20, 100], indirect=True)
def test_a_disk_too_small_for_a_microvm_ends_the_run(small_home: Path) -> None:
    """At the first attempt, not after the last: the VMM dies of memory that cannot be written, and its end can be written down nowhere."""
    told(torpor(small_home, *TINY, "--", "true"), "No space left", "Free space")
    assert left(small_home) == {}
    document = torpor(small_home, "run", "--json", *TINY[1:], "--", "true")
    assert (document.returncode, json.loads(document.stdout)["error"]["code"]) == (125, "no_space")
    assert left(small_home) == {}
