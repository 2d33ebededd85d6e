"""`torpor`: parses, calls apps, prints. Nothing heavy is imported until a command needs it: the help must be there at once."""

from __future__ import annotations

import gc
import importlib
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torpor import __version__
from torpor.cli.completion import completion
from torpor.cli.grammar import parse
from torpor.cli.sandbox_grammar import FAMILY, environment
from torpor.cli.show import Screen, fail
from torpor.log import configure


def _apps(name: str) -> Any:
    return importlib.import_module(f"torpor.apps.{name}")


def _at_ease(name: str) -> Any:
    """A module of apps that lives long. The garbage collector does not look through what its import makes, which is never garbage: not again and again while
    it grows, a sixth of the import, nor in the pauses of a server at work."""
    gc.disable()
    module = _apps(name)
    gc.freeze()
    gc.enable()
    return module


def _settings(home: Path | None, log_level: str = "warning", flags: Mapping[str, object] | None = None) -> Any:
    """`log_level`: what applies when nobody set one; standard error belongs to the command that is run."""
    settings = _apps("settings").resolve({"home": home, **(flags or {})}, defaults={"log_level": log_level})
    configure(settings.log_level)
    return settings


def _run(words: Namespace, screen: Screen) -> int:
    apps = _apps("run")
    spec = apps.RunSpec(
        argv=words.command,
        template=words.template,
        shape=_shape(screen, words.vcpus, words.memory, words.disk),
        network=importlib.import_module("torpor.model.sandbox").NetworkMode(words.net),
        env=environment(words.env),
        workdir=words.workdir,
        user=words.user,
        timeout=words.timeout,
        capture=words.json,
    )
    result = apps.main(spec, _settings(words.data), screen.progress)
    if words.json:
        document = {"sandbox_id": result.sandbox_id, "exit_code": result.exit_code, "timed_out": result.timed_out, "oom": result.oom}
        streams = {"stdout": result.stdout.decode(errors="replace"), "stderr": result.stderr.decode(errors="replace")}
        screen.document(document | streams)
    exit_code: int = result.exit_code
    return exit_code


def _doctor(words: Namespace, screen: Screen) -> int:
    findings = _apps("doctor").main(_settings(words.data))
    screen.findings(findings)
    return 0 if all(finding.holds or not finding.needed for finding in findings) else 1


def _templates(words: Namespace, screen: Screen) -> int:
    """The server's, or, when there is none, what is built here."""
    code: int | None = importlib.import_module("torpor.cli.team").templates(words, screen)
    if code is None:
        rows = _apps("templates").listing(_settings(words.data))
        if words.quiet and not words.json:
            print(*(row["name"] for row in rows), sep="\n")
        else:
            screen.table("Templates", rows)
        code = 0
    return code


def _remote(words: Namespace, screen: Screen) -> int:
    """A command that talks to a server: its family's module has a function of its name."""
    family = importlib.import_module(f"torpor.cli.{FAMILY[words.name]}")
    function = getattr(family, words.name, None) or getattr(family, f"{words.name}_")
    code: int = function(words, screen)
    return code


def _build(words: Namespace, screen: Screen) -> int:
    rows = _apps("templates").build(words.names, _settings(words.data), screen.progress, screen.note, warm=words.warm, refresh=words.refresh)
    screen.table("Templates", rows)
    return 0


def _host(words: Namespace, screen: Screen) -> int:
    _at_ease("host").main(_settings(words.data, "info"), screen.progress, screen.note)
    return 0


def _serve(words: Namespace, screen: Screen) -> int:
    given = {name: getattr(words, name) for name in ("host", "port", "database", "redis", "tls_certificate", "tls_key", "insecure_http")}
    given |= {name: getattr(words, name) for name in ("domain", "proxy_port", "tls")}
    _at_ease("serve").main(_settings(words.data, "info", given), screen.progress, screen.note)
    return 0


def _certs(words: Namespace, screen: Screen) -> int:
    found = _apps("certs").main(_settings(words.data, flags={"domain": words.domain}), screen.note)
    if words.json:
        screen.document({name: str(getattr(found, name)) for name in ("domain", "authority", "certificate", "key")} | {"made": found.made})
    return 0


_COMMANDS: dict[str, Callable[[Namespace, Screen], int]] = {
    **dict.fromkeys(FAMILY, _remote),
    "run": _run,
    "doctor": _doctor,
    "templates": _templates,
    "build": _build,
    "host": _host,
    "serve": _serve,
    "certs": _certs,
}


def _shape(screen: Screen, vcpus: int, memory: int, disk: int) -> Any:
    shape = importlib.import_module("torpor.model.shapes").Shape.fit(vcpus, memory, disk)
    if (shape.vcpus, shape.memory_mib) != (vcpus, memory):
        screen.note(f"Rounded up to {shape}.")
    return shape


def _perform(arguments: Sequence[str]) -> int:
    """Errors of ours end with their lines and exit code 125; a command's own codes are below."""
    screen = Screen(_wants_json(arguments))
    with fail(screen):
        words = parse(arguments)
        if words.version:
            print(__version__)
        elif words.show_completion:
            print(completion(words.show_completion), end="")
        else:
            screen.exit_code = _COMMANDS[words.name](words, screen)
        sys.stdout.flush()
    return screen.exit_code


def _wants_json(arguments: Sequence[str]) -> bool:
    """Known before the rest is understood: errors in it are told as JSON, too."""
    ours = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in ours


def main() -> None:
    """The console script."""
    try:
        sys.exit(_perform(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
