"""A check of jobs that finds nothing wrong: their bases and data are nowhere."""

from __future__ import annotations

from services.trainer.jobs import Job
from services.trainer.preflight import Preflight


class NoPreflight(Preflight):
    """Lets every job pass."""

    async def check(self, job: Job) -> None:
        return
