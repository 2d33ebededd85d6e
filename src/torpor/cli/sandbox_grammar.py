"""The words of the commands that talk to a server. What they do is in the modules of their families, which are imported when one is called."""

from __future__ import annotations

import os
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Sequence
from pathlib import Path

from torpor.model.errors import InvalidInput

Fill = Callable[[ArgumentParser], None]


def reach(parser: ArgumentParser, *, json: bool = True) -> None:
    """Where the server is and who asks."""
    if json:
        parser.add_argument("--json", action="store_true", help="print one JSON document, for programs")
    else:
        parser.set_defaults(json=False)
    parser.add_argument("--url", metavar="URL", help="the server's address (TORPOR_URL, else that of this home's server)")
    parser.add_argument("--key", metavar="KEY", help="the API key (TORPOR_API_KEY, else this home's own); others may see it in the list of processes")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the data directory of this machine's server (TORPOR_HOME)")


def pair(text: str) -> tuple[str, str]:
    name, given, value = text.partition("=")
    if not given or not name:
        raise ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def environment(pairs: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE, or NAME for what this process has. Raises InvalidInput."""
    found = {}
    for text in pairs:
        name, given, value = text.partition("=")
        if not name or "\0" in text:
            raise InvalidInput(f"--env {text!r}: NAME=VALUE, or NAME.")
        if not given and name not in os.environ:
            raise InvalidInput(f"--env {name}: it is not set here.")
        found[name] = value if given else os.environ[name]
    return found


def on_or_off(text: str) -> str:
    if text not in ("on", "off"):
        raise ArgumentTypeError(f"{text!r} is neither: on or off")
    return text


def _one(parser: ArgumentParser) -> None:
    parser.add_argument("sandbox", metavar="SANDBOX", help="an id, the beginning of one, or a name")


def _several(parser: ArgumentParser) -> None:
    parser.add_argument("sandboxes", nargs="+", metavar="SANDBOX", help="ids, beginnings of them, or names")


def _quiet(parser: ArgumentParser, what: str = "print ids only") -> None:
    parser.add_argument("-q", "--quiet", action="store_true", help=what)


def _create(parser: ArgumentParser) -> None:
    parser.add_argument("template", nargs="?", default="base", metavar="TEMPLATE", help="the template or snapshot to start from (base)")
    parser.add_argument("--name", dest="called", metavar="NAME", help="a name to call it by: the label `name`")
    parser.add_argument("--vcpus", type=int, default=1, metavar="N", help="vCPUs: 1, 2, 4 or 8 (1)")
    parser.add_argument("--memory", type=int, default=512, metavar="MIB", help="memory in MiB (512)")
    parser.add_argument("--disk", type=int, default=4096, metavar="MIB", help="disk in MiB (4096)")
    parser.add_argument("--net", type=on_or_off, default="off", metavar="on|off", help="the network (off)")
    parser.add_argument("--env", action="append", default=[], metavar="NAME[=VALUE]", help="for every command in it; NAME alone takes it from here; repeatable")
    parser.add_argument("--label", action="append", default=[], type=pair, metavar="NAME=VALUE", help="repeatable")
    parser.add_argument("--timeout", type=int, default=0, metavar="S", help="seconds without use after which it is paused, or killed; 0: never (0)")
    parser.add_argument("--lifetime", type=int, metavar="S", help="seconds after which that happens whatever it does")
    parser.add_argument("--on-timeout", choices=("pause", "kill"), default="pause", help="what happens then (pause)")
    parser.add_argument("--auto-resume", action="store_true", help="use wakes it when it is paused")
    _quiet(parser, "say nothing but the id")
    reach(parser)


def _list(parser: ArgumentParser) -> None:
    parser.add_argument("-a", "--all", action="store_true", help="those that have ended, too (kept for 30 days)")
    parser.add_argument("--state", action="append", metavar="STATE", help="only in this state, such as running or paused; repeatable")
    parser.add_argument("--template", metavar="NAME", help="only those started from it")
    parser.add_argument("--label", action="append", default=[], type=pair, metavar="NAME=VALUE", help="only with this label; repeatable, all must match")
    _quiet(parser)
    reach(parser)


def _show(parser: ArgumentParser) -> None:
    _several(parser)
    reach(parser)


def _move(parser: ArgumentParser) -> None:
    _several(parser)
    _quiet(parser)
    reach(parser)


def _fork(parser: ArgumentParser) -> None:
    _one(parser)
    parser.add_argument("-n", "--count", type=int, default=1, metavar="N", help="how many copies, all or none (1)")
    _quiet(parser)
    reach(parser)


def _snapshot(parser: ArgumentParser) -> None:
    _one(parser)
    parser.add_argument("snapshot", nargs="?", metavar="NAME", help="a name for it (made up unless given)")
    parser.add_argument("--overwrite", action="store_true", help="replace the one of that name, once the new one is complete")
    parser.add_argument("--pause", action="store_true", help="leave the sandbox paused")
    _quiet(parser, "print the name only")
    reach(parser)


def _rollback(parser: ArgumentParser) -> None:
    _one(parser)
    parser.add_argument("snapshot", metavar="NAME", help="a snapshot that was made of it")
    _quiet(parser)
    reach(parser)


def _how_to_run(parser: ArgumentParser) -> None:
    parser.add_argument("--env", action="append", default=[], metavar="NAME[=VALUE]", help="for the command; NAME alone takes it from here; repeatable")
    parser.add_argument("--workdir", metavar="DIR", help="the directory to start in (the user's home)")
    parser.add_argument("--user", metavar="NAME", help="the user to run as (the template's)")


def _exec(parser: ArgumentParser) -> None:
    parser.usage = "torpor exec [OPTIONS] SANDBOX [--] CMD..."
    _one(parser)
    parser.add_argument("-d", "--detach", action="store_true", help="start it, print its tag, and leave it alone: see torpor ps and torpor logs")
    parser.add_argument("-T", "--no-terminal", action="store_true", help="no terminal for it, even if this is one")
    parser.add_argument("--tag", metavar="TAG", help="a word to find it by")
    parser.add_argument("--timeout", type=float, metavar="S", help="seconds after which the command and all it started are killed; exit code 124")
    _how_to_run(parser)
    reach(parser)


def _shell(parser: ArgumentParser) -> None:
    parser.usage = "torpor shell [OPTIONS] SANDBOX [[--] CMD...]"
    _one(parser)
    parser.add_argument("--attach", metavar="TAG", help="take up a terminal that runs, as torpor ps shows it")
    _how_to_run(parser)
    reach(parser, json=False)


def _cp(parser: ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a path, or SANDBOX:PATH; - is standard input")
    parser.add_argument("target", metavar="TARGET", help="a path, or SANDBOX:PATH; - is standard output")
    parser.add_argument("--user", metavar="NAME", help="who owns what is written in the sandbox (the template's user)")
    _quiet(parser, "no progress")
    reach(parser)


def _ps(parser: ArgumentParser) -> None:
    _one(parser)
    parser.add_argument("-a", "--all", action="store_true", help="those that have ended, too, as far as they are remembered")
    _quiet(parser, "print tags only")
    reach(parser)


def _logs(parser: ArgumentParser) -> None:
    _one(parser)
    parser.add_argument("process", nargs="?", metavar="PROCESS", help="a pid or tag, as torpor ps -a shows it (the command that was started last)")
    parser.add_argument("-f", "--follow", action="store_true", help="until it ends, or Ctrl-C, which leaves it running")
    parser.add_argument("--events", action="store_true", help="instead of output: what happened to the sandbox")
    reach(parser)


def _url(parser: ArgumentParser) -> None:
    _one(parser)
    parser.add_argument("port", type=int, metavar="PORT", help="the port that a server in the sandbox listens on")
    parser.add_argument("--for", dest="seconds", type=int, default=3600, metavar="S", help="seconds that it is good for, at most 7 days (3600)")
    _quiet(parser, "print the address only")
    reach(parser)


def _templates(parser: ArgumentParser) -> None:
    parser.add_argument("--remove", action="append", default=[], metavar="NAME", help="delete a snapshot of yours; repeatable")
    _quiet(parser, "print names only")
    reach(parser)


def _keys(parser: ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", title="actions", required=True)
    create = actions.add_parser("create", help="make a key; it is shown once")
    create.add_argument("key_name", nargs="?", default="", metavar="NAME")
    create.add_argument("--scope", action="append", metavar="SCOPE", help="what it may do, such as sandboxes:read; repeatable (everything)")
    create.add_argument("--days", type=float, metavar="N", help="it expires after so many days (never)")
    _quiet(create, "print the key only")
    reach(create)
    reach(actions.add_parser("list", help="the keys that were not revoked"))
    revoke = actions.add_parser("revoke", help="keys that stop working at once")
    revoke.add_argument("ids", nargs="+", metavar="ID")
    reach(revoke)


COMMANDS: tuple[tuple[str, Fill, str], ...] = (
    ("create", _create, "Start a sandbox. Its id is printed when it runs."),
    ("list", _list, "List the sandboxes, newest first."),
    ("show", _show, "Show all about sandboxes."),
    (
        "exec",
        _exec,
        "Run a command in a sandbox. Its streams are passed through, its exit code is kept; on a terminal it has one. It survives a server restart.",
    ),
    ("shell", _shell, "Open a terminal in a sandbox. It survives a server restart."),
    ("cp", _cp, "Copy a file or a directory, in either direction. A file is there complete or not at all; nothing is written outside of TARGET."),
    ("ps", _ps, "List the commands in a sandbox."),
    ("logs", _logs, "Print what a command said, as far as the sandbox remembers it: the last 1 MiB."),
    ("pause", _move, "Pause sandboxes. When it returns, every byte of them is on disk and nothing of them runs."),
    ("resume", _move, "Resume paused sandboxes: they go on where they stood."),
    ("boot", _move, "Start paused sandboxes from their disks alone: what was in memory is lost."),
    ("fork", _fork, "Copy a running sandbox, which runs on."),
    ("snapshot", _snapshot, "Make a template of a sandbox as it is now, which runs on."),
    ("rollback", _rollback, "Take a sandbox back to a snapshot of it. What it did since is lost."),
    ("kill", _move, "End sandboxes, from any state."),
    ("url", _url, "Print an address of a sandbox's port that needs no key, for a while."),
    ("templates", _templates, "List what sandboxes start from: the server's templates and snapshots, or, without a server, what is built here."),
    ("keys", _keys, "Make, list and revoke API keys."),
)
FAMILY = {
    **dict.fromkeys(("create", "list", "show", "pause", "resume", "boot", "fork", "snapshot", "rollback", "kill", "url"), "sandboxes"),
    **dict.fromkeys(("exec", "shell", "ps", "logs"), "commands"),
    "cp": "copying",
    **dict.fromkeys(("templates", "keys"), "team"),
}
"""Which module of this room does it: its function of the command's name, a trailing _ where Python has the word."""
