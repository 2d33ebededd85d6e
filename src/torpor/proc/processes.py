"""Processes of one home: long-lived children through its keeper, tools directly. Implements ports.processes.Processes."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torpor.model.errors import HostError, InternalError, MissingTool, NoPermission, NoSpace, TorporError
from torpor.ports.processes import ChildSpec, Completed, ConfinementCheck, ExitRecord, Jail
from torpor.proc import tools
from torpor.proc.children import KeptChild, read_exit_file, to_record, write_exit_file
from torpor.proc.confinement import checks
from torpor.proc.keeper import protocol
from torpor.proc.keeper.cgroups import oom_kills, remove_if_empty
from torpor.proc.link import KeeperLink

_FULL = {errno.ENOSPC, errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.EDQUOT}
_REFUSED = {errno.EPERM, errno.EACCES}


class LocalProcesses:
    """`home`: an existing directory, the keeper's. `open` first; `close` hangs up and leaves all children running."""

    def __init__(self, home: Path) -> None:
        self._home = home.resolve()
        self._link: KeeperLink | None = None
        self._opening = asyncio.Lock()
        self._children: dict[tuple[int, int], KeptChild] = {}
        self._early: dict[tuple[int, int], ExitRecord] = {}
        self._spawning = 0

    async def open(self) -> None:
        """Connects to the keeper, or starts it. Raises HostError. Called by the other methods where needed; a lost keeper is replaced the same way."""
        await self._connected()

    def close(self) -> None:
        """Lets go of the keeper and of all children; they run on. Who still waits for the end of one is cancelled."""
        if self._link is not None:
            self._link.close()
            self._link = None
        for child in self._children.values():
            child.let_go()
        self._children.clear()

    async def spawn(self, spec: ChildSpec) -> KeptChild:
        """ports.Processes.spawn."""
        link = await self._connected()
        netns = _open_netns(spec.jail)
        fds = [*spec.fds.values(), *netns]
        self._spawning += 1
        asking = asyncio.ensure_future(link.ask(_spawn_message(spec), fds))
        try:
            answer, received = await asyncio.shield(asking)
            return self._born(spec, answer, received)
        except asyncio.CancelledError:
            await self._unborn(spec, asking)
            raise
        except ConnectionError as error:
            raise HostError(f"The keeper was lost while it started {spec.name}: {error}.", mend="Try again: a new one is started.") from error
        finally:
            self._spawning -= 1
            if not self._spawning:
                self._early.clear()
            for fd in netns:
                os.close(fd)

    def _born(self, spec: ChildSpec, answer: dict[str, Any], received: list[int]) -> KeptChild:
        if answer["op"] == "failed":
            raise _failure(spec, answer["step"], answer["errno"])
        child = KeptChild(spec.name, answer["pid"], answer["start_time"], received[0], spec.exit_file)
        self._keep(child)
        return child

    async def _unborn(self, spec: ChildSpec, asking: asyncio.Future[tuple[dict[str, Any], list[int]]]) -> None:
        """The caller left: the child that is being born is killed, and waited for."""

        async def undo() -> None:
            try:
                answer, received = await asking
                child = self._born(spec, answer, received)
            except (TorporError, ConnectionError):
                return  # nothing was born
            child.kill(signal.SIGKILL)
            await child.wait()
            spec.exit_file.unlink(missing_ok=True)

        undoing = asyncio.ensure_future(undo())
        while not undoing.done():
            try:
                await asyncio.shield(undoing)
            except asyncio.CancelledError:
                continue  # already cancelled; the promise that nothing stays comes first

    async def adopt(self, name: str, pid: int, start_time: int, exit_file: Path) -> KeptChild | ExitRecord:
        """ports.Processes.adopt."""
        known = self._children.get((pid, start_time))
        if known is not None:
            return known
        link = await self._connected()
        # The pidfd comes first and the check after it, so that it can only be a descriptor of the process that was checked.
        pidfd = _open_pidfd(pid, start_time)
        if pidfd is not None:
            child = KeptChild(name, pid, start_time, pidfd, exit_file)
            self._keep(child)
            try:
                answer, _ = await link.ask({"op": "find", "name": name, "pid": pid, "start_time": start_time})
            except ConnectionError:
                return child  # _lost has put it on its own feet
            except BaseException:
                self._forget(child)
                raise
            if not answer["alive"] and not child.ended:
                child.watch_alone(self._gone)
            return child
        record = read_exit_file(exit_file)
        if record is None:
            record = self._unseen(name)
            write_exit_file(exit_file, record)
        return record

    async def reap(self, run_dir: Path) -> None:
        """ports.Processes.reap."""
        link = await self._connected()
        answer, _ = await link.ask({"op": "within", "directory": str(run_dir)})
        for known in answer["children"]:
            child = await self.adopt(known["name"], known["pid"], known["start_time"], Path(known["exit_file"]))
            if not isinstance(child, ExitRecord):
                child.kill(signal.SIGKILL)
                await child.wait()

    async def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        stdin: bytes | None = None,
        env: Mapping[str, str] | None = None,
        on_line: Callable[[bytes], None] | None = None,
    ) -> Completed:
        """ports.Processes.run."""
        return await tools.run(argv, timeout=timeout, stdin=stdin, env=env, on_line=on_line)

    def confinement(self) -> Sequence[ConfinementCheck]:
        """ports.Processes.confinement. Needs `open`."""
        if self._link is None:
            raise InternalError("Processes.confinement was asked before open.")
        return checks(self._link.greeting["mode"], self._link.greeting["problems"])

    # --- the keeper

    async def _connected(self) -> KeeperLink:
        async with self._opening:
            if self._link is None or self._link.lost:
                self._link = await KeeperLink.open(self._home, self._exited, self._lost)
            return self._link

    def _exited(self, pid: int, start_time: int, fields: dict[str, Any]) -> None:
        record = to_record(fields)
        child = self._children.pop((pid, start_time), None)
        if child is not None:
            child.settle(record)
        elif self._spawning:
            self._early[(pid, start_time)] = record  # the end of a child whose birth the event loop has not delivered yet

    def _lost(self) -> None:
        """The keeper died: its children are orphans, each watched by its own pidfd from now on."""
        for child in list(self._children.values()):
            child.watch_alone(self._gone)

    def _gone(self, child: KeptChild) -> None:
        self._children.pop((child.pid, child.start_time), None)
        record = read_exit_file(child.exit_file)
        if record is None:
            record = self._unseen(child.name)
            write_exit_file(child.exit_file, record)
        child.settle(record)

    def _keep(self, child: KeptChild) -> None:
        early = self._early.pop((child.pid, child.start_time), None)
        if early is not None:
            child.settle(early)
        else:
            self._children[(child.pid, child.start_time)] = child

    def _forget(self, child: KeptChild) -> None:
        self._children.pop((child.pid, child.start_time), None)
        child.let_go()

    def _unseen(self, name: str) -> ExitRecord:
        """Nobody saw it end; its cgroup, if it still stands, knows about the OOM killer."""
        usable: dict[str, str] = self._link.greeting["cgroups"] if self._link is not None else {}
        cgroup = protocol.cgroup_name(str(self._home), name)
        oom = oom_kills(cgroup, usable) > 0
        for directory in usable.values():
            remove_if_empty(os.path.join(directory, cgroup))  # busy while init has not reaped the process: the next keeper sweeps
        return ExitRecord(oom=oom)


def _spawn_message(spec: ChildSpec) -> dict[str, Any]:
    jail = spec.jail
    confined = None
    if jail is not None:
        confined = {
            "binds": [[os.path.realpath(bind.source), bind.target, bind.writable] for bind in jail.binds],
            "limits": [jail.limits.memory_bytes, jail.limits.cpu_cores, jail.limits.pids],
            "uid": jail.uid,
            "gid": jail.gid,
            "netns": None if jail.netns is None else str(jail.netns),
            "devices": list(jail.devices),
        }
    return {
        "op": "spawn",
        "name": spec.name,
        "argv": list(spec.argv),
        "env": {"PATH": tools.PATH, "LC_ALL": "C.UTF-8", **spec.env},
        "exit_file": str(spec.exit_file),
        "output": str(spec.output),
        "output_limit": spec.output_limit,
        "fds": list(spec.fds),
        "jail": confined,
        "leash": spec.leash,
    }


def _open_netns(jail: Jail | None) -> list[int]:
    if jail is None or jail.netns is None:
        return []
    try:
        return [os.open(jail.netns, os.O_RDONLY | os.O_CLOEXEC)]
    except OSError as error:
        raise NoPermission(f"The network namespace {jail.netns} cannot be opened: {error.strerror}.") from error


def _open_pidfd(pid: int, start_time: int) -> int | None:
    """A descriptor of exactly that process, or None when it is gone, a zombie included."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    try:
        if protocol.start_time(pid) == start_time:
            return pidfd
    except (FileNotFoundError, ProcessLookupError):
        pass  # it ended just now
    os.close(pidfd)
    return None


def _failure(spec: ChildSpec, step: str, number: int) -> TorporError:
    text = f"{spec.name}: {step}: {os.strerror(number)}."
    if step.startswith("exec") and number == errno.ENOENT:
        return MissingTool(f"There is no program {spec.argv[0]}.")
    if number in _REFUSED:
        return NoPermission(text, mend="Run as root, or see `torpor doctor` for what confinement needs.")
    if number in _FULL:
        return NoSpace(text)
    return HostError(text)
