"""The seam between the trainer and whatever runs its workers: a local process, a fake.

A launcher knows nothing of states: it starts one worker for one attempt, finds it again after the
trainer was restarted, and tells when it has ended.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Launch:
    """Everything that decides how the worker of one attempt is started.

    Args:
        job: "namespaces/{ns}/jobs/{job}".
        attempt: from 1.
        token: what the worker proves itself with.
        spec_json: the JobSpec as protobuf JSON.
        work_dir: folder of the job; checkpoints in it outlive the attempt.
        trainer_address: "host:port" that the worker reports to.
        registry_address: "host:port" that it commits its result to; "" for none.
        slots: numbers of the accelerator slots that it may use.
        cpu_threads: threads that it may compute with.
    """

    job: str
    attempt: int
    token: str = field(repr=False)
    spec_json: str
    work_dir: Path
    trainer_address: str
    registry_address: str
    slots: tuple[int, ...]
    cpu_threads: int

    @property
    def log_path(self) -> Path:
        """Where the worker's output goes."""
        return self.work_dir / f"attempt-{self.attempt}.log"


class Worker(ABC):
    """One worker that was started."""

    @property
    @abstractmethod
    def handle(self) -> str:
        """What find() needs to know it again; also in another process of the trainer."""

    @abstractmethod
    async def wait(self) -> int | None:
        """Waits until nothing of the worker runs any more; may be called by several.

        Returns:
            Its exit code, negative for a signal, or None where nobody can know it.
        """

    @abstractmethod
    def terminate(self) -> None:
        """Asks it to write a checkpoint and end (exit code 75). Nothing happens when it has ended."""

    @abstractmethod
    def kill(self) -> None:
        """Ends it and all that it started, at once. Nothing happens when it has ended."""


class Launcher(ABC):
    """Starts workers."""

    @abstractmethod
    async def start(self, launch: Launch) -> Worker:
        """Starts the worker of an attempt.

        Raises:
            OSError: it cannot be started; nothing of it is left.
        """

    @abstractmethod
    async def find(self, launch: Launch, handle: str) -> Worker | None:
        """The running worker of an attempt that was started earlier, perhaps by another process.

        Args:
            launch: as it was started with; at least job, attempt and token.
            handle: from the worker; "" where the trainer died before it could store it.

        Returns:
            None when no such worker runs. Never another process that got the same number.
        """
