"""The decisions of one sandbox's life: every pair of state and request has an answer, every illegal step tells its story."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.lifecycle.machine import Life, Request, Step, Verdict, decide
from torpor.model.errors import Denied, DenyReason, InternalError
from torpor.model.sandbox import MachineState


@pytest.mark.parametrize("state", MachineState)
@pytest.mark.parametrize("request_", Request)
def test_every_request_has_an_answer_in_every_state(state: MachineState, request_: Request) -> None:
    assert isinstance(decide(state, request_), Verdict | DenyReason)


@pytest.mark.parametrize("state", MachineState)
def test_kill_is_never_denied(state: MachineState) -> None:
    assert isinstance(decide(state, Request.KILL), Verdict)


@given(st.lists(st.sampled_from(Step), max_size=40))
def test_a_walk_of_steps_either_follows_the_drawing_or_is_refused_with_its_story(steps: list[Step]) -> None:
    life = Life(MachineState.PAUSED)
    taken = 0
    for step in steps:
        before = life.state
        try:
            life.step(step, at=float(taken))
        except InternalError as error:
            assert life.state is before
            assert step.value in str(error)
            assert before.value in str(error)
        else:
            taken += 1
    assert len(life.story()) == min(taken, 64)


def test_a_pause_goes_forward_or_back() -> None:
    life = Life(MachineState.PAUSED)
    for step in (Step.LAUNCHED, Step.ANSWERED, Step.QUIESCED, Step.THAWED, Step.QUIESCED, Step.COMMITTED):
        life.step(step, at=0.0)
    assert life.state is MachineState.PAUSED
    assert life.demand(Request.PAUSE) is False
    assert life.demand(Request.RESUME) is True


def test_a_busy_machine_says_so_by_name() -> None:
    life = Life(MachineState.PAUSED)
    life.step(Step.LAUNCHED, at=0.0)
    with pytest.raises(Denied) as caught:
        life.demand(Request.PAUSE)
    assert caught.value.reason is DenyReason.BUSY
    assert caught.value.mend
