"""What is asked of a job before it is queued."""

from __future__ import annotations

from abc import ABC, abstractmethod

from services.trainer.jobs import Job


class Preflight(ABC):
    """Checks jobs."""

    @abstractmethod
    async def check(self, job: Job) -> None:
        """Does nothing for a job that can be tried.

        Raises:
            GraftError: BAD_DATA, naming row and field; NOT_A_MODEL or INVALID_SPEC; INTERNAL.
        """


class NoPreflight(Preflight):
    """Lets every job pass: for workers that train nothing."""

    async def check(self, job: Job) -> None:
        """Nothing is wrong."""
