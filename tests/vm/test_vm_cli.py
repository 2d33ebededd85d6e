"""`torpor run` as a program: streams, codes, signals, errors. Nothing is left of any of it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_world import ENDED, agent_of, end, environment, left, started, torpor

pytestmark = pytest.mark.vm

SH = ("run", "--template", "minimal", "--", "sh", "-c")


@pytest.fixture
def home(images_home: Path) -> Iterator[Path]:
    """The shared home, whose warm images are there already; each test must leave it as it was."""
    before = left(images_home)
    yield images_home
    assert left(images_home) == before == {}


def test_output_comes_as_it_is_written(home: Path) -> None:
    """The command waits for an answer to its first line, so a line held back anywhere would hang both."""
    with started(home, *SH, "echo ready; read line; echo got $line >&2; exit 3") as process:
        assert process.stdout.readline() == b"ready\n"
        process.stdin.write(b"go\n")
        process.stdin.flush()
        assert process.wait(ENDED) == 3
        assert process.stderr.read() == b"got go\n"
        assert process.stdout.read() == b""


def test_input_and_output_are_passed_byte_for_byte(home: Path, tmp_path: Path) -> None:
    sent = random.Random(7).randbytes(50_000_000)
    (tmp_path / "input").write_bytes(sent)
    with (tmp_path / "input").open("rb") as file:
        done = torpor(home, *SH, "tee /dev/stderr | cat", stdin=file.fileno())
    wanted = hashlib.sha256(sent).hexdigest()
    assert (done.returncode, hashlib.sha256(done.stdout).hexdigest(), hashlib.sha256(done.stderr).hexdigest()) == (0, wanted, wanted)


def test_input_that_nobody_reads_does_not_hold_the_command_up(home: Path) -> None:
    done = torpor(home, *SH, "exec 0<&-; echo done", stdin=bytes(20_000_000))
    assert (done.returncode, done.stdout) == (0, b"done\n")


def test_a_closed_standard_input_is_end_of_file(home: Path) -> None:
    with started(home, *SH, "cat; echo end", stdin=None, preexec_fn=lambda: os.close(0)) as process:
        out, err = process.communicate(timeout=ENDED)
    assert (process.returncode, out, err) == (0, b"end\n", b"")


@pytest.mark.parametrize(
    ("command", "code"),
    [("true", 0), ("exit 3", 3), ("exit 255", 255), ("kill -9 $$", 137), ("kill -TERM $$", 143)],
)
def test_the_exit_code_is_kept(home: Path, command: str, code: int) -> None:
    done = torpor(home, *SH, command)
    assert (done.returncode, done.stdout, done.stderr) == (code, b"", b"")


def test_the_time_limit_ends_what_the_command_started_too(home: Path) -> None:
    done = torpor(home, "run", "--template", "minimal", "--timeout", "0.5", "--", "sh", "-c", "sleep 1000 & echo started; wait")
    assert (done.returncode, done.stdout) == (124, b"started\n")


def test_environment_directory_and_user(home: Path) -> None:
    words = ("run", "--env", "GIVEN=a b=c", "--env", "TAKEN", "--workdir", "/tmp", "--user", "root", "--", "sh", "-c", "echo $GIVEN,$TAKEN; pwd; id -un")
    done = torpor(home, *words, env=environment(home, TAKEN="from here"))
    assert (done.returncode, done.stdout) == (0, b"a b=c,from here\n/tmp\nroot\n")
    assert torpor(home, "run", "--", "sh", "-c", "id -un; pwd").stdout == b"user\n/home/user\n"


def test_json_is_one_document_on_standard_output(home: Path) -> None:
    done = torpor(home, "run", "--template", "minimal", "--json", "--", "sh", "-c", r"printf 'a\377'; echo b >&2; exit 4")
    document = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (4, b"")
    assert {name: document[name] for name in ("exit_code", "timed_out", "oom", "stdout", "stderr")} == {
        "exit_code": 4,
        "timed_out": False,
        "oom": False,
        "stdout": "a\ufffd",
        "stderr": "b\n",
    }


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_command_and_the_sandbox(home: Path, number: signal.Signals, code: int) -> None:
    with started(home, *SH, "trap '' INT TERM HUP; echo ready; sleep 1000 & wait; sleep 1000") as process:
        assert process.stdout.readline() == b"ready\n"
        assert end(process, number) == code
        assert process.stderr.read() == b""


def test_a_reader_that_leaves_ends_it_quietly(home: Path) -> None:
    with started(home, *SH, "yes") as process:
        assert process.stdout.readline() == b"y\n"
        process.stdout.close()
        process.stdout = None
        assert process.wait(ENDED) == 141, "as a program killed by SIGPIPE"
        assert process.stderr.read() == b""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--template", "no-such", "--", "true"), ["no-such", "minimal"]),
        (("--vcpus", "0", "--", "true"), ["0 vCPUs", "1 to 8"]),
        (("--vcpus", "9", "--", "true"), ["9 vCPUs", "1 to 8"]),
        (("--memory", "99999999", "--", "true"), ["99999999 MiB of memory"]),
        (("--disk", "-5", "--", "true"), ["-5 MiB of disk"]),
        (("--net", "maybe", "--", "true"), ["maybe", "on or off"]),
        (("--env", "=x", "--", "true"), ["--env"]),
        (("--env", "NOT_SET_ANYWHERE", "--", "true"), ["NOT_SET_ANYWHERE", "not set"]),
        (("--timeout", "-1", "--", "true"), ["--timeout", "-1"]),
        (("--template", "minimal", "--user", "nobody-here", "--", "true"), ["no user", "nobody-here"]),
        (("--template", "minimal", "--workdir", "/no/where", "--", "true"), ["/no/where"]),
        (("--template", "minimal", "--", "/no/such/program"), ["/no/such/program"]),
        (("--template", "minimal", "--", "/etc/passwd"), ["/etc/passwd", "Permission denied"]),
        (("--template", "minimal", "--", ""), ["No such file"]),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, tuple) else "",
)
def test_a_wrong_request_is_told_and_nothing_is_left(home: Path, words: tuple[str, ...], said: list[str]) -> None:
    done = torpor(home, "run", *words)
    text = done.stderr.decode()
    assert (done.returncode, done.stdout) == (125, b""), text
    assert text.startswith("torpor: ")
    assert [word for word in said if word not in text] == []
    assert "Traceback" not in text
    told = torpor(home, "run", "--json", *words)
    assert (told.returncode, told.stderr) == (125, b"")
    assert json.loads(told.stdout)["error"]["message"] in text


def test_many_arguments_and_strange_ones(home: Path) -> None:
    words = ["", " ", "--json", "-h", "ä\n", "$HOME", "'", '"', *("x" * 1000 for _ in range(100))]
    done = torpor(home, *SH, 'for word; do printf "%s\\0" "$word"; done', "sh", *words)
    assert done.stdout.decode().split("\0")[:-1] == words


def test_beside_a_running_agent_everything_is_the_same(home: Path) -> None:
    sent = random.Random(8).randbytes(3_000_000)
    with agent_of(home) as agent:
        done = torpor(home, *SH, "cat; echo oops >&2; exit 5", stdin=sent)
        assert (done.returncode, done.stderr, done.stdout == sent) == (5, b"oops\n", True)
        assert torpor(home, "run", "--template", "minimal", "--timeout", "0.5", "--", "sleep", "1000").returncode == 124
        refused = torpor(home, "run", "--template", "minimal", "--", "/no/such")
        assert refused.returncode == 125
        assert b"/no/such" in refused.stderr
        with started(home, *SH, "echo ready; sleep 1000") as process:
            assert process.stdout.readline() == b"ready\n"
            assert end(process, signal.SIGINT) == 130
        assert left(home) == {}
        assert end(agent) == 0


def test_a_second_agent_is_refused_and_says_who_the_first_is(home: Path) -> None:
    with agent_of(home) as agent:
        second = torpor(home, "host")
        assert second.returncode == 125
        assert str(agent.pid) in second.stderr.decode()
        assert agent.poll() is None
        assert torpor(home, "run", "--template", "minimal", "--", "true").returncode == 0
        assert end(agent, signal.SIGINT) == 0


def test_doctor_and_templates_speak_json_only(home: Path) -> None:
    told = torpor(home, "doctor", "--json")
    findings = {finding["name"]: finding for finding in json.loads(told.stdout)["findings"]}
    assert (told.returncode, told.stderr) == (0, b"")
    assert findings["images"]["holds"]
    assert all(finding["holds"] or finding["mend"] for finding in findings.values())
    people = torpor(home, "doctor")
    assert people.returncode == 0
    assert [name for name in findings if f"{name}: " not in people.stdout.decode()] == []
    rows = json.loads(torpor(home, "templates", "--json").stdout)["templates"]
    built = {row["name"]: row["built"] for row in rows}
    assert built.keys() == {"base", "minimal", "code-interpreter-v1", "code-runner-beta"}
    assert (built["base"], built["minimal"]) == ("yes", "yes")
    assert built["code-interpreter-v1"] == built["code-runner-beta"]  # one image of two names, built where it was wanted


def test_help_and_version_need_nothing() -> None:
    for words in (("--help",), ("run", "--help"), ("--version",)):
        done = subprocess.run([*_program(), *words], env={"PATH": "/nowhere", "HOME": "/nowhere"}, capture_output=True, timeout=ENDED, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout


def _program() -> list[str]:
    from cli_world import TORPOR

    return [str(TORPOR)]
