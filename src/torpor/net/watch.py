"""Hears of changes that others make to the host and that sandboxes depend on: a ruleset flushed (`nft flush ruleset`, a reload of the nftables service) takes
our table with it; a default route that moves to another interface changes the uplink.

Only a hint: what is to be done, if anything, is found out by `HostSide.ensure`. Group and message numbers are the kernel's (linux/rtnetlink.h,
linux/netfilter/nfnetlink.h, nf_tables.h).
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Callable

from torpor.net.netlink import NETLINK_NETFILTER, NETLINK_ROUTE, NFNL_NFTABLES, RTM_DELROUTE, RTM_NEWROUTE

_NFT_MSG_DELTABLE = 2
_GROUP = 1 << 6  # the seventh of either family: IPv4 routes, nf_tables
_HEADER = struct.Struct("=IHHII")


class Watch:
    """Calls `on_change` in the event loop until `close`. Listens in the namespace of the thread that makes it."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._sockets: list[socket.socket] = []
        try:
            for family in (NETLINK_ROUTE, NETLINK_NETFILTER):
                listener = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, family)
                self._sockets.append(listener)
                listener.bind((0, _GROUP))
                self._loop.add_reader(listener.fileno(), self._read, listener)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Idempotent."""
        while self._sockets:
            listener = self._sockets.pop()
            self._loop.remove_reader(listener.fileno())
            listener.close()

    def _read(self, listener: socket.socket) -> None:
        try:
            changed = matters(listener.recv(1 << 16))
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            changed = True  # messages were lost: any of them may have mattered
        if changed:
            self._on_change()


def matters(data: bytes) -> bool:
    """True if one of the messages tells of a default route (or half of one) or of a table removed."""
    while len(data) >= _HEADER.size:
        length, kind, _, _, _ = _HEADER.unpack_from(data)
        if kind in (RTM_NEWROUTE, RTM_DELROUTE) and len(data) > 17 and data[17] <= 1:  # rtm_dst_len
            return True
        if kind == NFNL_NFTABLES | _NFT_MSG_DELTABLE:
            return True
        data = data[max(_HEADER.size, (length + 3) & ~3) :]
    return False
