"""The states of a job, and the one table that says which follows which. Nothing here stores or acts."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class JobState(StrEnum):
    """Where a job stands; the names of graft.trainer.v1.JobState without their prefix."""

    PENDING = "PENDING"
    PREFLIGHT = "PREFLIGHT"
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    FINALIZING = "FINALIZING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    PAUSED = "PAUSED"


class JobStage(StrEnum):
    """What a job is at; the names of graft.trainer.v1.JobStage without their prefix."""

    PREPARING = "PREPARING"
    TRAINING = "TRAINING"
    EVALUATING = "EVALUATING"
    SAVING = "SAVING"
    MERGING = "MERGING"
    UPLOADING = "UPLOADING"
    COMMITTING = "COMMITTING"


class FailureCause(StrEnum):
    """Why a job failed; the names of graft.common.v1.FailureCause without their prefix."""

    BAD_CONFIG = "BAD_CONFIG"
    BAD_DATA = "BAD_DATA"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    NODE_LOST = "NODE_LOST"
    INTERNAL = "INTERNAL"
    REFUSED = "REFUSED"


_S = JobState
_ENDS = frozenset({_S.FAILED, _S.CANCELLED})

# A job goes back to QUEUED when its worker was lost or preempted and is to be started again. It may
# succeed straight from RUNNING, where the report of FINALIZING was lost with the worker's connection.
# PAUSED and FAILED are left by request only, to where the job stood: PENDING where it was never begun.
TRANSITIONS: Mapping[JobState, frozenset[JobState]] = {
    _S.PENDING: frozenset({_S.PREFLIGHT, _S.PAUSED}) | _ENDS,
    _S.PREFLIGHT: frozenset({_S.QUEUED, _S.PAUSED}) | _ENDS,
    _S.QUEUED: frozenset({_S.RUNNING, _S.PAUSED}) | _ENDS,
    _S.RUNNING: frozenset({_S.FINALIZING, _S.SUCCEEDED, _S.QUEUED, _S.PAUSED}) | _ENDS,
    _S.FINALIZING: frozenset({_S.SUCCEEDED, _S.QUEUED, _S.PAUSED}) | _ENDS,
    _S.PAUSED: frozenset({_S.PENDING, _S.QUEUED, _S.CANCELLED}),
    _S.SUCCEEDED: frozenset(),
    _S.FAILED: frozenset({_S.PENDING, _S.QUEUED}),
    _S.CANCELLED: frozenset(),
}
# Nothing more happens to a job by itself.
FINAL = frozenset({_S.SUCCEEDED, _S.FAILED, _S.CANCELLED})
ACTIVE = frozenset({_S.RUNNING, _S.FINALIZING})


class IllegalTransitionError(Exception):
    """A fault of ours: something tried to move a job where the table does not allow it."""


def check_transition(before: JobState, after: JobState) -> None:
    """Does nothing when the table has the transition.

    Raises:
        IllegalTransitionError: it has not.
    """
    if after not in TRANSITIONS[before]:
        raise IllegalTransitionError(f"A job cannot go from {before} to {after}")
