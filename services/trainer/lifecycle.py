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
    Started,
    StateChanged,
)
from services.trainer.states import ACTIVE, FINAL, FailureCause, JobState, check_transition


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
    if after in FINAL:
        moved = replace(moved, end_time=now())
    return Change(moved, events=(StateChanged(job.state, after, message, cause, version),))


def moved(after: JobState, message: str = "", cause: FailureCause | None = None) -> Decision:
    """move() as a Decision."""
    return lambda job, _attempt: move(job, after, message, cause)


def cancel(reason: str) -> Decision:
    """Ends a job that has no worker at once, and marks one that has.

    The Decision raises GraftError JOB_ENDED.
    """

    def decide(job: Job, _attempt: Attempt | None) -> Change:
        if job.ended:
            raise GraftError(
                Reason.JOB_ENDED,
                f"{job.name} has ended already: {job.state}",
                next_step="There is nothing to cancel.",
                job=job.name,
                state=job.state,
            )
        if job.cancel_requested:
            return Change(job)
        asked = replace(job, cancel_requested=True, cancel_reason=reason)
        if job.state in ACTIVE:
            line = "The worker is asked to stop" + (f": {reason}" if reason else "")
            return Change(asked, events=(LogLine(line),))
        return move(asked, JobState.CANCELLED, reason or "Cancelled before it started")

    return decide


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
            return replace(change, events=(*change.events, LogLine(line)))
        case Metrics():
            job = replace(job, metrics=report)
            return replace(change, job=job, events=(*change.events, report))
        case LogLine() | CheckpointSaved():
            return replace(change, events=(*change.events, report))


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
