"""The seam between the trainer and whatever runs its workers: a local process, a cluster, a fake.

A launcher knows nothing of states: it starts one worker for one attempt, finds it again after the
trainer was restarted, and tells when it has ended and what is known of its end.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from services.trainer.jobs import Finished


@dataclass(frozen=True, slots=True)
class Launch:
    """Everything that decides how the worker of one attempt is started.

    Args:
        job: "namespaces/{ns}/jobs/{job}".
        attempt: from 1.
        token: what the worker proves itself with.
        spec_json: the spec of its kind as protobuf JSON.
        work_dir: folder of the job; checkpoints in it outlive the attempt.
        trainer_address: "host:port" that the worker reports to.
        registry_address: "host:port" that it commits its result to; "" for none.
        slots: numbers of the accelerator slots that it may use.
        cpu_threads: threads that it may compute with.
        kind: what the spec is of: "train", "merge" or "evaluate".
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
    kind: str = "train"

    @property
    def log_path(self) -> Path:
        """Where the worker's output goes."""
        return self.work_dir / f"attempt-{self.attempt}.log"


@dataclass(frozen=True, slots=True)
class Notice:
    """What is going on with a worker, for people.

    Args:
        text: a sentence.
        standing: whether it says where the job stands (why it waits), not only what happened.
    """

    text: str
    standing: bool = True


@dataclass(frozen=True, slots=True)
class Remains:
    """What a worker that has ended left behind, beside its exit code.

    Args:
        finished: its last report, where it is kept where the worker ran.
        disrupted: whether it was ended for no fault of its own or of the job: a drained node, a preemption.
        because: how it ended, as whoever ran it says.
        log_tail: the last line that it wrote.
    """

    finished: Finished | None = None
    disrupted: bool = False
    because: str = ""
    log_tail: str = ""


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

    @property
    def begun(self) -> bool:
        """Whether it runs; before, it waits for a place and no sign of life can be expected."""
        return True

    async def until_begun(self) -> None:
        """Waits until it runs, or has ended without."""
        return

    def listen(self, heard: Callable[[Notice], None]) -> None:
        """Has every notice about it told from now on, beginning with where it stands; to one listener."""
        return

    async def remains(self) -> Remains:
        """What it left behind; once it has ended."""
        return Remains()

    async def release(self) -> None:
        """Its end is stored: what is kept of it for that alone may go."""
        return


class Launcher(ABC):
    """Starts workers."""

    @property
    def outlived(self) -> bool:
        """Whether workers are left running when the trainer shuts down, for the next one to find."""
        return False

    @property
    def max_nodes(self) -> int:
        """How many machines a job may use."""
        return 1

    async def open(self) -> None:
        """Gets to know what runs; before anything else.

        Raises:
            GraftError: UNAVAILABLE or PERMISSION_DENIED, when that is not possible.
        """
        return

    async def recovered(self, open_jobs: Collection[str] | None = None) -> None:
        """Every worker that is wanted was looked for: others of this trainer's are orphans, and end.

        Args:
            open_jobs: that have not ended, also those without a worker: what is kept for others may go. None
                where nobody knows.
        """
        return

    async def forget(self, job: str, attempt: int) -> None:
        """The end of a job is stored: what was kept from one attempt for the next may go.

        Args:
            attempt: its last.
        """
        return

    async def close(self) -> None:
        """Leaves its workers to the next trainer; after everything else."""
        return

    @abstractmethod
    async def start(self, launch: Launch) -> Worker:
        """Starts the worker of an attempt.

        A worker may have to wait for a place first. What keeps it from ever getting one ends it, and is
        among its remains.

        Raises:
            OSError: it cannot be started; nothing of it is left.
        """

    @abstractmethod
    async def find(self, launch: Launch, handle: str) -> Worker | None:
        """The worker of an attempt that was started earlier, perhaps by another process.

        Args:
            launch: as it was started with; at least job, attempt and token.
            handle: from the worker; "" where the trainer died before it could store it.

        Returns:
            None when no such worker runs and nothing is kept of its end; one that has ended where something
            is. Never another process that got the same number.
        """
