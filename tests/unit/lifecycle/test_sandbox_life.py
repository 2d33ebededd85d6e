"""The control plane's decisions about a sandbox: the drawing in lifecycle.sandbox, read back from its tables."""

from __future__ import annotations

import itertools

import pytest

from torpor.lifecycle.sandbox import ARROWS, FINAL, LIVE, RESERVING, TRANSIENT, Verdict, decide, demand, demand_running
from torpor.model.errors import Denied, DenyReason
from torpor.model.records import OperationKind, SandboxState

S, K = SandboxState, OperationKind
EVERY = list(itertools.product(S, K))


@pytest.mark.parametrize(("state", "kind"), EVERY, ids=lambda value: value.value)
def test_every_question_has_an_answer(state: SandboxState, kind: OperationKind) -> None:
    verdict = decide(state, kind)
    assert isinstance(verdict, (Verdict, DenyReason))
    assert (verdict is Verdict.ACCEPTED) == ((state, kind) in ARROWS and verdict is not Verdict.JOIN)
    if isinstance(verdict, DenyReason):
        with pytest.raises(Denied) as caught:
            demand(state, kind)
        assert caught.value.reason is verdict
    else:
        assert demand(state, kind) is verdict


def test_a_delete_is_always_allowed_and_always_ends() -> None:
    for state in S:
        assert not isinstance(decide(state, K.KILL), DenyReason), state
    assert {ARROWS[state, K.KILL].success for state in LIVE} == {S.STOPPED}


def test_every_operation_is_under_way_in_a_transient_state_and_ends_outside_one() -> None:
    for (state, kind), arrow in ARROWS.items():
        assert arrow.through in TRANSIENT, (state, kind)
        assert arrow.success not in TRANSIENT, (state, kind)
        assert arrow.failure not in TRANSIENT or kind is K.KILL, (state, kind)


def test_from_every_live_state_every_other_state_that_users_wait_for_can_be_reached() -> None:
    ways = {state: {arrow.success for (start, _), arrow in ARROWS.items() if start is state} for state in S}
    reached = {S.PENDING}
    while more := {target for state in reached for target in ways[state]} - reached:
        reached |= more
    assert reached >= {S.RUNNING, S.PAUSED, S.STOPPED}
    assert all(not ways[state] for state in FINAL)


def test_what_is_final_holds_nothing() -> None:
    assert not FINAL & RESERVING
    assert S.PAUSED not in RESERVING


@pytest.mark.parametrize(
    ("state", "reason"),
    [(S.PAUSED, DenyReason.NOT_RUNNING), (S.STARTING, DenyReason.NOT_RUNNING), (S.STOPPING, DenyReason.ENDING), (S.STOPPED, DenyReason.ENDED)],
)
def test_work_inside_needs_a_running_sandbox(state: SandboxState, reason: DenyReason) -> None:
    demand_running(S.RUNNING)
    demand_running(S.SNAPSHOTTING)
    with pytest.raises(Denied) as caught:
        demand_running(state)
    assert caught.value.reason is reason
