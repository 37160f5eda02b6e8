"""Jobs, their attempts and their events as the trainer holds them. Plain values: nothing here acts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from services.trainer.states import FINAL, FailureCause, JobStage, JobState


@dataclass(frozen=True, slots=True)
class Metrics:
    """A position in a training run with what was measured there; as graft.common.v1.TrainingMetrics."""

    step: int = 0
    total_steps: int = 0
    epoch: float = 0.0
    loss: float = 0.0
    learning_rate: float = 0.0
    grad_norm: float = 0.0
    tokens: int = 0
    tokens_per_second: float = 0.0
    remaining_s: float = 0.0
    eval_loss: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StateChanged:
    """The job went from one state to another."""

    before: JobState
    after: JobState
    message: str = ""
    cause: FailureCause | None = None
    version: str = ""


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line for people."""

    text: str


@dataclass(frozen=True, slots=True)
class CheckpointSaved:
    """A checkpoint of a step is safe on disk."""

    step: int


@dataclass(frozen=True, slots=True)
class StageReached:
    """The job is at another stage."""

    stage: JobStage


EventBody = StateChanged | Metrics | LogLine | CheckpointSaved | StageReached


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a job; sequence counts within the job, from 1."""

    sequence: int
    time: datetime
    attempt: int
    body: EventBody


@dataclass(frozen=True, slots=True)
class Started:
    """A worker's report: model and data are ready, training begins at a step."""

    step: int
    total_steps: int
    trainable_parameters: int
    total_parameters: int


@dataclass(frozen=True, slots=True)
class Finalizing:
    """A worker's report: trained; the result is being saved, uploaded and committed."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A worker's last report: how its attempt ended. At most one of all but the message is set.

    None of them: trained, but there is no registry that the result could become a version in.
    """

    version: str = ""
    cause: FailureCause | None = None
    cancelled: bool = False
    preempted: bool = False
    message: str = ""
    paused: bool = False

    @property
    def succeeded(self) -> bool:
        """Whether there is a result."""
        return not (self.cause or self.cancelled or self.preempted or self.paused)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A worker's report: what it waits for, in words; "" when it goes on."""

    text: str


Report = (
    Started | Waiting | Metrics | LogLine | CheckpointSaved | StageReached | Finalizing | Finished
)


@dataclass(frozen=True, slots=True)
class Hello:
    """Who a worker says that it is."""

    job: str
    attempt: int
    token: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """One worker's go at a job.

    Args:
        slots: the numbers of the accelerator slots that it holds.
        trainer_address: "host:port" that its worker reports to.
        handle: what the launcher finds the worker by after a restart of the trainer.
        last_report: number of the last report that is stored.
    """

    job: str
    number: int
    token: str = field(repr=False)
    slots: tuple[int, ...]
    trainer_address: str
    start_time: datetime
    handle: str = ""
    last_report: int = 0
    finished: Finished | None = None
    exit_code: int | None = None
    end_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """A training job.

    Args:
        name: "namespaces/{ns}/jobs/{job}".
        spec_json: the spec of its kind as canonical protobuf JSON.
        slots: accelerator slots that it needs.
        cpu_threads: of its worker; 0 for its share of the machine.
        number: order of creation; given by the store.
        attempt: number of its last attempt, 0 before the first.
        restarts: attempts that were lost; preempted ones do not count.
        last_sequence: number of its last event.
        queue_time: when it was last put in the queue.
        kind: what the spec is of: "train", "merge" or "evaluate".
        stage: what it is at; of a failed job what failed.
        checkpoint_step: of its last checkpoint; 0 for none.
        pause_requested: whether it is to pause, and its worker has not stopped yet.
    """

    name: str
    namespace: str
    spec_json: str
    slots: int
    cpu_threads: int
    max_restarts: int
    create_time: datetime
    number: int = 0
    state: JobState = JobState.PENDING
    cause: FailureCause | None = None
    message: str = ""
    attempt: int = 0
    restarts: int = 0
    last_sequence: int = 0
    metrics: Metrics | None = None
    version: str = ""
    queue_time: datetime | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    cancel_requested: bool = False
    cancel_reason: str = ""
    kind: str = "train"
    stage: JobStage | None = None
    checkpoint_step: int = 0
    pause_requested: bool = False
    pause_reason: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in FINAL
