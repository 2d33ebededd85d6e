"""The life of one sandbox in the control plane's records, as decisions. Nothing here waits, reads a clock or knows a host.

                       placed            host answered
    (create) -> PENDING ------> STARTING -------------> RUNNING <------------------------+
                   |               |                    |  ^  |                          |
                   | failed        | failed       pause |  |  | snapshot, fork           | host answered
                   v               v                    |  |  v                          |
                 ERROR <-----------+                    |  SNAPSHOTTING --(source left   |
                                                        v         paused)----+           |
                                   pause failed      PAUSING                 |           |
                              RUNNING <---------------- |                    v           |
                                                        +---------------> PAUSED ----> RESUMING
                                                             done          ^  resume,      |
                                                                           |  cold boot    | failed
                                                                           +---------------+
    any live state -- delete --> STOPPING --> STOPPED
    RUNNING, PAUSING, PAUSED, RESUMING, SNAPSHOTTING, STOPPING -- host silent --> MISSING -- host answers --> what the host reports
    RUNNING -- its machine ended by itself --> STOPPED (with the reason)

A rollback of a running or paused sandbox goes through RESUMING. A snapshot of a paused one goes through SNAPSHOTTING and back to PAUSED.
ERROR and STOPPED are final: the record stays for 30 days with its reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from torpor.model.errors import Denied, DenyReason
from torpor.model.records import OperationKind, SandboxState

S = SandboxState
K = OperationKind

TRANSIENT = frozenset({S.PENDING, S.STARTING, S.PAUSING, S.RESUMING, S.SNAPSHOTTING, S.STOPPING})
"""States with an operation under way and a deadline."""
FINAL = frozenset({S.STOPPED, S.ERROR})
LIVE = frozenset(S) - FINAL
RESERVING = frozenset({S.PENDING, S.STARTING, S.RUNNING, S.PAUSING, S.RESUMING, S.SNAPSHOTTING, S.MISSING})
"""States in which vCPUs and memory of a host count as taken."""


class Verdict(Enum):
    """ACCEPTED: go ahead. ALREADY: it is so. JOIN: the same operation is under way; wait for that one."""

    ACCEPTED = "accepted"
    ALREADY = "already"
    JOIN = "join"


@dataclass(frozen=True, slots=True)
class Arrow:
    """An operation's way: the state it is under way in, where it leads when it succeeds, and where it falls back to when it fails with nothing lost."""

    through: SandboxState
    success: SandboxState
    failure: SandboxState


ARROWS: dict[tuple[SandboxState, OperationKind], Arrow] = {
    (S.PENDING, K.CREATE): Arrow(S.STARTING, S.RUNNING, S.ERROR),
    (S.RUNNING, K.PAUSE): Arrow(S.PAUSING, S.PAUSED, S.RUNNING),
    (S.PAUSED, K.RESUME): Arrow(S.RESUMING, S.RUNNING, S.PAUSED),
    (S.PAUSED, K.COLD_BOOT): Arrow(S.RESUMING, S.RUNNING, S.PAUSED),
    (S.PAUSED, K.ROLLBACK): Arrow(S.RESUMING, S.RUNNING, S.PAUSED),
    (S.RUNNING, K.ROLLBACK): Arrow(S.RESUMING, S.RUNNING, S.PAUSED),
    (S.RUNNING, K.SNAPSHOT): Arrow(S.SNAPSHOTTING, S.RUNNING, S.RUNNING),
    (S.PAUSED, K.SNAPSHOT): Arrow(S.SNAPSHOTTING, S.PAUSED, S.PAUSED),
    (S.RUNNING, K.FORK): Arrow(S.SNAPSHOTTING, S.RUNNING, S.RUNNING),
    **{(state, K.KILL): Arrow(S.STOPPING, S.STOPPED, S.STOPPING) for state in LIVE},
}

_ALREADY: frozenset[tuple[SandboxState, OperationKind]] = frozenset({(S.PAUSED, K.PAUSE), (S.RUNNING, K.RESUME), (S.STOPPED, K.KILL), (S.ERROR, K.KILL)})
_JOIN: frozenset[tuple[SandboxState, OperationKind]] = frozenset({(S.PAUSING, K.PAUSE), (S.RESUMING, K.RESUME), (S.STARTING, K.RESUME), (S.STOPPING, K.KILL)})


def decide(state: SandboxState, kind: OperationKind) -> Verdict | DenyReason:
    """The answer to `kind` in `state`. What no arrow leaves is BUSY in a transient state (put it again later), else NOT_RUNNING, ENDING or ENDED."""
    if (state, kind) in _ALREADY:
        return Verdict.ALREADY
    if (state, kind) in _JOIN:
        return Verdict.JOIN
    if (state, kind) in ARROWS:
        return Verdict.ACCEPTED
    if state in FINAL:
        return DenyReason.ENDED
    if state is S.STOPPING:
        return DenyReason.ENDING
    return DenyReason.BUSY if state in TRANSIENT or state is S.MISSING else DenyReason.NOT_RUNNING


def demand(state: SandboxState, kind: OperationKind) -> Verdict:
    """As `decide`, but raises Denied where it says no."""
    verdict = decide(state, kind)
    if isinstance(verdict, DenyReason):
        mend = "Try again when the present operation is done." if verdict is DenyReason.BUSY else ""
        raise Denied(verdict, f"Cannot {kind.value.replace('_', ' ')} a sandbox that is {state.value}.", mend=mend)
    return verdict


def demand_settled(state: SandboxState) -> None:
    """For what changes a sandbox beside its operations. Raises Denied unless it is running or paused with nothing under way."""
    if state in (S.RUNNING, S.PAUSED):
        return
    reason = DenyReason.ENDED if state in FINAL else DenyReason.ENDING if state is S.STOPPING else DenyReason.BUSY
    raise Denied(reason, f"The sandbox is {state.value}.", mend="Try again when the present operation is done." if reason is DenyReason.BUSY else "")


def demand_running(state: SandboxState) -> None:
    """For work inside a sandbox. Raises Denied unless it is running; while a snapshot of it is taken it counts as running."""
    if state in (S.RUNNING, S.SNAPSHOTTING):
        return
    reason = DenyReason.ENDED if state in FINAL else DenyReason.ENDING if state is S.STOPPING else DenyReason.NOT_RUNNING
    raise Denied(reason, f"The sandbox is {state.value}, not running.")
