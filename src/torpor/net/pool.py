"""Networks: slots built ahead of need, handed out at once, destroyed after use. A slot never serves two users.

    number free -> building -> ready -> held -> destroying -> number free
                      |                  ^
                      +-- to a waiter ---+        (a waiter that gave up: to ready, or destroyed when the pool is full)

The rest of a slot lives in the kernel (see `host` for the home's share): namespace file `<directory>/<name>`, link `trp<home>-<number>` with the slot's name as
its alias. `open` compares both with the names in use and removes the difference, whatever step their owner was killed at.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import secrets
from collections import deque
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from torpor.model.domains import Domains, domains_of
from torpor.model.errors import Denied, DenyReason, HostError, InvalidInput, NoPermission, NoSpace, NotFound, TorporError
from torpor.model.sandbox import Egress, NetworkMode
from torpor.net import apply, checks, namespaces
from torpor.net.gates import Gates
from torpor.net.host import HostSide, Nft, Survey
from torpor.net.plan import DNS_PORT, GATEWAY, GUEST, TAP, NetworkSettings, SlotPlan, capacity, home_tag, link_number, parse_name, slot_address
from torpor.net.resolver import HostResolvers, Relay
from torpor.net.rules import Gate, egress_rules, slot_rules
from torpor.net.watch import Watch
from torpor.ports.network import NetworkSlot
from torpor.ports.processes import Processes

_log = logging.getLogger(__name__)

AT_ONCE = 2
"""Slots under construction at the same time: the kernel takes one configuration lock anyway."""


@dataclass(slots=True)
class _Slot:
    plan: SlotPlan
    parts: apply.Parts
    relay: Relay

    def as_port(self) -> NetworkSlot:
        return NetworkSlot(self.plan.name, self.plan.netns, TAP, GUEST)


class SlotPool:
    """Implements ports.network.Networks for one home. `directory`: where namespaces are pinned, this home's own. All methods belong to one event loop."""

    def __init__(
        self,
        home: Path,
        directory: Path,
        processes: Processes,
        settings: NetworkSettings | None = None,
        resolv_conf: Path = Path("/etc/resolv.conf"),
    ) -> None:
        self._tag = home_tag(home.resolve())
        self._directory = directory
        self._settings = settings or NetworkSettings()
        self._nft = Nft(processes)
        self._host = HostSide(self._tag, self._settings, self._nft)
        self._host_lock = asyncio.Lock()
        self._at_once = asyncio.Semaphore(AT_ONCE)
        self._resolvers = HostResolvers(resolv_conf)
        self._ready: deque[_Slot] = deque()
        self._held: dict[str, _Slot] = {}
        self._waiters: deque[asyncio.Future[_Slot]] = deque()
        self._building = 0
        self._numbers: set[int] = set()
        self._last_number = 0
        self._destroying: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._builds: set[asyncio.Task[None]] = set()
        self._closing = False
        self._mending = False
        self._watch: Watch | None = None
        self._gates = Gates(directory.with_name("gates"), processes)

    def problems(self) -> Sequence[str]:
        return tuple(str(fault) for fault in checks.faults())

    async def warnings(self) -> Sequence[str]:
        if self.problems():
            return ()
        return await self._host.warnings()

    async def open(self, in_use: Sequence[str]) -> None:
        if self.problems():
            return
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            survey = await self._host.survey()
            for name in in_use:
                await self._take_back(name, survey)
            await self._gates.sweep()
            await namespaces.in_own_thread(lambda: self._sweep(survey))
            self._watch = Watch(self._on_change)
            if self._held:
                await self._host.ensure(self._slot_links())
            else:
                await self._host.take_down()
        except OSError as error:
            raise _as_host_error(error) from error
        self._fill()

    async def acquire(self, mode: NetworkMode) -> NetworkSlot | None:
        if mode is NetworkMode.OFF:
            return None
        slot = self._ready.popleft() if self._ready else await self._wait_for_slot()
        self._held[slot.plan.name] = slot
        self._fill()
        return slot.as_port()

    async def restrict(self, slot: NetworkSlot, egress: Egress) -> None:
        held = self._held.get(slot.name)
        if held is None:
            raise NotFound(f"There is no network slot {slot.name} in use.")
        domains = Domains(domains_of(egress))
        rules = egress_rules(egress, Gate(held.plan.gate_uid, self._settings.connections))
        if domains.listed:
            await self._restrict_to_names(held, domains, rules)
            return
        await self._nft.load(rules, held.plan.netns)
        held.relay.restrict(None)
        await self._gates.end(slot.name)

    async def _restrict_to_names(self, held: _Slot, domains: Domains, rules: str) -> None:
        """The gate and the DNS relay know of it before packets are led to them. What fails leaves what was said before."""
        stood, told, resolved = self._gates.stands(held.plan.name), self._gates.told(held.plan.name), held.relay.names
        held.relay.restrict(domains)
        try:
            await self._gates.tell(held.plan, domains)
            await self._nft.load(rules, held.plan.netns)
        except BaseException as error:
            held.relay.restrict(resolved)
            if stood:
                await self._gates.tell(held.plan, told)
            else:
                await self._gates.end(held.plan.name)
            if isinstance(error, OSError):
                raise _as_host_error(error) from error
            raise

    async def open_tap(self, slot: NetworkSlot) -> int:
        held = self._held.get(slot.name)
        if held is None:
            raise NotFound(f"There is no network slot {slot.name} in use.")
        tap = held.parts.take_tap()
        if tap is not None:
            return tap
        parts = apply.Parts()
        try:
            await namespaces.in_own_thread(lambda: apply.reattach_tap(held.plan.netns, TAP, parts))
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise Denied(DenyReason.IN_USE, f"Another microVM still has the tap of network slot {slot.name}.") from error
            raise _as_host_error(error) from error
        finally:
            tap = parts.take_tap()
        assert tap is not None
        return tap

    async def release(self, slot: NetworkSlot) -> None:
        held = self._held.pop(slot.name, None)
        if held is not None:
            self._destroying[slot.name] = self._start(self._destroy_held(held))
        if slot.name in self._destroying:
            await asyncio.shield(self._destroying[slot.name])

    def adopt(self, name: str) -> NetworkSlot:
        held = self._held.get(name)
        if held is None:
            raise NotFound(f"The network slot {name[:40]!r} is gone.", mend="The sandbox has no network any more: stop it, or pause and resume it.")
        return held.as_port()

    async def close(self) -> None:
        self._closing = True
        if self._watch is not None:
            self._watch.close()
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(HostError("The host agent is closing."))
        for task in self._builds:
            task.cancel()
        while self._tasks:
            await asyncio.wait(set(self._tasks))
        await self._gates.close()
        try:
            while self._ready:
                await self._destroy(self._ready.popleft())
            for held in self._held.values():
                await held.relay.close()
                held.parts.close()
            if not self._held and not self.problems():
                await self._host.take_down()
        except OSError as error:
            raise _as_host_error(error) from error

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _wait_for_slot(self) -> _Slot:
        for fault in checks.faults():
            raise fault
        if self._closing:
            raise HostError("The host agent is closing.")
        waiter: asyncio.Future[_Slot] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._fill()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._shelve(waiter.result())
            raise
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def _fill(self) -> None:
        """Starts what is missing for the waiters and the store. A failed construction is not repeated before the next call."""
        while not self._closing and self._building < len(self._waiters) + self._settings.pool - len(self._ready):
            self._building += 1
            task = self._start(self._build_one())
            self._builds.add(task)
            task.add_done_callback(self._builds.discard)

    async def _build_one(self) -> None:
        try:
            async with self._at_once:
                slot = await self._build()
        except (TorporError, OSError) as error:
            self._building -= 1
            self._report(_as_host_error(error) if isinstance(error, OSError) else error)
        except BaseException:
            self._building -= 1
            raise
        else:
            self._building -= 1
            self._shelve(slot)

    def _shelve(self, slot: _Slot) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(slot)
                return
        if len(self._ready) < self._settings.pool and not self._closing:
            self._ready.append(slot)
        else:
            self._start(self._destroy_surplus(slot))

    def _report(self, error: TorporError) -> None:
        """To the waiter that no construction under way will serve; else to the log."""
        while self._building < len(self._waiters):
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(error)
                return
        _log.warning("no network slot could be made: %s", error)

    async def _build(self) -> _Slot:
        async with self._host_lock:
            transfer = await self._host.ensure(self._slot_links())
        number = self._take_number(transfer)
        plan = SlotPlan(self._tag, number, secrets.token_hex(4), self._directory, transfer)
        parts = apply.Parts()
        try:
            await namespaces.in_own_thread(lambda: apply.Builder(parts).run(plan.steps()))
            await self._nft.load(slot_rules(plan, self._settings.connections), plan.netns)
            assert parts.udp is not None
            assert parts.tcp is not None
            return _Slot(plan, parts, Relay(parts.udp, parts.tcp, self._resolvers))
        except BaseException:
            parts.close()
            await namespaces.in_own_thread(lambda: apply.demolish(plan))
            self._numbers.discard(number)
            raise

    def _take_number(self, transfer: IPv4Network) -> int:
        """The number that was free the longest, roughly: numbers go round."""
        total = capacity(transfer)
        for step in range(total):
            number = (self._last_number + step) % total + 1
            if number not in self._numbers:
                self._numbers.add(number)
                self._last_number = number
                return number
        raise NoSpace(f"All {total} network slots of {transfer} are in use.", mend="Stop a sandbox, or name a larger transfer range.")

    def _slot_links(self) -> list[str]:
        return [slot.plan.host_link for slot in (*self._ready, *self._held.values())]

    def _on_change(self) -> None:
        """Somebody changed the host: see that ours still stands, once for all changes up to now."""
        if not self._mending and not self._closing and (self._ready or self._held):
            self._mending = True
            self._start(self._mend())

    async def _mend(self) -> None:
        try:
            async with self._host_lock:
                self._mending = False
                await self._host.ensure(self._slot_links())
        except (TorporError, OSError) as error:
            _log.error("the network of sandboxes could not be restored after a change of the host's: %s", error)

    async def _destroy(self, slot: _Slot) -> None:
        """Raises OSError; the slot can then be destroyed again."""
        await self._gates.end(slot.plan.name)
        await slot.relay.close()
        slot.parts.close()
        await namespaces.in_own_thread(lambda: apply.demolish(slot.plan))
        self._numbers.discard(slot.plan.number)

    async def _destroy_held(self, slot: _Slot) -> None:
        try:
            await self._destroy(slot)
        except BaseException as error:
            self._held[slot.plan.name] = slot
            if isinstance(error, OSError):
                raise _as_host_error(error) from error
            raise
        finally:
            del self._destroying[slot.plan.name]

    async def _destroy_surplus(self, slot: _Slot) -> None:
        try:
            await self._destroy(slot)
        except OSError as error:
            _log.warning("network slot %s stays until the next start: %s", slot.plan.name, error)

    async def _take_back(self, name: str, survey: Survey) -> None:
        """Makes a slot of the earlier owner ours, if all of it is there; else leaves it to the sweep."""
        if survey.transfer is None:
            return
        try:
            plan = parse_name(name, self._tag, self._directory, survey.transfer)
        except InvalidInput:
            return
        if survey.links.get(plan.host_link) != name or not namespaces.is_pinned(plan.netns):
            return
        parts = apply.Parts()
        try:
            await namespaces.in_own_thread(lambda: apply.reopen(plan, str(GATEWAY), DNS_PORT, parts))
        except BaseException:
            parts.close()
            raise
        assert parts.udp is not None
        assert parts.tcp is not None
        slot = self._held[name] = _Slot(plan, parts, Relay(parts.udp, parts.tcp, self._resolvers))
        self._numbers.add(plan.number)
        if self._gates.stands(name):
            slot.relay.restrict(self._gates.told(name))  # until its sandbox's egress is said again
            await self._gates.take_back(plan)

    def _sweep(self, survey: Survey) -> None:
        kept = {slot.plan.host_link for slot in self._held.values()}
        for link in survey.links.keys() - kept:
            number = link_number(link, self._tag)
            if number is not None:
                transfer = survey.transfer
                apply.demolish_link(link, slot_address(transfer, number) if transfer and number <= capacity(transfer) else None)
        for entry in self._directory.iterdir():
            if entry.name not in self._held:
                namespaces.remove(entry)


def _as_host_error(error: OSError) -> HostError:
    text = f"Network: {error.strerror or error}"
    if error.errno in (errno.EPERM, errno.EACCES, errno.EROFS):
        return NoPermission(text, mend="Run torpor as root, outside of a restricted container.")
    if error.errno in (errno.ENOSPC, errno.ENOMEM, errno.ENFILE, errno.EMFILE, errno.ENOBUFS):
        return NoSpace(text)
    return HostError(text)
