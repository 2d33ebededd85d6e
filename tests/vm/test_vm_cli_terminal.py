"""`torpor run` on a terminal: size, raw mode and its end, keys that are the guest's, and impatience."""

from __future__ import annotations

import contextlib
import os
import signal
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_world import ENDED, Terminal, agent_of, end, left, started, vmms

pytestmark = pytest.mark.vm

PYTHON = ("run", "--template", "minimal", "--", "python3", "-uc")
SH = ("run", "--template", "minimal", "--", "sh", "-c")
SIZES = """
import os, signal, sys
awaited = {signal.SIGWINCH, signal.SIGINT}
signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
print("both", os.isatty(0) and os.isatty(1) and os.isatty(2), tuple(os.get_terminal_size()))
while signal.sigwait(awaited) == signal.SIGWINCH:
    print("now", tuple(os.get_terminal_size()))
sys.exit(130)
"""
"""None is lost: they wait while the program does something else."""


@pytest.fixture
def home(images_home: Path) -> Iterator[Path]:
    before = left(images_home)
    yield images_home
    assert left(images_home) == before == {}


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    with contextlib.closing(Terminal(30, 100)) as made:
        before = made.modes()
        yield made
        assert made.modes() == before, "the terminal is as it was"


def raw(terminal: Terminal) -> bool:
    return not terminal.modes()[3] & (termios.ICANON | termios.ECHO | termios.ISIG)  # type: ignore[operator]


@pytest.mark.parametrize("beside_an_agent", [False, True], ids=["alone", "beside an agent"])
def test_the_guest_has_a_terminal_of_the_same_size_and_follows_it(home: Path, terminal: Terminal, beside_an_agent: bool) -> None:
    with agent_of(home) if beside_an_agent else contextlib.nullcontext():
        with terminal.running(home, *PYTHON, SIZES) as process:
            terminal.until(b"both True (100, 30)\r\n")
            assert raw(terminal)
            terminal.resize(50, 132)
            terminal.until(b"now (132, 50)\r\n")
            terminal.type(b"\x03")
            assert process.wait(ENDED) == 130, "Ctrl-C is a key for the guest, whose terminal makes a SIGINT of it"


@pytest.mark.parametrize(
    ("command", "code"), [("stty size; exit 3", 3), ("stty size; kill -9 $$", 137), ("stty size; exec sleep 1000", 124)], ids=["exit", "kill", "time-out"]
)
def test_exit_codes_are_kept_and_the_terminal_is_given_back(home: Path, terminal: Terminal, command: str, code: int) -> None:
    limit = ("--timeout", "1") if code == 124 else ()
    with terminal.running(home, "run", "--template", "minimal", *limit, "--", "sh", "-c", command) as process:
        terminal.until(b"30 100\r\n")
        assert process.wait(ENDED) == code


def test_an_error_of_ours_is_told_on_a_terminal_that_is_no_longer_raw(home: Path, terminal: Terminal) -> None:
    with terminal.running(home, "run", "--template", "minimal", "--", "/no/such/program") as process:
        assert process.wait(ENDED) == 125
        terminal.until(b"/no/such/program")
        terminal.until(b"\r\n")


def test_a_shell_is_talked_to_as_by_a_person(home: Path, terminal: Terminal) -> None:
    """What was typed ahead is kept; echo, line editing and Ctrl-C are the guest's."""
    with terminal.running(home, "run", "--template", "minimal", "--", "bash", "--norc") as process:
        terminal.type(b"echo on''e\n")
        terminal.until(b"one\r\n")
        terminal.type(b"echo twoX\x7f''!\n")
        terminal.until(b"two!\r\n")
        terminal.type(b"sh -c 'echo run\"\"ning; exec sleep 1000'\n")
        terminal.until(b"running\r\n")
        terminal.type(b"\x03")
        terminal.until(b"# ")
        terminal.type(b"echo code $?.\n")
        terminal.until(b"code 130.\r\n")
        terminal.type(b"exit 7\n")
        assert process.wait(ENDED) == 7


def test_a_terminal_that_goes_away_ends_the_command(home: Path) -> None:
    with contextlib.closing(Terminal()) as terminal, terminal.running(home, *SH, "echo ready; sleep 1000") as process:
        terminal.until(b"ready\r\n")
        os.close(terminal.theirs)
        terminal.theirs = -1
        terminal.hang_up()
        assert process.wait(ENDED) == 129


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_from_outside_gives_the_terminal_back(home: Path, terminal: Terminal, number: signal.Signals) -> None:
    with terminal.running(home, *SH, "trap '' INT TERM; echo ready; sleep 1000") as process:
        terminal.until(b"ready\r\n")
        assert raw(terminal)
        assert end(process, number) == 128 + number


def test_ctrl_c_again_and_again_while_it_runs_leaves_nothing(home: Path) -> None:
    """Not on a terminal of its own: each Ctrl-C is a signal to us."""
    with started(home, *SH, "trap '' INT; echo ready; sleep 1000") as process:
        assert process.stdout.readline() == b"ready\n"
        for _ in range(20):
            process.send_signal(signal.SIGINT)
        assert process.wait(ENDED) == 130
        assert process.stderr.read() == b""


def test_ctrl_c_again_and_again_while_it_starts_leaves_nothing(home: Path) -> None:
    """The first ends the start; those that follow come while it is cleared up, which they must not cut short."""
    with started(home, *SH, "sleep 1000") as process:
        while not vmms(home):
            assert process.poll() is None
        for _ in range(200):
            process.send_signal(signal.SIGINT)
            os.sched_yield()
        assert process.wait(ENDED) == 130
        assert process.stderr.read() == b""
