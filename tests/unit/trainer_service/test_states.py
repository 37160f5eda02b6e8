"""The table of states."""

from __future__ import annotations

import pytest
from graft.common.v1 import common_pb2
from graft.trainer.v1 import trainer_service_pb2 as pb

from services.trainer.states import (
    ACTIVE,
    FINAL,
    TRANSITIONS,
    FailureCause,
    IllegalTransitionError,
    JobState,
    check_transition,
)


def test_the_states_and_causes_are_the_contracts() -> None:
    names = {name.removeprefix("JOB_STATE_") for name in pb.JobState.DESCRIPTOR.values_by_name}
    assert {state.value for state in JobState} == names - {"UNSPECIFIED"}
    causes = {
        name.removeprefix("FAILURE_CAUSE_")
        for name in common_pb2.FailureCause.DESCRIPTOR.values_by_name
    }
    assert {cause.value for cause in FailureCause} == causes - {"UNSPECIFIED"}


def test_every_state_can_be_reached_from_pending() -> None:
    reached, front = {JobState.PENDING}, [JobState.PENDING]
    while front:
        new = TRANSITIONS[front.pop()] - reached
        reached |= new
        front.extend(new)
    assert reached == set(JobState)


def test_exactly_the_ends_have_no_way_out() -> None:
    assert {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED} == FINAL


def test_every_job_that_has_not_ended_can_fail_and_be_cancelled() -> None:
    for state in set(JobState) - FINAL:
        check_transition(state, JobState.FAILED)
        check_transition(state, JobState.CANCELLED)


def test_only_a_job_with_a_worker_goes_back_to_the_queue_or_succeeds() -> None:
    for state in JobState:
        assert (JobState.SUCCEEDED in TRANSITIONS[state]) == (state in ACTIVE)
        back = JobState.QUEUED in TRANSITIONS[state]
        assert back == (state in ACTIVE or state is JobState.PREFLIGHT)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (JobState.SUCCEEDED, JobState.RUNNING),
        (JobState.PENDING, JobState.RUNNING),
        (JobState.FINALIZING, JobState.RUNNING),
        (JobState.RUNNING, JobState.RUNNING),
    ],
)
def test_what_the_table_does_not_have_is_refused(before: JobState, after: JobState) -> None:
    with pytest.raises(IllegalTransitionError, match=f"{before} to {after}"):
        check_transition(before, after)
