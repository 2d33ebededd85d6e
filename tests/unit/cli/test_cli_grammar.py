"""What the command line understands, what it refuses, and how little it loads to say so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from torpor.cli.completion import completion
from torpor.cli.grammar import SHELLS, parse
from torpor.model.errors import InvalidInput

HEAVY = {"asyncio", "rich", "structlog", "inspect", "dataclasses", "torpor.apps", "torpor.host", "torpor.images", "subprocess", "socket"}


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["--", "echo", "-n"], ["echo", "-n"]),
        (["echo", "-n"], ["echo", "-n"]),
        (["--template", "base", "echo", "--json"], ["echo", "--json"]),
        (["--json", "echo", "--", "x"], ["echo", "--", "x"]),
        (["--template=base", "--", "--", "x"], ["--", "x"]),
        (["--disk", "-5", "--", "run"], ["run"]),
        (["--", ""], [""]),
        (["-", "x"], ["-", "x"]),
    ],
    ids=" ".join,
)
def test_the_command_is_taken_as_it_stands(words: list[str], command: list[str]) -> None:
    assert parse(["run", *words]).command == command


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run"], "the command is missing"),
        (["run", "--json"], "the command is missing"),
        (["run", "--memroy", "5", "--", "x"], "--memroy"),
        (["run", "--foo", "--", "x"], "--foo"),
        (["run", "--template", "--", "x"], "--template"),
        (["run", "--memory", "much", "--", "x"], "much"),
        (["run", "--net", "maybe", "--", "x"], "on or off"),
        (["run", "--temp", "base", "--", "x"], "--temp"),
        (["rnu", "--", "x"], "rnu"),
        (["build", "--shiny"], "--shiny"),
        (["--nothing"], "--nothing"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_wrong_words_are_named_with_the_way_to_the_help(words: list[str], said: str) -> None:
    with pytest.raises(InvalidInput, match=said) as refused:
        parse(words)
    assert "torpor" in refused.value.mend


def test_without_words_the_help_is_shown_and_nothing_done(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse([])
    assert ended.value.code == 2
    assert "doctor" in capsys.readouterr().err


def test_the_command_line_loads_nothing_heavy() -> None:
    """What makes the help appear at once (promise S10), without a clock."""
    program = "import sys; import torpor.cli.main; print(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True).stdout.split())
    assert "torpor.cli.grammar" in loaded
    bare = set(subprocess.run([sys.executable, "-I", "-c", "import sys; print(*sys.modules)"], capture_output=True, text=True, check=True).stdout.split())
    assert (loaded - bare) & HEAVY == set()


def test_running_a_sandbox_loads_neither_rich_nor_structlog() -> None:
    program = "import sys; import torpor.cli.main, torpor.apps.run, torpor.apps.host; print(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True).stdout.split())
    assert "torpor.host.agent" in loaded
    assert loaded & {"rich", "structlog", "pydantic"} == set()


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_completes_commands_and_options(shell: str, tmp_path: Path) -> None:
    script = tmp_path / "completion"
    script.write_text(completion(shell).removeprefix("autoload -U +X bashcompinit && bashcompinit\n"))
    ask = f'. {script}; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _torpor; echo "${{COMPREPLY[@]}}"'

    def complete(*words: str) -> list[str]:
        return subprocess.run(["bash", "-c", ask, "bash", *words], capture_output=True, text=True, check=True).stdout.split()

    assert complete("torpor", "b") == ["boot", "build"]
    assert complete("torpor", "ex") == ["exec"]
    assert complete("torpor", "create", "--auto") == ["--auto-resume"]
    assert complete("torpor", "keys", "re") == ["revoke"]
    assert complete("torpor", "--v") == ["--version"]
    assert complete("torpor", "run", "--te") == ["--template"]
    assert complete("torpor", "build", "--") == ["--help", "--warm", "--refresh", "--json", "--data"]
