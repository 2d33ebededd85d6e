"""The record that an operation ends with: by what the host says, whatever was wanted."""

from __future__ import annotations

from dataclasses import replace

from torpor.model.errors import TimedOut, TorporError
from torpor.model.records import Operation, OperationKind, Sandbox, SandboxState
from torpor.model.sandbox import EndReason
from torpor.ports.hosts import MachineStatus
from torpor.ports.records import Records
from torpor.service import moves
from torpor.service.moves import Because, move
from torpor.service.orders import Arrivals, Seen

S = SandboxState
K = OperationKind
_CAUSES = {"idle": EndReason.IDLE, "timeout": EndReason.TIMEOUT}


def end_of(current: Sandbox, operation: Operation, seen: Seen, error: TorporError | None, now: float) -> tuple[Sandbox, TorporError | None]:
    """The record an operation ends with, and its error if it failed: by what the host says, whatever was wanted. What was wanted and is so is no failure."""
    if operation.kind is K.KILL:
        return moves.ended(current, now, _CAUSES.get(operation.cause, EndReason.USER), ""), None
    machine = seen.machine
    if current.state is S.STARTING:
        if machine is not None and machine.status is MachineStatus.RUNNING and (operation.kind is K.CREATE or error is None):
            return moves.running(current, machine, now), None
        error = error or TimedOut("The sandbox ended while it was started.")
        return moves.ended(current, now, EndReason.ERROR, error.message, state=S.ERROR), error
    after = moves.arrived(current, machine, now) if seen.known else None
    if after is None:
        return moves.missing(current, now), error
    wanted = {K.PAUSE: S.PAUSED, K.RESUME: S.RUNNING}.get(operation.kind)
    return after, None if after.state is wanted else error


async def end_children(records: Records, source: Sandbox, operation: Operation, arrivals: Arrivals, because: Because, now: float) -> list[Sandbox]:
    """The children of a fork, each by what became of it; those whose record changed."""
    written = []
    for child in await records.sandboxes.on_host(source.host_id):
        if child.id == source.id or child.operation is None or child.operation.id != operation.id:
            continue
        machine = arrivals.machines.get(child.id)
        error = because.error or (None if machine else TimedOut("The fork did not come about."))
        after, error = end_of(child, operation, Seen(machine), error, now)
        if await move(records, child, after, replace(because, error=error)):
            written.append(after)
    return written
