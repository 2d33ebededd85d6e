"""Makes sessions with guest agents: ports.guest.GuestLink."""

from __future__ import annotations

from pathlib import Path

from torpor.guestlink import convert
from torpor.guestlink.channel import Channel
from torpor.guestlink.guest import RemoteGuest
from torpor.model.errors import GuestProtocolError, InvalidInput
from torpor.ports.guest import Wake


class Link:
    """Stateless; one for all machines."""

    async def connect(self, socket: Path, *, generation: int | None, timeout: float) -> RemoteGuest:
        channel = Channel(socket)
        await channel.open(generation or 0, None, timeout)
        return RemoteGuest(channel)

    async def connect_and_wake(self, socket: Path, wake: Wake, *, timeout: float) -> RemoteGuest:
        if wake.generation < 1 or len(wake.entropy) < 32:
            raise InvalidInput("A wake needs a generation above 0 and at least 32 bytes of entropy.")
        channel = Channel(socket)
        await channel.open(wake.generation, convert.wake_fields(wake), timeout)
        guest = RemoteGuest(channel)
        try:
            guest.check_wake()
        except GuestProtocolError as error:
            channel.end(error)
            raise
        return guest
