"""Carries out the steps of a plan in one thread, and undoes a slot whatever state it is in. Blocking; run through `namespaces.in_own_thread`."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from torpor.net import namespaces
from torpor.net.netlink import RouteNetlink, forget_connections
from torpor.net.plan import (
    AddAddress,
    AddDefaultRoute,
    AddNeighbour,
    Listen,
    MakeNamespace,
    MakeTap,
    MakeVeth,
    SetLink,
    SetSysctl,
    SlotPlan,
    Step,
    Where,
)

TUN_DEVICE = Path("/dev/net/tun")
# linux/if_tun.h
TUNSETIFF, TUNSETPERSIST = 0x400454CA, 0x400454CB
IFF_TUN, IFF_TAP, IFF_NO_PI = 0x0001, 0x0002, 0x1000


@dataclass(slots=True)
class Parts:
    """What a slot keeps open in this process: the tap's first descriptor until the VMM gets it, and the DNS relay's sockets."""

    tap: int | None = None
    udp: socket.socket | None = None
    tcp: socket.socket | None = None

    def take_tap(self) -> int | None:
        """The tap's descriptor, now the caller's; None when it was taken before."""
        tap, self.tap = self.tap, None
        return tap

    def close(self) -> None:
        """Idempotent."""
        tap = self.take_tap()
        if tap is not None:
            os.close(tap)
        for listener in (self.udp, self.tcp):
            if listener is not None:
                listener.close()


class Builder:
    """One run through the steps of one slot, in one thread. `parts` is filled on the way, so that what was opened can be closed after a failure."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._stack = ExitStack()
        self._links: dict[Where, RouteNetlink] = {}
        self._spaces: dict[Where, int] = {}
        self._now = Where.HOST

    def run(self, steps: Sequence[Step]) -> None:
        """Raises OSError, its text naming the step that was refused."""
        with self._stack:
            self._arrive(Where.HOST, namespaces.current())
            for step in steps:
                try:
                    self._take(step)
                except OSError as error:
                    raise OSError(error.errno, f"{step.describe()}: {error.strerror or error}") from error

    def _arrive(self, where: Where, descriptor: int) -> None:
        self._stack.callback(os.close, descriptor)
        self._spaces[where], self._now = descriptor, where
        self._links[where] = self._stack.enter_context(RouteNetlink())

    def _be_in(self, where: Where) -> None:
        if self._now is not where:
            namespaces.enter(self._spaces[where])
            self._now = where

    def _take(self, step: Step) -> None:
        match step:
            case MakeNamespace(at):
                self._arrive(Where.SLOT, namespaces.create(at))
            case MakeTap(name):
                self._be_in(Where.SLOT)
                self._parts.tap = attach_tap(name, IFF_TAP, persistent=True)
            case MakeVeth(host, slot, alias):
                self._links[Where.HOST].add_veth(host, slot, self._spaces[Where.SLOT], alias)
            case SetSysctl(where, key, value, optional):
                self._be_in(where)
                write_sysctl(key, value, optional=optional)
            case SetLink(where, name, mac):
                self._links[where].set_up(name, mac)
            case AddAddress(where, name, address, prefix):
                self._links[where].add_address(name, address, prefix)
            case AddNeighbour(where, name, address, mac):
                self._links[where].add_neighbour(name, address, mac)
            case AddDefaultRoute(via, name):
                self._links[Where.SLOT].add_default_route(name, via)
            case Listen(address, port):
                self._be_in(Where.SLOT)
                listen(self._parts, str(address), port)


def attach_tap(name: str, kind: int, *, persistent: bool = False) -> int:
    """A descriptor of the named tap or tun in the thread's namespace, made if it is not there. Raises OSError, EBUSY when another descriptor holds it."""
    descriptor = os.open(TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), kind | IFF_NO_PI))
        if persistent:
            fcntl.ioctl(descriptor, TUNSETPERSIST, 1)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def write_sysctl(key: str, value: str, *, optional: bool = False) -> None:
    """In the thread's namespace. `optional`: a missing key is no error."""
    try:
        descriptor = os.open(f"/proc/sys/{key}", os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        if optional:
            return
        raise
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)


def listen(parts: Parts, address: str, port: int) -> None:
    """Opens the DNS sockets in the thread's namespace, into `parts`."""
    parts.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    parts.udp.bind((address, port))
    parts.tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    parts.tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    parts.tcp.bind((address, port))
    parts.tcp.listen(16)


def reopen(plan: SlotPlan, address: str, port: int, parts: Parts) -> None:
    """For a slot of an earlier owner: the DNS sockets anew. Raises OSError."""
    namespaces.enter_file(plan.netns)
    listen(parts, address, port)


def reattach_tap(netns: Path, name: str, parts: Parts) -> None:
    """A further descriptor of a slot's tap, into `parts`, its last holder being dead. Raises OSError, EBUSY while it lives."""
    namespaces.enter_file(netns)
    parts.tap = attach_tap(name, IFF_TAP)


def demolish(plan: SlotPlan) -> None:
    """Takes the slot away, whole or half-built: first its link (no packet passes any more), then what the host still tracks of it, then the namespace. Pieces
    that are gone are no error, so it can be repeated."""
    demolish_link(plan.host_link, plan.slot_address)
    namespaces.remove(plan.netns)


def demolish_link(name: str, slot_address: IPv4Address | None) -> None:
    """Takes the host's end away, the slot's end with it, and what the host still tracks of the connections that came through."""
    with RouteNetlink() as host:
        host.delete_link(name)
    if slot_address is not None:
        forget_connections(slot_address)
