"""What each occurrence does to a job: pure decisions, so that every store runs the very same ones.

Each function takes the job (and its last attempt) as they are and returns a Change to be stored whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from graft.errors import GraftError, Reason

from services.trainer.jobs import (
    Attempt,
    CheckpointSaved,
    EventBody,
    Finalizing,
    Finished,
    Job,
    LogLine,
    Metrics,
    Report,
    StageReached,
    Started,
    StateChanged,
    Waiting,
)
from services.trainer.states import (
    ACTIVE,
    FINAL,
    FailureCause,
    IllegalTransitionError,
    JobStage,
    JobState,
    check_transition,
)


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be stored in one transaction: the job, the attempt if it changed, and new events."""

    job: Job
    attempt: Attempt | None = None
    events: tuple[EventBody, ...] = ()


Decision = Callable[[Job, Attempt | None], Change]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the end of an attempt means for its job; lost: counts against max_restarts."""

    state: JobState
    message: str = ""
    cause: FailureCause | None = None
    version: str = ""
    lost: bool = False


def now() -> datetime:
    """The time, with its zone."""
    return datetime.now(UTC)


def move(
    job: Job,
    after: JobState,
    message: str = "",
    cause: FailureCause | None = None,
    version: str = "",
) -> Change:
    """The job in another state, with the event that says so."""
    check_transition(job.state, after)
    moved = replace(job, state=after, message=message, cause=cause, version=version or job.version)
    if after is JobState.QUEUED:
        moved = replace(moved, queue_time=now())
    if after is JobState.SUCCEEDED:
        moved = replace(moved, stage=None)
    if after not in ACTIVE:
        # Whatever was to stop has stopped.
        moved = replace(moved, pause_requested=False, pause_reason="")
    moved = replace(moved, end_time=now() if after in FINAL else None)
    return Change(moved, events=(StateChanged(job.state, after, message, cause, version),))


def moved(
    after: JobState,
    message: str = "",
    cause: FailureCause | None = None,
    *,
    before: JobState | None = None,
) -> Decision:
    """move() as a Decision.

    Args:
        before: the only state that it was decided for: in another one by now, the Decision raises
            IllegalTransitionError, also where the table has the transition.
    """

    def decide(job: Job, _attempt: Attempt | None) -> Change:
        if before is not None and job.state is not before:
            raise IllegalTransitionError(f"{job.name} is {job.state} by now, not {before}")
        return move(job, after, message, cause)

    return decide


# What a worker of a kind does when it reports that it has begun.
_STARTED = {"train": JobStage.TRAINING, "evaluate": JobStage.EVALUATING}


def begin(token: str, slots: tuple[int, ...], trainer_address: str) -> Decision:
    """A new attempt of a queued job."""

    def decide(job: Job, _attempt: Attempt | None) -> Change:
        number = job.attempt + 1
        change = move(job, JobState.RUNNING, f"Attempt {number} starts")
        begun = replace(change.job, attempt=number, start_time=job.start_time or now())
        attempt = Attempt(job.name, number, token, slots, trainer_address, start_time=now())
        return replace(change, job=begun, attempt=attempt)

    return decide


def launched(handle: str) -> Decision:
    """The worker of the last attempt exists and is found by its handle."""

    def decide(job: Job, attempt: Attempt | None) -> Change:
        assert attempt is not None
        return Change(job, replace(attempt, handle=handle))

    return decide


def reported(number: int, reports: Sequence[tuple[int, Report]]) -> Decision:
    """Reports of an attempt's worker; those that are stored already change nothing.

    Args:
        number: the attempt.
        reports: pairs of report number and report, ascending.

    The Decision raises GraftError JOB_ENDED when the attempt is over.
    """

    def decide(job: Job, attempt: Attempt | None) -> Change:
        if attempt is None or attempt.number != number or attempt.end_time or job.ended:
            raise attempt_over(job.name, number)
        change = Change(job, attempt)
        for report_number, report in reports:
            assert change.attempt is not None
            if report_number > change.attempt.last_report:
                seen = replace(change.attempt, last_report=report_number)
                change = _apply(replace(change, attempt=seen), report)
        return change

    return decide


def _apply(change: Change, report: Report) -> Change:
    job, attempt = change.job, change.attempt
    assert attempt is not None
    match report:
        case Finished():
            return replace(change, attempt=replace(attempt, finished=report))
        case Finalizing():
            if job.state is not JobState.RUNNING:
                return change
            moved_on = move(job, JobState.FINALIZING, "Trained; the result is being committed")
            return replace(change, job=moved_on.job, events=change.events + moved_on.events)
        case Started():
            line = (
                f"Training begins at step {report.step} of {report.total_steps}: "
                f"{report.trainable_parameters:,} of {report.total_parameters:,} parameters"
            )
            begun = replace(change, events=(*change.events, LogLine(line)))
            return _at_stage(begun, _STARTED[job.kind]) if job.kind in _STARTED else begun
        case Metrics():
            job = replace(job, metrics=report)
            return replace(change, job=job, events=(*change.events, report))
        case Waiting(text):
            said = text or "What was waited for is there; the job goes on"
            job = replace(job, message=text)
            return replace(change, job=job, events=(*change.events, LogLine(said)))
        case StageReached():
            return _at_stage(change, report.stage)
        case CheckpointSaved():
            job = replace(job, checkpoint_step=report.step)
            return replace(change, job=job, events=(*change.events, report))
        case LogLine():
            return replace(change, events=(*change.events, report))


def _at_stage(change: Change, stage: JobStage) -> Change:
    if change.job.stage is stage:
        return change
    job = replace(change.job, stage=stage)
    return replace(change, job=job, events=(*change.events, StageReached(stage)))


def noted(number: int, text: str, standing: bool) -> Decision:
    """What is going on with an attempt's worker; nothing where the attempt is over."""

    def decide(job: Job, attempt: Attempt | None) -> Change:
        if attempt is None or attempt.number != number or attempt.end_time or job.ended:
            return Change(job)
        return Change(replace(job, message=text) if standing else job, events=(LogLine(text),))

    return decide


def ended(exit_code: int | None, verdict: Verdict) -> Decision:
    """The end of the last attempt; its worker is gone."""

    def decide(job: Job, attempt: Attempt | None) -> Change:
        assert attempt is not None
        change = move(job, verdict.state, verdict.message, verdict.cause, verdict.version)
        counted = replace(change.job, restarts=job.restarts + verdict.lost)
        closed = replace(attempt, exit_code=exit_code, end_time=now())
        return replace(change, job=counted, attempt=closed)

    return decide


def attempt_over(job: str, number: int) -> GraftError:
    """What a worker is told that is no longer wanted."""
    return GraftError(
        Reason.JOB_ENDED,
        f"Attempt {number} of {job} is over",
        next_step="Stop: nothing that this worker does is kept.",
        job=job,
        attempt=number,
    )
