"""The writing of a sandbox's record: one function, `move`, by compare-and-set, with all that must be written beside it.

intent     (state, generation) -> transient state, operation id, deadline
arrival    transient state     -> what the host says of the machine
correction any state           -> what the host says of the machine
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torpor.model.errors import Denied, TorporError
from torpor.model.records import DISK_ONLY, SYSTEM, Actor, AuditEntry, AuditStatus, Event, Operation, OperationKind, Sandbox, SandboxState
from torpor.model.sandbox import EndReason
from torpor.ports.bus import Notice
from torpor.ports.hosts import Machine, MachineStatus
from torpor.ports.records import Records
from torpor.service.usage import used

S = SandboxState
K = OperationKind

EVENTS = {S.STOPPED: "capsule.destroyed"}
"""Names of events that are not `capsule.` and the state's own name."""
ACTIONS = {K.KILL: "destroy"}
"""Audit actions that are not the operation's own name."""
LEAST_SPAN = 300.0
"""Seconds that a sandbox with a span of its own lives at least when it is started without a word about it."""
FAILED = "capsule.failed"
CREATED = "capsule.created"


@dataclass(frozen=True, slots=True)
class Because:
    """Why a record changes: who wanted it, within which operation, and with which error it failed, if it did. `silent`: no audit entry (an intent, whose
    end will have one)."""

    actor: Actor = SYSTEM
    operation: Operation | None = None
    error: TorporError | None = None
    request_id: str = ""
    silent: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)


async def move(records: Records, before: Sandbox, after: Sandbox, because: Because) -> bool:
    """Writes `after` if the record is still `before`; with it what the machine's life amounted to when it ended, an event, an audit entry. False: nothing."""
    if not await records.sandboxes.swap(before, after):
        return False
    if before.started_at is not None and after.started_at != before.started_at and (days := used(before, after.updated_at)):
        await records.figures.add_usage(days)
    await records.events.add(_event(before, after, because))
    if not because.silent:
        await records.audit.add(audit_entry(after, because))
    return True


def notices(*sandboxes: Sandbox) -> list[Notice]:
    """What the bus is told when the records are written."""
    return [Notice(topic, sandbox.id, sandbox.team_id) for sandbox in sandboxes for topic in ("sandbox", "event")]


def following(before: Sandbox, now: float, **changes: Any) -> Sandbox:
    """The next record of a sandbox."""
    return replace(before, generation=before.generation + 1, updated_at=now, **changes)


def running(before: Sandbox, machine: Machine, now: float) -> Sandbox:
    """A machine that ran already keeps the beginning of its life; one that starts counts as active now, and a life that was measured out and has run out
    gets the same span again."""
    started = before.started_at or now
    return following(
        before,
        now,
        state=S.RUNNING,
        operation=None,
        machine_id=machine.machine_id,
        shape=machine.shape,
        started_at=started,
        deadline=_deadline(before, now),
        terms=replace(before.terms, cold=False),
        last_active_at=max(before.last_active_at, now) if before.started_at is None else before.last_active_at,
        stored_bytes=machine.stored_bytes,
    )


def _deadline(before: Sandbox, now: float) -> float | None:
    """Of a machine that runs. One that has its span from its Terms has no deadline before it starts again."""
    span, operation, deadline = before.terms.span, before.operation, before.deadline
    if operation is not None and operation.span is not None and before.started_at is None:
        return now + operation.span
    if span > 0 and deadline is None:
        return now + max(LEAST_SPAN, span)
    if before.started_at is None and deadline is not None and deadline <= now and operation is not None:
        return now + (span or max(60.0, deadline - before.created_at))
    return deadline


def paused(before: Sandbox, machine: Machine, now: float) -> Sandbox:
    operation, terms = before.operation, before.terms
    if operation is not None and operation.kind is K.PAUSE:
        terms = replace(terms, cold=operation.target == DISK_ONLY)
    return following(
        before,
        now,
        state=S.PAUSED,
        operation=None,
        machine_id=machine.machine_id,
        started_at=None,
        stored_bytes=machine.stored_bytes,
        deadline=None if terms.span else before.deadline,
        terms=terms,
    )


def ended(before: Sandbox, now: float, reason: EndReason, note: str, *, state: SandboxState = S.STOPPED) -> Sandbox:
    return following(before, now, state=state, operation=None, started_at=None, stored_bytes=0, end_reason=reason, end_note=note[:1000], ended_at=now)


def missing(before: Sandbox, now: float) -> Sandbox:
    return following(before, now, state=S.MISSING, operation=None)


def postponed(after: Sandbox, operation: Operation, now: float, seconds: float) -> Sandbox:
    """The end of a time that could not be acted upon: the sandbox runs on, idle from now, or until `seconds` from now, and is not due again at once."""
    if after.state is not S.RUNNING or operation.cause not in ("idle", "timeout"):
        return after
    return replace(after, last_active_at=now) if operation.cause == "idle" else replace(after, deadline=now + seconds)


def arrived(before: Sandbox, machine: Machine | None, now: float) -> Sandbox | None:
    """The record that says what the host says. None: the host is busy with it. A sandbox that its host does not have is lost."""
    if machine is None:
        return ended(before, now, EndReason.HOST_LOST, "Its host no longer has it.")
    match machine.status:
        case MachineStatus.RUNNING:
            return running(before, machine, now)
        case MachineStatus.PAUSED:
            return paused(before, machine, now)
        case MachineStatus.ENDED:
            return ended(before, now, machine.end_reason or EndReason.ERROR, machine.end_note)
        case MachineStatus.BUSY:
            return None


def _event(before: Sandbox, after: Sandbox, because: Because) -> Event:
    data = {"state": after.state.value, "before": before.state.value}
    operation = because.operation or after.operation or before.operation
    if operation is not None:
        data |= {"operation": operation.id, "kind": operation.kind.value, "cause": operation.cause}
    if after.end_reason is not None:
        data |= {"reason": after.end_reason.value, "note": after.end_note}
    name = EVENTS.get(after.state, f"capsule.{after.state.value}")
    if because.error is not None:
        data |= described(because.error)
        name = name if after.end_reason is not None else FAILED
    elif after.state is S.RUNNING and before.state is S.STARTING:
        name = CREATED
    elif after.state is S.RUNNING and before.state is S.SNAPSHOTTING:
        name = "capsule.snapshotted"
    return Event(after.team_id, after.updated_at, name, "sandbox", after.id, because.actor, data)


def begun(sandbox: Sandbox, actor: Actor) -> Event:
    """Of a sandbox whose record was just made."""
    operation = sandbox.operation
    data = {"state": sandbox.state.value} | ({"operation": operation.id, "kind": operation.kind.value} if operation else {})
    return Event(sandbox.team_id, sandbox.created_at, f"capsule.{sandbox.state.value}", "sandbox", sandbox.id, actor, data)


def described(error: TorporError) -> dict[str, str]:
    """An error as strings, enough for `errors.rebuilt`."""
    more = {"error_reason": error.reason.value} if isinstance(error, Denied) else {}
    return {"error": error.code, "message": error.message, "mend": error.mend, **more}


def audit_entry(after: Sandbox, because: Because) -> AuditEntry:
    operation = because.operation
    action = ACTIONS.get(operation.kind, operation.kind.value) if operation else after.state.value
    status = AuditStatus.SUCCESS
    if because.error is not None:
        status = AuditStatus.ERROR
    elif after.state is S.STOPPED:
        status = AuditStatus.WARNING
    elif because.actor == SYSTEM:
        status = AuditStatus.INFO
    metadata = {"template": after.template, **because.metadata}
    if operation is not None and operation.cause != "user":
        metadata["cause"] = operation.cause
    if after.end_reason is not None:
        metadata["reason"] = after.end_reason.value
    if because.error is not None:
        metadata |= {"error": because.error.code}
    return AuditEntry(after.team_id, after.updated_at, because.actor, "sandbox", after.id, action, status, "team", metadata, because.request_id)
