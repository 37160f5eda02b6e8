"""How each worker is to be started: its folder, its addresses and its share of the machine."""

from __future__ import annotations

from pathlib import Path

from graft.names import parse_name

from services.trainer.jobs import Attempt, Job
from services.trainer.launchers.base import Launch


class Launches:
    """Makes a Launch of a job and its attempt.

    Args:
        folder: holds a folder for each job.
        registry_address: "host:port", "" for none.
        slots: how many this trainer has.
        cores: of the machine, shared between the slots.
    """

    def __init__(self, folder: Path, registry_address: str, slots: int, cores: int) -> None:
        self._folder = folder
        self._registry_address = registry_address
        self._slots = slots
        self._cores = cores
        # Known once the server is bound.
        self.trainer_address = ""

    def work_dir(self, job: str) -> Path:
        """The folder of a job."""
        ids = parse_name(job, "namespaces/{namespace}/jobs/{job}")
        return self._folder / ids["namespace"] / ids["job"]

    def of(self, job: Job, attempt: Attempt) -> Launch:
        """How the worker of an attempt is started."""
        share = max(1, self._cores * job.slots // self._slots)
        return Launch(
            job=job.name,
            attempt=attempt.number,
            token=attempt.token,
            spec_json=job.spec_json,
            work_dir=self.work_dir(job.name),
            trainer_address=attempt.trainer_address,
            registry_address=self._registry_address,
            slots=attempt.slots,
            cpu_threads=job.cpu_threads or share,
            kind=job.kind,
        )
