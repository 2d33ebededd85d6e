"""What may stand on the command line: commands, options, their help. The standard library's argparse: libraries that make a command line out of annotations
take longer to import than a sandbox takes to start (docs/decisions/0021-a-command-line-that-is-there-at-once.md)."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from torpor.cli import sandbox_grammar
from torpor.model.errors import InvalidInput

SHELLS = ("bash", "zsh")


class Grammar(ArgumentParser):
    """Wrong words raise InvalidInput, so that they end like every other error of ours: one line, the mend, exit code 125."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**(how | {"allow_abbrev": False}))

    def error(self, message: str) -> NoReturn:
        raise InvalidInput(f"{message}.", mend=f"See: {self.prog} --help")


def grammar() -> Grammar:
    """The whole of it. The commands' own parsers are in its one group of commands."""
    top = Grammar(prog="torpor", description="Runs untrusted code in microVMs that sleep and wake in milliseconds.")
    top.add_argument("--version", action="store_true", help="print the version")
    top.add_argument("--show-completion", choices=SHELLS, metavar="SHELL", help=f"print the completion script for {' or '.join(SHELLS)}: eval it")
    commands = top.add_subparsers(dest="name", metavar="COMMAND", title="commands")
    for name, fill, text in (*_COMMANDS[:1], *sandbox_grammar.COMMANDS, *_COMMANDS[1:]):
        summary = text.partition(".")[0].partition(":")[0]
        fill(commands.add_parser(name, help=summary[0].lower() + summary[1:], description=text))
    return top


def parse(arguments: Sequence[str]) -> Namespace:
    """The words of one call. `run`, `exec` and `shell` have their command in `command`. Prints the help and exits when asked for it, or when there is nothing
    to do. Raises InvalidInput."""
    parser = grammar()
    name = arguments[0] if arguments else ""
    ours, command = _split(name, arguments) if name in _TAKING else (arguments, [])
    words = parser.parse_args(ours)
    if words.name is None and not words.version and not words.show_completion:
        parser.print_help(sys.stderr)
        sys.exit(2)
    if words.name in _TAKING:
        if not command and words.name != "shell":
            raise InvalidInput(f"torpor {name}: the command is missing.", mend=f"As in: torpor {name} {_TAKING[name]}-- echo hello")
        words.command = command
    return words


_TAKING = {"run": "", "exec": "SANDBOX ", "shell": "SANDBOX "}
"""Commands that take another command, whose options are not ours -> what stands before it."""
_ALONE = frozenset(("--json", "-h", "--help", "-d", "--detach", "-T", "--no-terminal"))
"""Their options without a value."""


def _split(name: str, arguments: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Our words, and the command: what follows `--`, or begins with the first word that is neither ours nor the value of one of our options."""
    at, missing = 1, len(_TAKING[name].split())
    while at < len(arguments):
        word = arguments[at]
        if word == "--" and not missing:
            return arguments[:at], arguments[at + 1 :]
        if len(word) < 2 or not word.startswith("-"):
            if not missing:
                break
            missing -= 1
            at += 1
            continue
        alone = "=" in word or word in _ALONE or "--" in arguments[at + 1 : at + 2]
        at += 1 if alone else 2
    return arguments[:at], arguments[at:]


def _common(parser: ArgumentParser, *, json: bool = True) -> None:
    if json:
        parser.add_argument("--json", action="store_true", help="print one JSON document, for programs")
    else:
        parser.set_defaults(json=False)
    parser.add_argument("--data", type=Path, metavar="DIR", help="the data directory (TORPOR_HOME)")


def _run(parser: ArgumentParser) -> None:
    parser.usage = "torpor run [OPTIONS] -- CMD..."
    parser.add_argument("--template", default="base", metavar="NAME", help="the template to start from (base)")
    parser.add_argument("--vcpus", type=int, default=1, metavar="N", help="vCPUs: 1, 2, 4 or 8 (1)")
    parser.add_argument("--memory", type=int, default=512, metavar="MIB", help="memory in MiB (512)")
    parser.add_argument("--disk", type=int, default=4096, metavar="MIB", help="disk in MiB (4096)")
    parser.add_argument("--net", type=sandbox_grammar.on_or_off, default="off", metavar="on|off", help="the network (off)")
    parser.add_argument("--env", action="append", default=[], metavar="NAME[=VALUE]", help="for the command; NAME alone takes it from here; repeatable")
    parser.add_argument("--workdir", default="", metavar="DIR", help="the directory to start in (the user's home)")
    parser.add_argument("--user", default="", metavar="NAME", help="the user to run as (the template's)")
    parser.add_argument("--timeout", type=float, metavar="S", help="seconds after which the command and all it started are killed; exit code 124")
    _common(parser)


def _build(parser: ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="templates to build; all unless given")
    parser.add_argument("--warm", action="store_true", help="boot the common shapes once, so that the first start is as fast as the next")
    parser.add_argument("--refresh", action="store_true", help="build them anew even if they are there, from the packages of today")
    _common(parser)


def _serve(parser: ArgumentParser) -> None:
    parser.add_argument("--host", metavar="ADDRESS", help="the address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, metavar="N", help="the port to listen on (8080)")
    parser.add_argument("--database", metavar="URL", help="where the records are: postgresql://..., or a path for SQLite (in the data directory)")
    parser.add_argument("--redis", metavar="URL", help="redis://... when several servers share one PostgreSQL")
    parser.add_argument("--tls-certificate", metavar="FILE", help="PEM file of the TLS certificate")
    parser.add_argument("--tls-key", metavar="FILE", help="PEM file of its private key")
    parser.add_argument("--insecure-http", action="store_const", const=True, help="serve plain HTTP beyond this machine")
    parser.add_argument("--domain", metavar="NAME", help="sandboxes are {port}-{id}.NAME, the API is api.NAME")
    parser.add_argument("--proxy-port", type=int, metavar="N", help="one more port, for sandboxes by path: /{id}/{port}/...")
    parser.add_argument("--tls", choices=("off", "auto"), help="auto: with the certificate that `torpor certs` makes")
    _common(parser, json=False)


def _certs(parser: ArgumentParser) -> None:
    parser.add_argument("--domain", metavar="NAME", help="the domain; that of torpor.toml unless given")
    _common(parser)


_COMMANDS = (
    ("run", _run, "Run one command in a fresh microVM. Its output is streamed, its exit code is kept, and nothing of it stays."),
    ("doctor", _common, "Check this machine: what works, what is missing, and how to mend it. Exit code 1 when sandboxes cannot run."),
    ("build", _build, "Build kernel, agent disk and templates, as far as they are missing. Older images that nothing needs any more are removed."),
    (
        "host",
        lambda parser: _common(parser, json=False),
        "Be this home's host agent until SIGTERM or Ctrl-C: keeps a pool of ready sandboxes for `torpor run`. Sandboxes outlive it.",
    ),
    ("serve", _serve, "Serve the API, with this home's host agent in the same process, until SIGTERM or Ctrl-C. Sandboxes outlive it."),
    (
        "certs",
        _certs,
        "Make a certificate for the domain of sandboxes, under an authority of this home, and say how to use it. Renews what is about to expire.",
    ),
)
