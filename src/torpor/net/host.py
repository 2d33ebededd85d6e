"""The host's share: the home's transfer block, its table, and forwarding on the interfaces that lead out.

The kernel is the record; there is no file to disagree with it. The link `trp<home>` with its one route *is* the claim on a transfer block (adding a route is
refused when another home was faster), and the set `opened` of the table `torpor_<home>` lists the uplinks whose forwarding this home switched on. Both
outlive the process and are read back by the next owner.

    set up:    claim link, claim route, table (with `opened`), forwarding = 1       repeated before each slot: only what differs is done
    take down: forwarding = 0 (unless another home lists the uplink, or the host routes by now anyway), table, claim link
"""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from torpor.model.addresses import NOT_PUBLIC
from torpor.model.errors import HostError, MissingTool, NoSpace
from torpor.net import apply, namespaces
from torpor.net.checks import find_tool
from torpor.net.netlink import RT_TABLE_LOCAL, Route, RouteNetlink, has_table
from torpor.net.plan import ANY_HOME, NetworkSettings, choose_block, claim_name, free_of
from torpor.net.rules import host_rules, table_name
from torpor.ports.processes import Processes

NFT_SECONDS = 30.0
_TABLES = "torpor_"


@dataclass(frozen=True, slots=True)
class Survey:
    """What the kernel has: names of all links with the alias of each, and the claimed block (None: no claim yet)."""

    links: dict[str, str]
    transfer: IPv4Network | None


class Nft:
    """The nft program, in this namespace or in a slot's. Each call is one transaction."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    async def load(self, rules: str, netns: Path | None = None) -> None:
        """Raises HostError with nft's words; then nothing of `rules` holds."""
        prefix = [] if netns is None else [_tool("nsenter"), f"--net={netns}"]
        done = await self._processes.run([*prefix, _tool("nft"), "-f", "-"], timeout=NFT_SECONDS, stdin=rules.encode())
        if done.code != 0:
            raise HostError(f"nft refused the rules of a sandbox's network: {_last_words(done.stderr)}", mend="See what torpor doctor says.")

    async def list(self, *what: str) -> list[dict[str, Any]] | None:
        """The objects `nft -j list WHAT` tells, each {kind: fields}; None when there is no such thing."""
        done = await self._processes.run([_tool("nft"), "-j", "list", *what], timeout=NFT_SECONDS)
        if done.code != 0:
            if b"No such file" in done.stderr:
                return None
            raise HostError(f"nft list {' '.join(what)} failed: {_last_words(done.stderr)}")
        found: list[dict[str, Any]] = json.loads(done.stdout)["nftables"]
        return found

    async def tables(self) -> set[tuple[str, str]]:
        """(family, name) of all tables."""
        return {(o["table"]["family"], o["table"]["name"]) for o in await self.list("tables") or [] if "table" in o}


class HostSide:
    """Of one home. `ensure` and `take_down` are not to run at the same time: the pool sees to it."""

    def __init__(self, tag: str, settings: NetworkSettings, nft: Nft) -> None:
        self._tag = tag
        self._settings = settings
        self._nft = nft
        self._applied = ""
        self._opened: frozenset[str] | None = None

    async def survey(self) -> Survey:
        """Raises OSError."""
        return await namespaces.in_own_thread(lambda: _survey(self._tag))

    async def ensure(self, slot_links: Iterable[str]) -> IPv4Network:
        """Sets up what is not there, or is no longer; returns the transfer block. Safe to repeat; when cancelled, a repetition completes it. Raises
        HostError, OSError."""
        transfer, uplinks, table_stands = await namespaces.in_own_thread(self._claim)
        opened = await self._uplinks_to_open(uplinks)
        rules = host_rules(self._tag, transfer, opened)
        if rules != self._applied or not table_stands:
            await self._nft.load(rules)
            self._applied, self._opened = rules, frozenset(opened)
        for name in (*opened, *slot_links):  # switching ip_forward off on the host switches all of these off
            apply.write_sysctl(f"net/ipv4/conf/{name}/forwarding", "1", optional=True)
        return transfer

    async def take_down(self) -> None:
        """Undoes `ensure`, also an earlier owner's. Nothing there is no error; safe to repeat. Raises HostError, OSError."""
        if not _exists(claim_name(self._tag)):
            return
        mine = await self._opened_by(table_name(self._tag)) or set()
        if _forwarding("all") == "0":
            others = await self._opened_by_others()
            for name in mine - others:
                apply.write_sysctl(f"net/ipv4/conf/{name}/forwarding", "0", optional=True)
        name = table_name(self._tag)
        await self._nft.load(f"table inet {name}\ndelete table inet {name}\n")
        self._applied, self._opened = "", None
        await namespaces.in_own_thread(lambda: _delete(claim_name(self._tag)))

    async def warnings(self) -> Sequence[str]:
        """Chains of the host's own firewall that drop forwarded packets by default and do not mention our interfaces."""
        found = []
        for item in await self._nft.list("chains") or []:
            chain = item.get("chain", {})
            if chain.get("hook") != "forward" or chain.get("policy") != "drop" or chain["table"].startswith(_TABLES):
                continue
            where = f"{chain['family']} {chain['table']}"
            if f'"{ANY_HOME}' not in json.dumps(await self._nft.list("table", chain["family"], chain["table"])):
                rule = f"nft insert rule {where} {chain['name']}"
                found.append(
                    f"The host's firewall (table {where}, chain {chain['name']}) drops forwarded packets by default, those of sandboxes too. "
                    f"""Let them pass with: {rule} iifname '"{ANY_HOME}*"' accept; {rule} oifname '"{ANY_HOME}*"' accept"""
                )
        return found

    def _claim(self) -> tuple[IPv4Network, list[str], bool]:
        with RouteNetlink() as netlink:
            links = {link.index: link.name for link in netlink.links()}
            name = claim_name(self._tag)
            if name not in links.values():
                os.close(apply.attach_tap(name, apply.IFF_TUN, persistent=True))
                apply.write_sysctl(f"net/ipv6/conf/{name}/disable_ipv6", "1", optional=True)
                netlink.set_up(name)
            index = netlink.index(name)
            routes = netlink.routes()
            transfer = _claimed(routes, index) or self._take_block(netlink, name, routes)
            return transfer, _uplinks(routes, links), has_table(table_name(self._tag))

    def _take_block(self, netlink: RouteNetlink, name: str, routes: Sequence[Route]) -> IPv4Network:
        taken = [route.destination for route in routes]
        wanted = self._settings.transfer
        blocks = choose_block(self._tag, taken) if wanted is None else [wanted] * free_of(wanted, taken)
        for block in blocks:
            try:
                netlink.add_route(block, name)
            except OSError as error:
                if error.errno == errno.EEXIST:  # another home was faster
                    continue
                raise
            return block
        raise NoSpace(
            f"No addresses are left to link sandboxes to the host: {wanted or 'every block tried'} overlaps a route of this machine.",
            mend="Name a free private network of /20 as the transfer range.",
        )

    async def _uplinks_to_open(self, uplinks: Sequence[str]) -> set[str]:
        closed = {name for name in uplinks if _forwarding(name) == "0"}
        if _forwarding("all") == "1":  # the host routes of its own accord: not ours to restrict, or to restore
            return closed
        if self._opened is None:
            self._opened = frozenset(await self._opened_by(table_name(self._tag)) or ())
        shared = set(uplinks) - closed - self._opened
        if shared:
            shared &= await self._opened_by_others()
        return closed | shared | (self._opened & set(uplinks))

    async def _opened_by_others(self) -> set[str]:
        opened: set[str] = set()
        for family, name in await self._nft.tables():
            if family == "inet" and name.startswith(_TABLES) and name != table_name(self._tag):
                opened |= await self._opened_by(name) or set()
        return opened

    async def _opened_by(self, table: str) -> set[str] | None:
        listed = await self._nft.list("set", "inet", table, "opened")
        if listed is None:
            return None
        return {name for item in listed for name in item.get("set", {}).get("elem", [])}


def _survey(tag: str) -> Survey:
    with RouteNetlink() as netlink:
        links = netlink.links()
        claim = next((link.index for link in links if link.name == claim_name(tag)), None)
        transfer = None if claim is None else _claimed(netlink.routes(), claim)
        return Survey({link.name: link.alias for link in links}, transfer)


def _claimed(routes: Sequence[Route], index: int) -> IPv4Network | None:
    return next((r.destination for r in routes if r.links == (index,) and r.unicast and r.destination.prefixlen <= 30), None)


def _uplinks(routes: Sequence[Route], links: dict[int, str]) -> list[str]:
    """Interfaces by which packets of sandboxes leave, and so their answers come: those of default routes and of routes through a router to networks
    that sandboxes may reach."""
    names = set()
    for route in routes:
        leads_out = route.gateway or route.destination.prefixlen <= 1
        if not route.unicast or not leads_out or route.table == RT_TABLE_LOCAL or any(route.destination.subnet_of(f) for f in NOT_PUBLIC):
            continue
        names |= {links[index] for index in route.links if index in links}
    return sorted(name for name in names if not name.startswith(ANY_HOME))


def _forwarding(name: str) -> str:
    """'0' or '1'; '1' for an interface that is gone: nothing to open there. `all` is the host's own switch, ip_forward."""
    try:
        return Path(f"/proc/sys/net/ipv4/conf/{name}/forwarding").read_text().strip()
    except FileNotFoundError:
        return "1"


def _exists(link: str) -> bool:
    try:
        socket.if_nametoindex(link)
    except OSError:
        return False
    return True


def _delete(link: str) -> None:
    with RouteNetlink() as netlink:
        netlink.delete_link(link)


def _tool(name: str) -> str:
    path = find_tool(name)
    if path is None:
        raise MissingTool(f"{name} is not installed.", mend=f"Install it with: apt install {'nftables' if name == 'nft' else 'util-linux'}")
    return path


def _last_words(stderr: bytes) -> str:
    return " ".join(stderr.decode(errors="replace").split())[-500:]
