"""What people ask of a job: to cancel, to pause, to go on, to be tried again. Pure decisions, as lifecycle.py's.

Whatever is asked twice changes nothing the second time.
"""

from __future__ import annotations

from dataclasses import replace

from graft.errors import GraftError, Reason

from services.trainer.jobs import Attempt, Job, LogLine
from services.trainer.lifecycle import Change, Decision, move
from services.trainer.states import ACTIVE, JobStage, JobState

# Where these failed or stopped, what was made is whole and on disk.
_AFTER_RESULT = frozenset({JobStage.UPLOADING, JobStage.COMMITTING})


def cancel(reason: str) -> Decision:
    """Ends a job that has no worker at once, and marks one that has.

    The Decision raises GraftError JOB_ENDED.
    """

    def decide(job: Job, _attempt: Attempt | None) -> Change:
        if job.ended:
            raise _ended(job, "There is nothing to cancel.")
        if job.cancel_requested:
            return Change(job)
        asked = replace(job, cancel_requested=True, cancel_reason=reason)
        if job.state in ACTIVE:
            line = "The worker is asked to stop" + (f": {reason}" if reason else "")
            return Change(asked, events=(LogLine(line),))
        when = "while it was paused" if job.state is JobState.PAUSED else "before it started"
        return move(asked, JobState.CANCELLED, reason or f"Cancelled {when}")

    return decide


def pause(reason: str) -> Decision:
    """Pauses a job that has no worker at once, and marks one that has; again, nothing happens.

    The Decision raises GraftError JOB_ENDED, also for a job that is being cancelled.
    """

    def decide(job: Job, _attempt: Attempt | None) -> Change:
        if job.ended:
            raise _ended(job, "There is nothing to pause.")
        if job.cancel_requested:
            raise _ended(job, "Wait for its end: there is nothing to pause.", "is being cancelled")
        if job.pause_requested or job.state is JobState.PAUSED:
            return Change(job)
        if job.state not in ACTIVE:
            return move(job, JobState.PAUSED, reason or "Paused before it started")
        asked = replace(job, pause_requested=True, pause_reason=reason)
        line = "The worker is asked to write a checkpoint and stop, for a pause"
        return Change(asked, events=(LogLine(line + (f": {reason}" if reason else "")),))

    return decide


def resume() -> Decision:
    """Puts a paused job back in the queue, or takes back a pause that is on its way; others stay as they are.

    The Decision raises GraftError JOB_ENDED, also for a job that is being cancelled.
    """

    def decide(job: Job, _attempt: Attempt | None) -> Change:
        if job.ended:
            failed = job.state is JobState.FAILED
            short = job.name.rpartition("/")[2]
            step = f"Take it up again: graft jobs retry {short}" if failed else "Create another."
            raise _ended(job, step)
        if job.cancel_requested:
            raise _ended(job, "Wait for its end: it does not go on.", "is being cancelled")
        if job.state is JobState.PAUSED:
            return _take_up(job, "Resumed")
        if job.pause_requested:
            running = replace(job, pause_requested=False, pause_reason="")
            return Change(running, events=(LogLine("The pause is taken back; the job goes on"),))
        return Change(job)

    return decide


def retry() -> Decision:
    """Puts a failed job back in the queue with all its restarts, and resumes a paused one; others stay as they are.

    The Decision raises GraftError JOB_ENDED for a job that has succeeded or was cancelled.
    """

    def decide(job: Job, _attempt: Attempt | None) -> Change:
        if job.state is JobState.FAILED:
            # A cancellation may have come too late for a failure.
            afresh = replace(job, restarts=0, cancel_requested=False, cancel_reason="")
            return _take_up(afresh, "Retried")
        if job.ended:
            raise _ended(job, "Create another: only failed jobs are retried.")
        return _take_up(job, "Resumed") if job.state is JobState.PAUSED else Change(job)

    return decide


def _take_up(job: Job, what: str) -> Change:
    """A job that holds nothing, back to where it stood; one that no worker began is checked again."""
    if not job.attempt:
        return move(job, JobState.PENDING, f"{what}; it is checked again")
    return move(job, JobState.QUEUED, f"{what}; {_goes_on(job)}")


def _goes_on(job: Job) -> str:
    if job.stage in _AFTER_RESULT:
        return "it goes on with what it has made, and makes nothing again that is there"
    if job.checkpoint_step:
        return f"it goes on from the checkpoint of step {job.checkpoint_step}"
    return "it has no checkpoint and begins again"


def _ended(job: Job, next_step: str, is_what: str = "has ended already") -> GraftError:
    return GraftError(
        Reason.JOB_ENDED,
        f"{job.name} {is_what}: {job.state}",
        next_step=next_step,
        job=job.name,
        state=job.state,
    )
