"""Judges what the end of a worker means for its job: from its last report, else from its exit code."""

from __future__ import annotations

import signal

from services.trainer.jobs import Finished, Job
from services.trainer.lifecycle import Verdict
from services.trainer.states import FailureCause, JobState

EXIT_PREEMPTED = 75
EXIT_CANCELLED = 79
EXIT_STALLED = 76
# sysexits.h where it has a fitting one; the contract names them at graft.common.v1.FailureCause.
CAUSE_BY_EXIT_CODE = {
    64: FailureCause.BAD_CONFIG,
    65: FailureCause.BAD_DATA,
    66: FailureCause.OUT_OF_MEMORY,
    67: FailureCause.REFUSED,
    70: FailureCause.INTERNAL,
}


def judge(
    job: Job,
    finished: Finished | None,
    exit_code: int | None,
    *,
    killed_because: str = "",
    how: str = "",
    preempted: bool = False,
    disrupted: bool = False,
    draining: bool = False,
    log_tail: str = "",
) -> Verdict:
    """What becomes of a job whose worker is gone.

    Args:
        job: as it stands.
        finished: the worker's last report, if it arrived.
        exit_code: of the worker; negative for a signal, None when nobody knows it.
        killed_because: why the trainer killed it, if it did.
        how: how it ended, as whoever ran it says; said where there is nothing better.
        preempted: whether it was told to write a checkpoint and end.
        disrupted: whether it was ended for no fault of its own or of the job.
        draining: whether the trainer shuts down, so that no attempt counts as lost.
        log_tail: last line that the worker wrote, for the message.
    """
    if finished is not None and finished.succeeded:
        where = finished.message or "No registry is set; the result is in the job's folder"
        return Verdict(
            JobState.SUCCEEDED, "" if finished.version else where, version=finished.version
        )
    if finished is not None and finished.cause not in (None, FailureCause.NODE_LOST):
        return Verdict(JobState.FAILED, finished.message, finished.cause)
    if (cancelled := _cancelled(job, finished, exit_code)) is not None:
        return cancelled
    # The exit code of a worker that an earlier trainer started is not known.
    stopped = exit_code == EXIT_PREEMPTED or (preempted and exit_code is None)
    if draining or stopped or disrupted or (finished is not None and finished.preempted):
        why = f" ({how})" if disrupted and how else ""
        return Verdict(JobState.QUEUED, f"Preempted{why}; it goes on from its last checkpoint")
    if not killed_because and (failed := _failed(exit_code, log_tail)) is not None:
        return failed
    return _lost(job, killed_because or how or _how(exit_code), log_tail)


def _cancelled(job: Job, finished: Finished | None, exit_code: int | None) -> Verdict | None:
    if job.cancel_requested:
        return Verdict(JobState.CANCELLED, job.cancel_reason or "Cancelled")
    if finished is not None and finished.cancelled:
        return Verdict(JobState.CANCELLED, finished.message or "The worker was told to stop")
    if exit_code == EXIT_CANCELLED:
        return Verdict(JobState.CANCELLED, "The worker was told to stop")
    return None


def _failed(exit_code: int | None, log_tail: str) -> Verdict | None:
    cause = CAUSE_BY_EXIT_CODE.get(exit_code) if exit_code is not None else None
    if cause is None:
        return None
    said = f": {log_tail}" if log_tail else ""
    return Verdict(JobState.FAILED, f"The worker ended with code {exit_code}{said}", cause)


def _lost(job: Job, how: str, log_tail: str) -> Verdict:
    if job.restarts < job.max_restarts:
        message = (
            f"Attempt {job.attempt} was lost ({how}); "
            f"restart {job.restarts + 1} of {job.max_restarts} goes on from the last checkpoint"
        )
        return Verdict(JobState.QUEUED, message, lost=True)
    said = f" Its log ends with: {log_tail}." if log_tail else ""
    return Verdict(
        JobState.FAILED,
        f"The worker was lost {job.restarts + 1} times, the last time because: {how}.{said} "
        f"See attempt-{job.attempt}.log in the job's folder, or raise resources.max_restarts.",
        FailureCause.NODE_LOST,
        lost=True,
    )


def _how(exit_code: int | None) -> str:
    if exit_code is None:
        return "its process vanished"
    if exit_code == EXIT_STALLED:
        return "its steps did not get on; the stacks of its threads are in its log"
    if exit_code >= 0:
        return f"it ended with code {exit_code} and reported no result"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    hint = ", perhaps by the kernel for want of memory" if exit_code == -signal.SIGKILL else ""
    return f"it was killed by {name}{hint}"
