"""The life of one sandbox on its host, as decisions: (state, request) -> accepted, already so, or denied with a name.

Nothing here waits, reads a clock or knows a VMM.

                 launch                    answered
    (record) ---------------> LAUNCHING -------------> READY <------------------+
        ^                         |                    |   ^                    |
        | resume, cold boot       | failed             |   | thawed             | relaunched
        |                         v                    v   |                    | (rollback)
      PAUSED <--- committed --- (ended) <--+-------- QUIESCED                    |
        |                                  |           |                        |
        | kill                             +-----------+---> STOPPING ---> ENDED
        +----------------------------------------------------^

A machine leaves QUIESCED forward (its pause is committed: PAUSED) or back (the snapshot is taken, or the pause failed: READY). A VMM that dies of its own
accord takes LAUNCHING, READY or QUIESCED to ENDED at once; whoever waited is told. A resume that fails falls back to PAUSED: its artefact is still good.
A rollback stops the present life and falls back to PAUSED at the artefact it was given, then resumes.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum

from torpor.model.errors import Denied, DenyReason, InternalError
from torpor.model.sandbox import MachineState

S = MachineState


class Request(Enum):
    """What a caller may ask of a sandbox."""

    USE = "use"
    PAUSE = "pause"
    SNAPSHOT = "snapshot"
    RESUME = "resume"
    COLD_BOOT = "cold_boot"
    ROLLBACK = "rollback"
    KILL = "kill"


class Step(Enum):
    """What happened to a machine; the only things that change its state."""

    LAUNCHED = "launched"
    ANSWERED = "answered"
    QUIESCED = "quiesced"
    THAWED = "thawed"
    COMMITTED = "committed"
    STOPPING = "stopping"
    FELL_BACK = "fell_back"
    GONE = "gone"


class Verdict(Enum):
    ACCEPTED = "accepted"
    ALREADY = "already"


_NEXT: dict[tuple[MachineState, Step], MachineState] = {
    (S.PAUSED, Step.LAUNCHED): S.LAUNCHING,
    (S.ENDED, Step.LAUNCHED): S.LAUNCHING,
    (S.LAUNCHING, Step.ANSWERED): S.READY,
    (S.READY, Step.QUIESCED): S.QUIESCED,
    (S.QUIESCED, Step.THAWED): S.READY,
    (S.QUIESCED, Step.COMMITTED): S.PAUSED,
    (S.LAUNCHING, Step.STOPPING): S.STOPPING,
    (S.READY, Step.STOPPING): S.STOPPING,
    (S.QUIESCED, Step.STOPPING): S.STOPPING,
    (S.PAUSED, Step.STOPPING): S.STOPPING,
    (S.ENDED, Step.STOPPING): S.STOPPING,
    (S.LAUNCHING, Step.FELL_BACK): S.PAUSED,
    (S.LAUNCHING, Step.GONE): S.ENDED,
    (S.READY, Step.GONE): S.ENDED,
    (S.QUIESCED, Step.GONE): S.ENDED,
    (S.STOPPING, Step.GONE): S.ENDED,
    (S.STOPPING, Step.FELL_BACK): S.PAUSED,
}

_BUSY = DenyReason.BUSY
_DECISIONS: dict[MachineState, dict[Request, Verdict | DenyReason]] = {
    S.LAUNCHING: {Request.RESUME: Verdict.ALREADY, Request.KILL: Verdict.ACCEPTED},
    S.READY: {
        Request.USE: Verdict.ACCEPTED,
        Request.PAUSE: Verdict.ACCEPTED,
        Request.SNAPSHOT: Verdict.ACCEPTED,
        Request.RESUME: Verdict.ALREADY,
        Request.ROLLBACK: Verdict.ACCEPTED,
        Request.KILL: Verdict.ACCEPTED,
    },
    S.QUIESCED: {Request.KILL: Verdict.ACCEPTED},
    S.PAUSED: {
        Request.USE: DenyReason.NOT_RUNNING,
        Request.PAUSE: Verdict.ALREADY,
        Request.SNAPSHOT: Verdict.ACCEPTED,
        Request.RESUME: Verdict.ACCEPTED,
        Request.COLD_BOOT: Verdict.ACCEPTED,
        Request.ROLLBACK: Verdict.ACCEPTED,
        Request.KILL: Verdict.ACCEPTED,
    },
    S.STOPPING: dict.fromkeys(Request, DenyReason.ENDING) | {Request.KILL: Verdict.ALREADY},
    S.ENDED: dict.fromkeys(Request, DenyReason.ENDED)
    | {Request.RESUME: Verdict.ACCEPTED, Request.COLD_BOOT: Verdict.ACCEPTED, Request.ROLLBACK: Verdict.ACCEPTED, Request.KILL: Verdict.ACCEPTED},
}


def decide(state: MachineState, request: Request) -> Verdict | DenyReason:
    """The answer to `request` in `state`. What the table does not list is BUSY: another operation is under way and the request may be put again."""
    return _DECISIONS[state].get(request, _BUSY)


@dataclass(frozen=True, slots=True)
class Happening:
    """One entry of a machine's recent story. `at` is the caller's clock, seconds since the epoch."""

    at: float
    before: MachineState
    step: Step
    note: str = ""

    def __str__(self) -> str:
        return f"{self.at:.3f} {self.before.value} -{self.step.value}-> {self.note}".rstrip()


class Life:
    """State and recent story of one sandbox. Held by its owner task alone; others read `state`."""

    def __init__(self, state: MachineState) -> None:
        self.state = state
        self._story: deque[Happening] = deque(maxlen=64)

    def step(self, step: Step, at: float, note: str = "") -> MachineState:
        """Takes a step. Raises InternalError, with the story so far, when the drawing has no such arrow: then a promise of our own code is broken."""
        following = _NEXT.get((self.state, step))
        if following is None:
            story = "; ".join(map(str, self._story))
            raise InternalError(f"no arrow {step.value} leaves {self.state.value}; story: {story or 'none'}")
        self._story.append(Happening(at, self.state, step, note))
        self.state = following
        return following

    def demand(self, request: Request) -> bool:
        """True: go ahead. False: it is so already. Raises Denied with the reason."""
        verdict = decide(self.state, request)
        if isinstance(verdict, DenyReason):
            mend = "Try again when the present operation is done." if verdict is _BUSY else ""
            raise Denied(verdict, f"Cannot {request.value.replace('_', ' ')} a sandbox that is {self.state.value}.", mend=mend)
        return verdict is Verdict.ACCEPTED

    def story(self) -> list[Happening]:
        """The last steps, oldest first; at most 64."""
        return list(self._story)
