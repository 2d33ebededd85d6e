"""The network card, set up by ioctls: no program is started. Numbers from include/uapi/linux/sockios.h, if.h and route.h."""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Mapping

_SIOCADDRT, _SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCSIFADDR, _SIOCSIFNETMASK, _SIOCSIFMTU, _SIOCSIFHWADDR = 0x890B, 0x8913, 0x8914, 0x8916, 0x891C, 0x8922, 0x8924
_IFF_UP, _RTF_UP, _RTF_GATEWAY, _ARPHRD_ETHER = 1, 1, 2, 1
RESOLV_CONF = "/etc/resolv.conf"


def _address(text: str) -> bytes:
    """struct sockaddr_in."""
    return struct.pack("<HH4s8x", socket.AF_INET, 0, socket.inet_aton(text))


def card() -> str | None:
    """The first network card that is not the loopback."""
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir("/sys/class/net")):
            if name != "lo" and os.path.exists(f"/sys/class/net/{name}/device"):
                return name
    return None


class Card:
    """Ioctls on one interface. Use as a context."""

    def __init__(self, name: str) -> None:
        self._name = name.encode()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def __enter__(self) -> Card:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._socket.close()

    def _set(self, request: int, value: bytes) -> bytes:
        return fcntl.ioctl(self._socket, request, struct.pack("16s24s", self._name, value))

    def flags(self) -> int:
        return int(struct.unpack_from("<H", self._set(_SIOCGIFFLAGS, b""), 16)[0])

    def up(self, on: bool) -> None:
        flags = self.flags()
        self._set(_SIOCSIFFLAGS, struct.pack("<H", flags | _IFF_UP if on else flags & ~_IFF_UP))

    def mac(self, text: str) -> None:
        self._set(_SIOCSIFHWADDR, struct.pack("<H6s", _ARPHRD_ETHER, bytes.fromhex(text.replace(":", ""))))

    def mtu(self, size: int) -> None:
        self._set(_SIOCSIFMTU, struct.pack("<i", size))

    def address(self, text: str, prefix: int) -> None:
        self._set(_SIOCSIFADDR, _address(text))
        self._set(_SIOCSIFNETMASK, _address(str(ipaddress.ip_network(f"0.0.0.0/{prefix}").netmask)))

    def gateway(self, text: str) -> None:
        """The default route (struct rtentry)."""
        entry = struct.pack("<Q16s16s16sHhQQhQHQ", 0, _address("0.0.0.0"), _address(text), _address("0.0.0.0"), _RTF_UP | _RTF_GATEWAY, 0, 0, 0, 0, 0, 0, 0)
        with contextlib.suppress(FileExistsError):
            fcntl.ioctl(self._socket, _SIOCADDRT, entry + bytes(64))


_applied: Mapping[str, str] | None = None
"""What the card was last told; at boot it is down."""


def apply(plan: Mapping[str, str] | None) -> None:
    """Sets the card up by `plan` (address, prefix, gateway, dns, mac, mtu; every value text), or takes it down for None. Raises OSError, ValueError."""
    global _applied
    if plan == _applied or (name := card()) is None:
        return
    _applied = {}  # neither this nor that, should a step fail
    with Card(name) as interface:
        if plan is None:
            interface.up(False)
            _applied = None
            return
        if mac := plan.get("mac"):
            with open(f"/sys/class/net/{name}/address") as file:
                if file.read().strip() != mac.lower():
                    interface.up(False)
                    interface.mac(mac)
        if mtu := plan.get("mtu"):
            interface.mtu(int(mtu))
        interface.address(plan["address"], int(plan.get("prefix", "24")))
        interface.up(True)
        if gateway := plan.get("gateway"):
            interface.gateway(gateway)
    servers = plan.get("dns", "").replace(",", " ").split()
    _write_resolver("".join(f"nameserver {server}\n" for server in servers))
    _applied = dict(plan)


def _write_resolver(text: str) -> None:
    if text:
        with open(RESOLV_CONF, "w") as file:
            file.write(text)


def loopback_up() -> None:
    with Card("lo") as interface:
        interface.up(True)


def own_address() -> str | None:
    """The address the card was last given."""
    return _applied.get("address") if _applied else None
