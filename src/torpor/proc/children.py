"""A child as the daemon knows it: a pidfd, and a future that holds how it ended."""

from __future__ import annotations

import asyncio
import json
import os
import signal as signals
from pathlib import Path
from typing import Any

from torpor.log import Log
from torpor.ports.processes import ExitRecord

log = Log()


def read_exit_file(path: Path) -> ExitRecord | None:
    """None when nobody has written it."""
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    return to_record(record)


def write_exit_file(path: Path, record: ExitRecord) -> None:
    """Atomic. Without the directory there is nobody who wants to know, and nothing is written. On a full disk it is only said: whoever asks later learns that
    the child has ended and not how, and whoever waits for the end now must hear of it all the same."""
    temporary = path.with_name(path.name + ".new")
    try:
        temporary.write_text(json.dumps({"code": record.code, "signal": record.signal, "oom": record.oom}))
        os.replace(temporary, path)
    except FileNotFoundError:
        return
    except OSError as error:
        temporary.unlink(missing_ok=True)
        log.warning("exit_not_written", path=str(path), error=str(error))


def to_record(fields: dict[str, Any]) -> ExitRecord:
    return ExitRecord(fields["code"], fields["signal"], bool(fields["oom"]))


class KeptChild:
    """Implements ports.processes.Child. `pidfd` is owned and closed when the child has ended."""

    def __init__(self, name: str, pid: int, start_time: int, pidfd: int, exit_file: Path) -> None:
        self.name = name
        self._pid = pid
        self._start_time = start_time
        self._pidfd = pidfd
        self.exit_file = exit_file
        self._ended: asyncio.Future[ExitRecord] = asyncio.get_running_loop().create_future()

    @property
    def pid(self) -> int:
        return self._pid

    @property
    def start_time(self) -> int:
        return self._start_time

    @property
    def ended(self) -> bool:
        return self._ended.done()

    async def wait(self) -> ExitRecord:
        return await asyncio.shield(self._ended)

    def kill(self, signal: int) -> None:
        if self.ended:
            return
        try:
            signals.pidfd_send_signal(self._pidfd, signal)
        except ProcessLookupError:
            return  # gone between two moments; its record is on the way

    def settle(self, record: ExitRecord) -> None:
        """The child is reaped and gone."""
        if not self._ended.done():
            self._ended.set_result(record)
            self.release()

    def watch_alone(self, on_gone: Any) -> None:
        """Without a keeper: calls `on_gone(self)` when the pidfd says that the process is gone."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._pidfd, lambda: (loop.remove_reader(self._pidfd), on_gone(self)))

    def let_go(self) -> None:
        """The child runs on and nobody will hear of its end: whoever waits for it is cancelled, rather than left waiting."""
        self._ended.cancel()
        self.release()

    def release(self) -> None:
        """Closes the pidfd; the child itself is not touched."""
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
