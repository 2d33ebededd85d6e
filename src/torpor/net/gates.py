"""The host agent's side of the gates: one process per slot whose sandbox may reach names, started when that is first said, ended with the slot or the rule.

    <directory>/<slot>/rules.json     what it lets pass; the gate reads it at its start and when called
                       control.sock   where it is called; root's alone
                       gate.json      its pid and start time, for the next owner
                       exit.json, gate.log

Like a microVM it is a child of the keeper, jailed, and outlives this process; the next owner takes it back. When it dies nothing passes, and it is started
again. The socket that connections are led to is opened before it starts, so that none is lost meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import h11

import torpor
from torpor.durable import files
from torpor.log import Log
from torpor.model.domains import Domains
from torpor.model.errors import TorporError
from torpor.net import namespaces
from torpor.net.gate import rules
from torpor.net.gate.main import CONTROL, LISTENER
from torpor.net.netlink import RouteNetlink
from torpor.net.plan import GATE_PORT, GATEWAY, LOOPBACK, SlotPlan
from torpor.ports.processes import Bind, Child, ChildSpec, ExitRecord, Jail, Limits, Processes

log = Log()

LIMITS = Limits(memory_bytes=128 << 20, cpu_cores=1.0, pids=1)
CALL_SECONDS = 10.0
SOUND_SECONDS = 10.0
PAUSES = (0.0, 0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)
"""Before a start, by how many times in a row it ended within SOUND_SECONDS."""
BACKLOG = 256
_INSIDE = "/gate"
_BOOT = f"import sys; sys.path.insert(0, {_INSIDE!r}); from torpor.net.gate.main import main; main()"
_RULES, _HANDLE, _EXIT, _LOG, _CONTROL = "rules.json", "gate.json", "exit.json", "gate.log", "control.sock"


@dataclass(slots=True)
class _Kept:
    plan: SlotPlan
    child: Child
    watch: asyncio.Task[None] | None = None
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class Gates:
    """Of one home. `directory`: its own. What is done for one slot is done one after another."""

    def __init__(self, directory: Path, processes: Processes) -> None:
        self._directory = directory
        self._processes = processes
        self._kept: dict[str, _Kept] = {}
        self._program: tuple[str, tuple[Bind, ...]] | None = None

    def stands(self, name: str) -> bool:
        """Whether the slot has one, or had one when its last owner died."""
        return (self._directory / name).exists()

    def told(self, name: str) -> Domains:
        """What the slot's gate was told last: nothing where there is no gate, or where that cannot be read, for then the gate lets nothing pass either."""
        try:
            return rules.read(self._directory / name / _RULES)
        except FileNotFoundError:
            return Domains()
        except (OSError, ValueError, TorporError) as error:
            log.error("gate_rules_not_read", slot=name, error=str(error))
            return Domains()

    async def tell(self, plan: SlotPlan, domains: Domains) -> None:
        """The slot's gate lets these pass from now on; started if there is none. Raises OSError, and what Processes.spawn raises."""
        directory = self._directory / plan.name
        with files.disk_errors(f"writing the rules of {directory}"):
            directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            _write(directory / _RULES, rules.encode(domains))
        kept = self._kept.get(plan.name)
        if kept is None:
            self._keep(_Kept(plan, await self._spawn(plan)))
            return
        async with kept.turn:
            if not await _call(directory):
                kept.child.kill(signal.SIGKILL)
                await kept.child.wait()
                kept.child = await self._spawn(plan)

    async def end(self, name: str) -> None:
        """The slot's gate and all its connections are gone. None there is no error; repeatable."""
        kept = self._kept.pop(name, None)
        if kept is not None:
            await _stop(kept.watch)
        if self.stands(name):
            await self._clear(name)

    async def take_back(self, plan: SlotPlan) -> None:
        """The gate that an earlier owner left in a slot. One that ended meanwhile is started again; where that fails nothing passes until it is told again."""
        found = await self._found(plan.name)
        try:
            if found is None or isinstance(found, ExitRecord):
                found = await self._spawn(plan)
            self._keep(_Kept(plan, found))
        except (TorporError, OSError) as error:
            log.error("gate_not_started", slot=plan.name, error=str(error))

    async def sweep(self) -> None:
        """Ends what belongs to no slot that was taken back."""
        with contextlib.suppress(FileNotFoundError):
            for entry in list(self._directory.iterdir()):
                if entry.name not in self._kept:
                    await self._clear(entry.name)

    async def close(self) -> None:
        """Lets go of all; they go on."""
        for kept in self._kept.values():
            await _stop(kept.watch)
        self._kept.clear()

    def _keep(self, kept: _Kept) -> None:
        self._kept[kept.plan.name] = kept
        kept.watch = asyncio.get_running_loop().create_task(self._watch(kept), name=f"gate-{kept.plan.name}")

    async def _watch(self, kept: _Kept) -> None:
        """Starts it again whenever it ends; at once the first time, with longer and longer pauses when it goes on ending soon after."""
        loop, soon = asyncio.get_running_loop(), 0
        while True:
            began, child = loop.time(), kept.child
            ended = await child.wait()
            soon = soon + 1 if loop.time() - began < SOUND_SECONDS else 0
            if kept.child is child:
                log.error("gate_ended", slot=kept.plan.name, code=ended.code, signal=ended.signal, oom=ended.oom)
                await asyncio.sleep(PAUSES[min(soon, len(PAUSES) - 1)])
                await self._start_again(kept, child)

    async def _start_again(self, kept: _Kept, ended: Child) -> None:
        async with kept.turn:
            if kept.child is not ended:  # somebody else did meanwhile
                return
            try:
                kept.child = await self._spawn(kept.plan)
            except (TorporError, OSError) as error:
                log.error("gate_not_started", slot=kept.plan.name, error=str(error))

    async def _spawn(self, plan: SlotPlan) -> Child:
        """Raises OSError, and what Processes.spawn raises."""
        directory = self._directory / plan.name
        python, binds = await self._find_program()
        await self._processes.reap(directory)
        with contextlib.ExitStack() as stack, files.disk_errors(f"starting the gate of {plan.name}"):
            (directory / _EXIT).unlink(missing_ok=True)
            opened: list[socket.socket] = []
            stack.callback(_close, opened)
            await namespaces.in_own_thread(lambda: _listen(plan, opened))
            control = stack.enter_context(_listen_control(directory))
            child = await self._processes.spawn(
                ChildSpec(
                    name=f"gate-{plan.name}",
                    argv=[python, "-I", "-S", "-c", _BOOT, f"{_INSIDE}/rules/{_RULES}"],
                    exit_file=directory / _EXIT,
                    output=directory / _LOG,
                    fds={LISTENER: opened[0].fileno(), CONTROL: control.fileno()},
                    jail=Jail((*binds, Bind(directory, f"{_INSIDE}/rules")), LIMITS, uid=plan.gate_uid, gid=plan.gate_uid, netns=plan.netns),
                )
            )
            _write(directory / _HANDLE, json.dumps({"pid": child.pid, "start_time": child.start_time}).encode())
        return child

    async def _find_program(self) -> tuple[str, tuple[Bind, ...]]:
        """The interpreter, what it is made of, and our own code: all that a gate sees."""
        if self._program is None:
            python = os.path.realpath(sys.executable)
            listed = await self._processes.run(["ldd", python], timeout=CALL_SECONDS)
            library = sysconfig.get_path("stdlib")
            extensions = sysconfig.get_config_var("DESTSHARED") or library
            seen = {python, library, "/etc/ld.so.cache"} | _library_places(listed.stdout.decode(errors="replace"))
            if not Path(extensions).is_relative_to(library):
                seen.add(extensions)
            binds = [Bind(Path(os.path.realpath(place)), place) for place in sorted(seen) if os.path.exists(place)]
            for package in (torpor, h11):
                assert package.__file__ is not None
                binds.append(Bind(Path(package.__file__).resolve().parent, f"{_INSIDE}/{package.__name__}"))
            self._program = python, tuple(binds)
        return self._program

    async def _found(self, name: str) -> Child | ExitRecord | None:
        """The process that an earlier owner noted; None when it noted none."""
        directory = self._directory / name
        try:
            handle = json.loads((directory / _HANDLE).read_bytes())
            return await self._processes.adopt(f"gate-{name}", int(handle["pid"]), int(handle["start_time"]), directory / _EXIT)
        except (FileNotFoundError, ValueError, KeyError):
            return None

    async def _clear(self, name: str) -> None:
        directory = self._directory / name
        found = await self._found(name)
        if found is not None and not isinstance(found, ExitRecord):
            found.kill(signal.SIGKILL)
            await found.wait()
        await self._processes.reap(directory)
        shutil.rmtree(directory, ignore_errors=True)


def _library_places(listing: str) -> set[str]:
    """Of ldd's listing: the loader itself, and the directories of the libraries."""
    files = re.findall(r"(/\S+) \(0x", listing)
    return {file if os.path.basename(file).startswith("ld-") else os.path.dirname(file) for file in files}


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all for whoever reads it. Not made durable: no slot outlives a power cut."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_bytes(content)
    os.chmod(fresh, 0o644)
    os.replace(fresh, path)


def _listen(plan: SlotPlan, opened: list[socket.socket]) -> None:
    """Opens the gate's socket in the slot, into `opened`. The slot's loopback must be up for the gate to reach the DNS relay."""
    namespaces.enter_file(plan.netns)
    with RouteNetlink() as slot:
        slot.set_up(LOOPBACK)
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    opened.append(listener)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((str(GATEWAY), GATE_PORT))
    listener.listen(BACKLOG)


@contextlib.contextmanager
def _control_path(directory: Path) -> Iterator[str]:
    """The control socket's path, short enough for an address whatever the home's is."""
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{_CONTROL}"
    finally:
        os.close(descriptor)


def _close(opened: list[socket.socket]) -> None:
    for listener in opened:
        listener.close()


def _listen_control(directory: Path) -> socket.socket:
    (directory / _CONTROL).unlink(missing_ok=True)
    control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        with _control_path(directory) as path:
            control.bind(path)
        os.chmod(directory / _CONTROL, 0o600)
        control.listen(8)
    except OSError:
        control.close()
        raise
    return control


async def _call(directory: Path) -> bool:
    """True when the gate has read its rules and they hold."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as caller:
        try:
            async with asyncio.timeout(CALL_SECONDS):
                with _control_path(directory) as path:
                    await loop.sock_connect(caller, path)
                await loop.sock_sendall(caller, rules.CALL)
                return await loop.sock_recv(caller, 1) == rules.DONE
        except OSError:  # gone, or silent: TimeoutError is one
            return False


async def _stop(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.wait({task})
