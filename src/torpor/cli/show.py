"""What the terminal shows: rich for people, JSON for programs. Results go to stdout; progress, notes and errors to stderr."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torpor.model.errors import HostError, TorporError

FAILED = 125
"""Exit code of a failure of ours, so that it is not taken for the command's."""


class Screen:
    """One command's output, and the exit code it is to end with."""

    def __init__(self, as_json: bool) -> None:
        self._json = as_json
        self.exit_code = 0
        self._progress: Any = None
        self._task: Any = None

    def progress(self, what: str, fraction: float) -> None:
        """A moving bar on a terminal, one line per step elsewhere, nothing with --json."""
        if self._json:
            return
        if not sys.stderr.isatty():
            if what != self._task:
                self._task = what
                print(f"torpor: {what}", file=sys.stderr, flush=True)
            return
        if self._progress is None:
            from rich.console import Console  # noqa: PLC0415 - only a long operation pays for it
            from rich.progress import Progress  # noqa: PLC0415

            self._progress = Progress(console=Console(stderr=True), transient=True)
            self._progress.start()
            self._task = self._progress.add_task(what, total=1.0)
        self._progress.update(self._task, description=what, completed=fraction)

    def done(self) -> None:
        """Takes the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def note(self, text: str) -> None:
        if not self._json:
            print(f"torpor: {text}", file=sys.stderr, flush=True)

    def waiting(self, what: str) -> None:
        """Something moves on a terminal until `done`; nothing elsewhere."""
        if self._json or not sys.stderr.isatty() or self._progress is not None:
            return
        from rich.console import Console  # noqa: PLC0415 - as above
        from rich.status import Status  # noqa: PLC0415

        self._progress = Status(what, console=Console(stderr=True))
        self._progress.start()

    def warn(self, text: str) -> None:
        """Something that went only half, with --json too."""
        self.done()
        print(f"torpor: {text}", file=sys.stderr, flush=True)

    def error(self, error: TorporError) -> None:
        """One line with the cause, one with the mend."""
        self.done()
        if self._json:
            print(json.dumps({"error": {"code": error.code, "message": error.message, "mend": error.mend}}))
            return
        print(f"torpor: {error.message}", file=sys.stderr)
        if error.mend:
            print(f"        {error.mend}", file=sys.stderr)

    def document(self, document: Mapping[str, object]) -> None:
        """The one document of a command with --json."""
        print(json.dumps(document))

    def table(self, title: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Rows with equal keys; the keys are the columns."""
        self.done()
        if self._json:
            print(json.dumps({title.lower(): list(rows)}, indent=1))
            return
        from rich.console import Console  # noqa: PLC0415
        from rich.markup import escape  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415

        table = Table(box=None, header_style="bold")
        for column in rows[0] if rows else ():
            table.add_column(column, no_wrap=column in ("id", "name", "tag"), overflow="fold")
        for row in rows:
            table.add_row(*(escape(str(value)) for value in row.values()))
        Console(highlight=False, width=None if sys.stdout.isatty() else 240).print(table)

    def facts(self, facts: Mapping[str, str]) -> None:
        """What there is to say of one thing, a line each."""
        self.done()
        from rich.console import Console  # noqa: PLC0415
        from rich.markup import escape  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415

        table = Table(box=None, show_header=False)
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for name, text in facts.items():
            table.add_row(name, escape(text))
        Console(highlight=False).print(table)

    def findings(self, findings: Sequence[Any]) -> None:
        """The doctor's lines: a mark, the name, the detail, and how to mend it."""
        self.done()
        if self._json:
            from dataclasses import asdict  # noqa: PLC0415 - as rich

            print(json.dumps({"findings": [asdict(finding) for finding in findings]}, indent=1))
            return
        from rich.console import Console  # noqa: PLC0415

        console = Console(highlight=False)
        for finding in findings:
            mark = "[green]ok  [/]" if finding.holds else "[red]no  [/]" if finding.needed else "[yellow]-   [/]"
            console.print(f"{mark} {finding.name}: {finding.detail}", soft_wrap=True)
            if finding.mend and not finding.holds:
                console.print(f"       {finding.mend}", soft_wrap=True)


@contextmanager
def fail(screen: Screen) -> Iterator[None]:
    """Turns an error of ours or of the system into its lines and exit code 125, a reader that left into SIGPIPE's code; takes the progress bar away."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # so that the interpreter's last flush has somewhere to go
        screen.exit_code = 128 + signal.SIGPIPE
    except OSError as error:  # of a system call that no room of ours expects to fail: the path and the system's own word for it
        screen.error(HostError(f"{error.filename or 'The system'}: {error.strerror or error}."))
        screen.exit_code = FAILED
    except TorporError as error:
        screen.error(error)
        screen.exit_code = FAILED
    finally:
        screen.done()
