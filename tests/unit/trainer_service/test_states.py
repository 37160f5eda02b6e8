"""The table of states."""

from __future__ import annotations

import pytest
from graft.common.v1 import common_pb2
from graft.trainer.v1 import stages_pb2
from graft.trainer.v1 import trainer_service_pb2 as pb

from services.trainer.states import (
    ACTIVE,
    FINAL,
    TRANSITIONS,
    FailureCause,
    IllegalTransitionError,
    JobStage,
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
    stages = {
        name.removeprefix("JOB_STAGE_") for name in stages_pb2.JobStage.DESCRIPTOR.values_by_name
    }
    assert {stage.value for stage in JobStage} == stages - {"UNSPECIFIED"}


def test_every_state_can_be_reached_from_pending() -> None:
    reached, front = {JobState.PENDING}, [JobState.PENDING]
    while front:
        new = TRANSITIONS[front.pop()] - reached
        reached |= new
        front.extend(new)
    assert reached == set(JobState)


def test_success_and_cancellation_have_no_way_out_and_a_failure_only_that_of_a_retry() -> None:
    assert {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED} == FINAL
    assert not TRANSITIONS[JobState.SUCCEEDED]
    assert not TRANSITIONS[JobState.CANCELLED]
    assert TRANSITIONS[JobState.FAILED] == {JobState.PENDING, JobState.QUEUED}


def test_every_job_that_has_not_ended_can_be_cancelled_and_fail_or_pause() -> None:
    for state in set(JobState) - FINAL:
        check_transition(state, JobState.CANCELLED)
        if state is not JobState.PAUSED:
            check_transition(state, JobState.FAILED)
            check_transition(state, JobState.PAUSED)


def test_only_a_job_with_a_worker_succeeds_and_nothing_runs_that_was_not_queued() -> None:
    for state in JobState:
        assert (JobState.SUCCEEDED in TRANSITIONS[state]) == (state in ACTIVE)
        assert (JobState.RUNNING in TRANSITIONS[state]) == (state is JobState.QUEUED)
        left_by_request = state in (JobState.PAUSED, JobState.FAILED)
        back = JobState.QUEUED in TRANSITIONS[state]
        assert back == (state in ACTIVE or state is JobState.PREFLIGHT or left_by_request)


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
