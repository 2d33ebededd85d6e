"""The parts of `make up` around the start of the server, for scripts/up.sh:

check        says where the server's log is to be, or, when it runs already, nothing. Fails when it could not be started
wait PID LOG returns when the server that was started as PID serves. Fails with the end of its log when it ends instead
tell         the address, the key, and what to do next
"""

from __future__ import annotations

import json
import os
import select
import sys
from collections.abc import Sequence
from pathlib import Path

import httpx

from torpor.apps import credential
from torpor.apps.engine import Engine
from torpor.apps.serve import Listening, listen
from torpor.apps.settings import Settings, resolve
from torpor.log import configure
from torpor.model.errors import HomeBusy, HostError, InvalidInput, TorporError

LOG = "server.log"
STARTED = "torpor serves "
LOOK_SECONDS = 0.1
MOST_LOG = 4096
"""Bytes of its end that are shown when the server did not start."""
HEALTH_SECONDS = 10.0


def address(settings: Settings) -> str:
    """Of the server that runs in this home, or would."""
    try:
        return str(json.loads((settings.home / credential.FILE).read_text())["url"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return credential.reachable(_listening(settings).url(settings.port))


def _listening(settings: Settings) -> Listening:
    return Listening(settings.host, settings.port, settings.tls_certificate, settings.tls_key, settings.insecure_http)


def serves(url: str) -> bool:
    """Whether a torpor server answers there."""
    try:
        # Whose certificate it shows does not matter: no secret is sent.
        answer = httpx.get(f"{url}/health", timeout=HEALTH_SECONDS, trust_env=False, verify=False)  # noqa: S501
        return answer.status_code == 200 and answer.json().get("status") == "ok"
    except (httpx.HTTPError, ValueError, AttributeError):
        return False


def check(settings: Settings) -> str:
    """The log's path, or '' when the server of this home runs. Raises HomeBusy when something else owns the home, InvalidInput when the port is taken."""
    engine = Engine(settings)
    try:
        engine.lock()
    except HomeBusy as error:
        if serves(address(settings)):
            return ""
        raise HomeBusy(error.message, mend="That is no server, or it is just starting or ending. Stop it with: make down") from None
    engine.unlock()
    where = _listening(settings)
    where.check()
    try:
        listen(where).close()
    except InvalidInput as error:
        raise InvalidInput(error.message, mend="Is it another torpor's? Choose another port as in: TORPOR_PORT=8081 make up") from None
    log = settings.home / LOG
    if log.exists():
        log.replace(log.with_suffix(".log.1"))
    os.close(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    return str(log)


def wait(pid: int, log: Path) -> None:
    """Raises HostError."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        raise _failed(log) from None
    try:
        while STARTED not in log.read_text(errors="replace"):
            if select.select([pidfd], [], [], LOOK_SECONDS)[0]:
                raise _failed(log)
    finally:
        os.close(pidfd)


def _tail(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - MOST_LOG))
        return file.read().decode(errors="replace")


def _failed(log: Path) -> HostError:
    return HostError(f"The server did not start. The end of {log}:\n{_tail(log).rstrip()}")


def tell(settings: Settings) -> None:
    """The key itself goes to a terminal only: elsewhere may be a log."""
    kept = settings.home / credential.FILE
    key = credential.kept(settings.home)
    shown = key if key and sys.stdout.isatty() else f"the value of `key` in {kept}"
    first = settings.home / "first-password"
    print(
        f"""
torpor is ready, and its server runs in the background.

  address   {address(settings)}
  key       {shown}
  log       {settings.home / LOG}"""
    )
    if first.exists():
        print(f"  login     admin@localhost, with the password in {first}: take it from there and remove the file")
    print(
        """
Next:

  .venv/bin/torpor run -- python3 -c 'print(6*7)'   run something in a fresh microVM
  .venv/bin/torpor create --name web                a sandbox that stays
  .venv/bin/torpor shell web                        a terminal in it
  .venv/bin/torpor list                             what there is
  .venv/bin/torpor doctor                           what holds on this machine
  make down                                         pause everything and stop"""
    )


def _perform(words: Sequence[str], settings: Settings) -> None:
    match words:
        case ["check"]:
            print(check(settings))
        case ["wait", pid, log]:
            wait(int(pid), Path(log))
        case ["tell"]:
            tell(settings)
        case _:
            raise InvalidInput("check, wait PID LOG, or tell.")


def main() -> None:
    try:
        settings = resolve()
        configure("warning")
        _perform(sys.argv[1:], settings)
    except TorporError as error:
        print(f"torpor: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
