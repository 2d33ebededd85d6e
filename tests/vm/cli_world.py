"""The `torpor` program as a user starts it, and what is on this machine because of a home: what must be nothing afterwards."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

TORPOR = Path(sys.executable).with_name("torpor")
ENDED = 60
"""Seconds within which a program that was told to end must have ended; nothing waits that long unless it is broken."""


def environment(home: Path, **more: str) -> dict[str, str]:
    """Nothing of the developer's own settings."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TERM") if name in os.environ}
    return kept | {"TORPOR_HOME": str(home), "TORPOR_NETWORK_POOL": "0", "TORPOR_POOL_SIZE": "0"} | more


def torpor(home: Path, *words: str, stdin: bytes | int = subprocess.DEVNULL, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[bytes]:
    """Runs it to its end. `stdin`: bytes to feed, or a descriptor."""
    where = {"input": stdin} if isinstance(stdin, bytes) else {"stdin": stdin}
    return subprocess.run([TORPOR, *words], env=env or environment(home), capture_output=True, timeout=ENDED * 2, check=False, **where)


@contextmanager
def started(home: Path, *words: str, env: Mapping[str, str] | None = None, **how: object) -> Iterator[subprocess.Popen[bytes]]:
    """Runs beside the test; killed at its end if it is still there."""
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process: subprocess.Popen[bytes] = subprocess.Popen([TORPOR, *words], env=env or environment(home), **(streams | how))  # type: ignore[call-overload]
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


@contextmanager
def agent_of(home: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A ready `torpor host`."""
    with started(home, "host", *words) as process:
        said = b""
        while b"is ready" not in said:
            line = process.stderr.readline()
            assert line, f"the agent ended: {said!r}"
            said += line
        yield process


def end(process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> int:
    process.send_signal(number)
    return process.wait(ENDED)


def settle(home: Path) -> None:
    """An owner comes and goes: whatever a crash left is cleared by it."""
    with agent_of(home) as agent:
        assert end(agent) == 0


def mark(home: Path) -> str:
    """How the cgroups of a home's microVMs begin (proc.keeper names them so)."""
    status = home.stat()
    return f"{status.st_dev:x}-{status.st_ino:x}-"


def vmms(home: Path) -> list[str]:
    """Command lines of the QEMU processes of this home, recognised by their cgroup, or, without root, by the paths they were given."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            cgroup = (entry / "cgroup").read_text()
        except (FileNotFoundError, ProcessLookupError, NotADirectoryError):
            continue
        if "qemu-system" in line.split(" ")[0] and (f"/torpor/{mark(home)}" in cgroup or f"{home.resolve()}/" in line):
            found.append(line[:200])
    return found


def cgroups(home: Path) -> list[str]:
    return sorted({path.name for path in Path("/sys/fs/cgroup").glob(f"**/torpor/{mark(home)}*")})


def left(home: Path) -> dict[str, list[str]]:
    """Everything of this home's that is only there while sandboxes are; warm images and what they need are not in it."""
    store = home / "store"
    needed = b"".join(manifest.read_bytes() for manifest in (store / "artefacts").glob("*/manifest.json"))
    sandboxes = {path.name for path in (home / "sandboxes").glob("*")}
    files = [path for room, pattern in (("disks", "*"), ("memory", "*.mem")) for path in (store / room).glob(pattern)]
    everything = {
        "vmm": vmms(home),
        "cgroups": cgroups(home),
        "sandboxes": sorted(sandboxes),
        "boots": sorted(path.name for path in (home / "run" / "boots").glob("*")),
        "staging": sorted(path.name for path in (home / "staging").glob("*")),
        "store": sorted(path.name for path in files if path.stem.encode() not in needed),
        "temporary": sorted(str(path) for path in home.glob("*.new")),
    }
    return {kind: found for kind, found in everything.items() if found}


class Terminal:
    """A pseudo-terminal, 24 rows of 80 unless told, and what a program says on it."""

    def __init__(self, rows: int = 24, columns: int = 80) -> None:
        self.ours, self.theirs = os.openpty()
        self.resize(rows, columns)
        self.said = b""

    def resize(self, rows: int, columns: int) -> None:
        """The kernel tells the foreground's programs (SIGWINCH)."""
        termios.tcsetwinsize(self.ours, (rows, columns))

    def modes(self) -> list[object]:
        return termios.tcgetattr(self.theirs)

    def type(self, text: bytes) -> None:
        os.write(self.ours, text)

    def until(self, text: bytes) -> bytes:
        """Reads on until `text` has come; returns everything up to its end, and forgets it."""
        while text not in self.said:
            readable, _, _ = select.select([self.ours], [], [], ENDED)
            assert readable, f"{text!r} never came: {self.said!r}"
            self.said += os.read(self.ours, 65536)
        before, found, self.said = self.said.partition(text)
        return before + found

    def hang_up(self) -> None:
        os.close(self.ours)
        self.ours = -1

    @contextmanager
    def running(self, home: Path, *words: str, env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
        """`torpor` in the foreground of this terminal, as a shell would start it."""
        process = subprocess.Popen(
            [TORPOR, *words],
            env=env or environment(home, TERM="xterm"),
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
                process.kill()
            process.wait()

    def close(self) -> None:
        for descriptor in (self.ours, self.theirs):
            if descriptor >= 0:
                os.close(descriptor)


def network() -> dict[str, list[str]]:
    """What sandboxes with a network have on this machine, of any home: links, tables of the firewall, namespaces that are kept."""
    links = [name for name in os.listdir("/sys/class/net") if name.startswith("trp")]
    tables = subprocess.run(["nft", "list", "tables"], check=True, capture_output=True, text=True).stdout.splitlines()
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines() if "/run/netns/" in line]
    return {"links": sorted(links), "tables": sorted(line for line in tables if "torpor_" in line), "namespaces": sorted(mounts)}


def served(process: subprocess.Popen[bytes]) -> str:
    """The address of a `torpor serve` that was just started, once it serves."""
    assert process.stderr is not None
    said = b""
    while b"torpor serves " not in said:
        line = process.stderr.readline()
        assert line, f"the server ended: {said!r}"
        said += line
    return said.rsplit(b"torpor serves ", 1)[1].split()[0].decode()
