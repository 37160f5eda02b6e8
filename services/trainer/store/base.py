"""The seam of the trainer's database: jobs, their attempts, their events, and idempotent creation.

A store decides nothing: what happens to a job is a Decision (services/trainer/lifecycle.py) that the
store runs on the current state and saves whole, in one transaction.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from graft.errors import GraftError, Reason

from services.trainer.jobs import Attempt, Event, Job
from services.trainer.lifecycle import Decision
from services.trainer.states import JobState


@dataclass(frozen=True, slots=True)
class RequestKey:
    """What makes a creation idempotent (AIP-155): the caller's id, and a digest of what it asked."""

    namespace: str
    request_id: str
    digest: str


@dataclass(frozen=True, slots=True)
class Changed:
    """A job and its last attempt after a change, with the events that it made."""

    job: Job
    attempt: Attempt | None
    events: tuple[Event, ...]


class JobStore(ABC):
    """Jobs of one trainer. What a method has returned survives a crash."""

    @abstractmethod
    async def create(self, job: Job, key: RequestKey | None) -> tuple[Job, bool]:
        """Stores a new job with its number.

        Returns:
            The job and True; or, where the key was used before for the same request, what that made
            and False.

        Raises:
            GraftError: REQUEST_ID_REUSED, ALREADY_EXISTS.
        """

    @abstractmethod
    async def get(self, name: str) -> Job:
        """One job. Raises GraftError JOB_NOT_FOUND."""

    @abstractmethod
    async def attempt(self, name: str, number: int) -> Attempt | None:
        """One attempt of a job; None when there is none of that number."""

    @abstractmethod
    async def change(self, name: str, decide: Decision) -> Changed:
        """Runs a decision on a job and its last attempt, and saves all of what it says, or nothing.

        Raises:
            GraftError: JOB_NOT_FOUND, and whatever the decision raises.
        """

    @abstractmethod
    async def page(self, namespace: str, limit: int, before: int | None) -> list[Job]:
        """A namespace's jobs, newest first, with numbers below before."""

    @abstractmethod
    async def in_states(self, states: Collection[JobState]) -> list[Job]:
        """All jobs in these states, oldest first."""

    @abstractmethod
    async def counts(self) -> Mapping[JobState, int]:
        """How many jobs there are in each state that has any."""

    @abstractmethod
    async def events(self, name: str, after: int, limit: int) -> list[Event]:
        """A job's events with sequences above after, in order."""

    @abstractmethod
    async def close(self) -> None:
        """Releases what the store holds."""


def job_not_found(name: str) -> GraftError:
    """The error for a job that does not exist."""
    return GraftError(
        Reason.JOB_NOT_FOUND,
        f"There is no job {name}",
        next_step="List the jobs with `graft jobs list`.",
        job=name,
    )


def already_exists(name: str) -> GraftError:
    """The error for a job whose name is taken."""
    return GraftError(
        Reason.ALREADY_EXISTS,
        f"There is a job {name} already",
        next_step="Create it again: it gets another name.",
        job=name,
    )


def check_same_request(key: RequestKey, stored_digest: str) -> None:
    """Raises GraftError REQUEST_ID_REUSED when the key was used for another request."""
    if key.digest != stored_digest:
        raise GraftError(
            Reason.REQUEST_ID_REUSED,
            f"request_id {key.request_id!r} was used for another request",
            next_step="Use a new request_id for a new job.",
            request_id=key.request_id,
        )
