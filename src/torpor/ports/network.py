"""The seam to host networking: a pool of ready slots, so that no start waits for the kernel's configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torpor.model.sandbox import Egress, NetworkMode


@dataclass(frozen=True, slots=True)
class NetworkSlot:
    """One network namespace with its tap. `guest`: what the guest configures (address, prefix, gateway, dns, mac, mtu), the same in every sandbox."""

    name: str
    netns: Path
    tap: str
    guest: Mapping[str, str]


class Networks(Protocol):
    async def open(self, in_use: Sequence[str]) -> None:
        """Takes back the slots named (held by adopted machines), removes every other slot of this home that a dead owner left. Slots of other homes
        are not touched."""
        ...

    def problems(self) -> Sequence[str]:
        """Why mode `on` is not to be had here, one clear line each; empty when it is."""
        ...

    async def warnings(self) -> Sequence[str]:
        """What may keep packets from flowing although mode `on` is to be had, such as a firewall of the host's, one line each with its mend. Runs tools:
        for doctor, not for a start. Raises HostError."""
        ...

    async def acquire(self, mode: NetworkMode) -> NetworkSlot | None:
        """A clean slot: no traffic of an earlier user possible. None for OFF. Takes a pooled slot at once if there is
        one and refills in the
        background. Raises NoPermission (no root), MissingTool (nft), NoSpace (slots exhausted)."""
        ...

    async def restrict(self, slot: NetworkSlot, egress: Egress) -> None:
        """Where the slot's guest may go, in the place of what was said before; also for connections that are open. Domains are judged outside of the guest, by
        the name that a connection is for (HTTP's Host, TLS's server name). All of it counts at once, or nothing. Raises InvalidInput (what is no network,
        address or domain), NotFound (a slot not in use), HostError: then what was said before holds."""
        ...

    async def open_tap(self, slot: NetworkSlot) -> int:
        """A new descriptor of the slot's tap, to be passed to the VMM, which then needs neither /dev/net/tun nor a privilege. The caller closes it.
        Raises NotFound (a slot not in use), Denied IN_USE while an earlier descriptor is open somewhere."""
        ...

    async def release(self, slot: NetworkSlot) -> None:
        """The slot's connections are gone when this returns; the slot itself is destroyed or renewed. Idempotent. The VMM must be dead."""
        ...

    def adopt(self, name: str) -> NetworkSlot:
        """A slot in use by a machine taken back. Raises NotFound."""
        ...

    async def close(self) -> None:
        """Removes idle pooled slots; those in use stay, for the next owner of the home."""
        ...
