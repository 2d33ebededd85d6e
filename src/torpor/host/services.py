"""A template's service: started in a booting guest, waited for until it is ready, so that it lies in the warm image running.

start ----------------------------------------------> runs on, also through pauses and in clones
  ready? -- no --> again after a second -- ... -- yes -> done
  the service ends, or the time is over -----------> HostError with the last of its output
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from torpor.log import Log
from torpor.model.errors import GuestOSError, HostError
from torpor.ports.guest import ExecSpec, Exited, Guest, GuestProcess
from torpor.ports.images import Service

log = Log()

TAG = "torpor.service"
_BETWEEN = 1.0
_LONGEST_TRY = 60.0
_TOLD = 2000
"""Bytes of the service's last output that an error tells."""
_EXERCISE_SECONDS = 120.0


async def start_service(guest: Guest, service: Service, name: str) -> None:
    """Returns when the service of template `name` is ready; it runs on. Raises HostError when it ends or is not ready in time, and what the guest raises."""
    process = await guest.exec(ExecSpec(service.start, tag=TAG))
    tail = _Tail()
    reading = asyncio.create_task(tail.follow(process))
    ending = asyncio.create_task(process.wait())
    waiting = asyncio.create_task(_until_ready(guest, service.ready))
    try:
        await asyncio.wait({ending, waiting}, timeout=service.ready_seconds, return_when=asyncio.FIRST_COMPLETED)
        if ending.done():
            await asyncio.wait({reading}, timeout=_BETWEEN)
            raise HostError(f"The service of template {name} ended before it was ready ({_how(ending.result())}). It said: {tail.text()}")
        if not waiting.done():
            raise HostError(f"The service of template {name} was not ready after {service.ready_seconds:.0f} s. It said: {tail.text()}")
        waiting.result()
    finally:
        for task in (reading, ending, waiting):
            task.cancel()
        await asyncio.gather(reading, ending, waiting, return_exceptions=True)
        process.detach()


async def exercise_service(guest: Guest, service: Service, name: str) -> None:
    """In a running machine that waits for its user: what the first use runs is run once. That it fails is no fault of the machine's."""
    if service.exercise:
        ended = await _once(guest, service.exercise, _EXERCISE_SECONDS)
        if ended.shell_code != 0:
            log.warning("service_not_exercised", template=name, how=_how(ended))
    if service.port is not None:
        try:
            (await guest.connect(service.port)).close()
        except GuestOSError as error:
            log.warning("service_not_connected", template=name, error=str(error))


async def _until_ready(guest: Guest, ready: Sequence[str]) -> None:
    started = time.monotonic()
    while (await _once(guest, ready, _LONGEST_TRY)).shell_code != 0:  # noqa: ASYNC110 - it can only be asked again
        await asyncio.sleep(_BETWEEN)
    log.info("service_ready", seconds=round(time.monotonic() - started, 1))


async def _once(guest: Guest, argv: Sequence[str], seconds: float) -> Exited:
    process = await guest.exec(ExecSpec(argv, timeout=seconds))
    process.detach()
    ended = await process.wait()
    await guest.forget(process.exec_id)
    return ended


def _how(ended: Exited) -> str:
    return f"signal {ended.signal}" if ended.signal is not None else f"exit code {ended.code}"


class _Tail:
    """The last of a command's output."""

    def __init__(self) -> None:
        self._bytes = b""

    async def follow(self, process: GuestProcess) -> None:
        async for piece in process.output():
            self._bytes = (self._bytes + piece.data)[-_TOLD:]

    def text(self) -> str:
        return self._bytes.decode(errors="replace").strip() or "nothing"
