"""What the end of a worker means for its job."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.trainer.jobs import Attempt, Finished, Job, Waiting
from services.trainer.lifecycle import now, reported
from services.trainer.states import FailureCause, JobState
from services.trainer.verdict import judge

JOB = Job(
    name="namespaces/default/jobs/bot-1",
    namespace="default",
    spec_json="{}",
    slots=1,
    cpu_threads=0,
    max_restarts=2,
    create_time=now(),
    state=JobState.RUNNING,
    attempt=1,
)
CANCELLED = replace(JOB, cancel_requested=True, cancel_reason="enough")


def test_a_version_is_a_success_whatever_came_after() -> None:
    verdict = judge(CANCELLED, Finished(version="v/1"), -9, killed_because="slow", draining=True)
    assert (verdict.state, verdict.version) == (JobState.SUCCEEDED, "v/1")


def test_a_result_without_a_registry_is_a_success_that_says_where_it_is() -> None:
    verdict = judge(JOB, Finished(), 0)
    assert (verdict.state, verdict.version) == (JobState.SUCCEEDED, "")
    assert "job's folder" in verdict.message


def test_a_version_whose_alias_stayed_is_a_success_that_says_why() -> None:
    verdict = judge(JOB, Finished(version="v/2", message="'eval_loss <= 1' does not hold"), 0)
    assert (verdict.state, verdict.version) == (JobState.SUCCEEDED, "v/2")
    assert verdict.message == "'eval_loss <= 1' does not hold"


def test_a_reported_failure_is_told_as_it_was_reported() -> None:
    verdict = judge(JOB, Finished(cause=FailureCause.BAD_DATA, message="row 3"), 65)
    assert verdict.state is JobState.FAILED
    assert (verdict.cause, verdict.message) == (FailureCause.BAD_DATA, "row 3")


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (64, FailureCause.BAD_CONFIG),
        (65, FailureCause.BAD_DATA),
        (66, FailureCause.OUT_OF_MEMORY),
        (67, FailureCause.REFUSED),
        (70, FailureCause.INTERNAL),
    ],
)
def test_without_a_report_the_exit_code_tells_the_cause(code: int, cause: FailureCause) -> None:
    verdict = judge(JOB, None, code, log_tail="row 7 has no output")
    assert (verdict.state, verdict.cause) == (JobState.FAILED, cause)
    assert "row 7 has no output" in verdict.message


@pytest.mark.parametrize("code", [-9, -11, 1, 0, None])
def test_a_worker_that_vanished_is_started_again(code: int | None) -> None:
    verdict = judge(JOB, None, code)
    assert (verdict.state, verdict.lost) == (JobState.QUEUED, True)
    assert "restart 1 of 2" in verdict.message


def test_a_worker_that_vanishes_too_often_is_a_lost_node() -> None:
    verdict = judge(replace(JOB, restarts=2, attempt=3), None, -9, log_tail="step 8")
    assert (verdict.state, verdict.cause) == (JobState.FAILED, FailureCause.NODE_LOST)
    assert "SIGKILL" in verdict.message
    assert "step 8" in verdict.message
    assert "attempt-3.log" in verdict.message


def test_a_preempted_worker_does_not_count_as_lost() -> None:
    for finished, code in ((Finished(preempted=True), None), (None, 75)):
        verdict = judge(replace(JOB, restarts=2), finished, code)
        assert (verdict.state, verdict.lost) == (JobState.QUEUED, False)


def test_while_the_trainer_drains_no_worker_counts_as_lost() -> None:
    verdict = judge(replace(JOB, restarts=2), None, -9, draining=True)
    assert (verdict.state, verdict.lost) == (JobState.QUEUED, False)


@pytest.mark.parametrize(("finished", "code"), [(Finished(cancelled=True), 79), (None, -9)])
def test_a_cancelled_job_is_cancelled_however_its_worker_ended(
    finished: Finished | None, code: int
) -> None:
    verdict = judge(CANCELLED, finished, code, killed_because="it did not stop when cancelled")
    assert (verdict.state, verdict.message) == (JobState.CANCELLED, "enough")


def test_a_silent_worker_that_was_killed_is_lost_and_says_why() -> None:
    verdict = judge(JOB, None, -9, killed_because="nothing was heard from it for 60 s")
    assert verdict.lost
    assert "nothing was heard from it for 60 s" in verdict.message


def test_a_worker_that_pauses_by_itself_tells_the_reason_by_report_or_by_code() -> None:
    full = Finished(paused=True, message="the disk is full")
    for finished, code in ((full, 74), (full, None), (None, 74)):
        verdict = judge(JOB, finished, code, log_tail="the disk is full")
        assert (verdict.state, verdict.lost) == (JobState.PAUSED, False)
        assert verdict.message == "the disk is full"
    assert judge(CANCELLED, full, 74).state is JobState.CANCELLED


PAUSING = replace(JOB, pause_requested=True, pause_reason="others first", restarts=2)


@pytest.mark.parametrize(
    ("finished", "code"),
    [(Finished(preempted=True), 75), (None, -9), (None, None), (None, 1)],
)
def test_a_job_that_is_to_pause_pauses_however_its_worker_ended(
    finished: Finished | None, code: int | None
) -> None:
    for draining in (False, True):
        verdict = judge(PAUSING, finished, code, draining=draining)
        assert (verdict.state, verdict.message) == (JobState.PAUSED, "others first")
        assert not verdict.lost


def test_a_failure_and_a_version_outweigh_a_pause() -> None:
    assert judge(PAUSING, None, 65).state is JobState.FAILED
    assert judge(PAUSING, Finished(cause=FailureCause.BAD_DATA), 65).state is JobState.FAILED
    assert judge(PAUSING, Finished(version="v/1"), 0).state is JobState.SUCCEEDED


def test_a_job_says_what_its_worker_waits_for_and_that_it_goes_on() -> None:
    attempt = Attempt(JOB.name, 1, "t", (0,), "here", start_time=now())
    waits = reported(1, [(1, Waiting("Waits for its data: s3://b/k"))])(JOB, attempt)
    assert waits.job.message == "Waits for its data: s3://b/k"
    goes_on = reported(1, [(2, Waiting(""))])(waits.job, waits.attempt)
    assert goes_on.job.message == ""
    assert "goes on" in str(goes_on.events)
