"""What the client answers with: frozen values without protobuf. convert.py makes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from graft.attestation import Attestation
from graft.errors import GraftError, Reason
from graft.rollout_policy import Rollout, RolloutReport


class JobState(StrEnum):
    """Where a job stands."""

    PENDING = "PENDING"
    PREFLIGHT = "PREFLIGHT"
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    FINALIZING = "FINALIZING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    PAUSED = "PAUSED"

    @property
    def ended(self) -> bool:
        """Whether nothing more happens by itself."""
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


class JobStage(StrEnum):
    """What a job is at; of a failed one what failed."""

    PREPARING = "PREPARING"
    TRAINING = "TRAINING"
    EVALUATING = "EVALUATING"
    SAVING = "SAVING"
    MERGING = "MERGING"
    UPLOADING = "UPLOADING"
    COMMITTING = "COMMITTING"


class FailureCause(StrEnum):
    """Why a job failed."""

    BAD_CONFIG = "BAD_CONFIG"
    BAD_DATA = "BAD_DATA"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    NODE_LOST = "NODE_LOST"
    INTERNAL = "INTERNAL"
    REFUSED = "REFUSED"


class FinishReason(StrEnum):
    """Why an answer ended."""

    STOP = "STOP"
    LENGTH = "LENGTH"
    ABORTED = "ABORTED"
    TOOL_CALLS = "TOOL_CALLS"


class ResidencyState(StrEnum):
    """State of an adapter version on an engine."""

    LOADING = "LOADING"
    READY = "READY"
    DRAINING = "DRAINING"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class Metrics:
    """A position in a training run: losses in nats per trained token, tokens without padding.

    figures are the objective's own, for example {"reward": 0.7}.
    """

    step: int
    total_steps: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    tokens_per_second: float
    remaining_s: float
    eval_loss: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it was when asked.

    spec is the contract's JSON form, of what kind says: "train", "merge" or "evaluate".
    """

    name: str
    state: JobState
    spec: Mapping[str, Any]
    failure_cause: FailureCause | None
    message: str
    attempt: int
    metrics: Metrics | None
    version: str | None
    create_time: datetime | None
    start_time: datetime | None
    end_time: datetime | None
    cancel_requested: bool
    kind: str = "train"
    stage: JobStage | None = None
    pause_requested: bool = False
    checkpoint_step: int = 0


@dataclass(frozen=True, slots=True)
class StateChange:
    """A change of a job's state."""

    from_state: JobState | None
    to_state: JobState
    message: str
    failure_cause: FailureCause | None
    version: str | None


@dataclass(frozen=True, slots=True)
class JobEvent:
    """Something that happened to a job; exactly one of the last five is set."""

    sequence: int
    time: datetime | None
    attempt: int
    state_change: StateChange | None = None
    metrics: Metrics | None = None
    log: str | None = None
    checkpoint_step: int | None = None
    stage: JobStage | None = None


class JobFailedError(GraftError):
    """A job that was waited for failed or was cancelled; job holds how."""

    def __init__(self, job: Job) -> None:
        super().__init__(
            Reason.JOB_FAILED,
            f"{job.name} ended {job.state}: {job.message}" if job.message else
            f"{job.name} ended {job.state}",
            next_step=f"Read its log with `graft jobs logs {short_id(job.name)}`.",
            job=job.name,
            cause=job.failure_cause or "",
        )  # fmt: skip
        self.job = job

    def __reduce__(self) -> tuple[Any, ...]:
        return (JobFailedError, (self.job,))


@dataclass(frozen=True, slots=True)
class Adapter:
    """A line of adapter versions for one base; latest_version is 0 before the first."""

    name: str
    base: str
    description: str
    labels: Mapping[str, str]
    latest_version: int
    create_time: datetime | None
    etag: str = ""
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class Base:
    """A base model; modules is the number of matrices that an adapter may target."""

    name: str
    source: str
    fingerprint: str
    modules: int
    create_time: datetime | None
    description: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    latest_version: int = 0
    etag: str = ""
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class VersionFile:
    """A file of a version."""

    path: str
    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a version came from; job is None for a push by hand."""

    job: str | None
    attempt: int
    spec: Mapping[str, Any]
    data_digest: str
    data_rows: int
    seed: int
    library_versions: Mapping[str, str]
    metrics: Mapping[str, float]
    parent_versions: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Check:
    """A check that a version passed before it existed."""

    name: str
    detail: str


@dataclass(frozen=True, slots=True)
class Signature:
    """Somebody's signature of a version, as the registry stored it: not yet verified."""

    key_id: str
    envelope_json: str
    actor: str
    create_time: datetime | None


@dataclass(frozen=True, slots=True)
class Version:
    """An immutable, verified version of an adapter or a base.

    quantization and fingerprint are a base's, base_fingerprint, rank and so on an adapter's.
    """

    name: str
    number: int
    digest: str
    base: str
    base_fingerprint: str
    peft_type: str
    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    files: tuple[VersionFile, ...]
    lineage: Lineage
    checks: tuple[Check, ...]
    parameters: int
    create_time: datetime | None
    signatures: tuple[Signature, ...] = ()
    method: str = ""
    quantization: str = ""
    fingerprint: str = ""
    description: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    etag: str = ""
    deleted: bool = False

    @property
    def size_bytes(self) -> int:
        """Bytes of all its files."""
        return sum(file.size_bytes for file in self.files)

    @property
    def kind(self) -> str:
        """What an adapter is, in lower case: "lora", "dora", "ia3", "prompt_tuning", "bottleneck"."""
        return self.method or self.peft_type.lower()

    @property
    def kind_in_words(self) -> str:
        """An adapter's kind, with rank and alpha where it has them."""
        named = self.peft_type
        if self.method and self.method != named.lower():
            named = f"{named} ({self.method})"
        return f"{named}, rank {self.rank}, alpha {self.alpha:g}" if self.rank else named


@dataclass(frozen=True, slots=True)
class Alias:
    """A mutable pointer to a version, as it was after a move.

    canaries are the parts of the requests, in percent, that other versions get; gate_report is what a
    gate found at the move; rollout says what happens to canaries, rollout_report why some were taken out.
    """

    name: str
    version: str
    version_digest: str
    previous_version: str | None
    etag: str
    actor: str
    reason: str
    update_time: datetime | None
    revision: int
    canaries: Mapping[str, float] = field(default_factory=dict)
    gate_report: Sequence[Check] = ()
    deleted: bool = False
    rollout: Rollout | None = None
    rollout_report: RolloutReport | None = None


class ChangeAction(StrEnum):
    """What happened to a resource."""

    CREATED = "created"
    UPDATED = "updated"
    DELETED = "deleted"
    UNDELETED = "undeleted"
    PURGED = "purged"


@dataclass(frozen=True, slots=True)
class Change:
    """A change in the registry; exactly one of adapter, base, version, alias and policy is set.

    policy is the name of the alias whose policy was set.
    """

    revision: int
    time: datetime | None
    adapter: Adapter | None = None
    base: Base | None = None
    version: Version | None = None
    alias: Alias | None = None
    policy: str | None = None
    action: ChangeAction = ChangeAction.CREATED


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token with the natural logarithm of its probability."""

    token_id: int
    logprob: float
    text: str


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The drawn token and the likeliest ones at its position."""

    token: TokenLogprob
    top: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class BlendPart:
    """A version that is blended with others, and what its update is multiplied by."""

    version: str
    version_digest: str
    weight: float


@dataclass(frozen=True, slots=True)
class Provenance:
    """What made an answer; version and its digest are None for the base alone.

    Attributes:
        engine: who computed it.
        blend: of a blend, what it is, as a model's name with its parts' versions; empty for others. version
            and version_digest are then those of the version that was derived of the parts.
        parts: of a blend, its parts.
        rollout_part: "stable" or "canary" where an alias with canaries decided; None else.
    """

    version: str | None
    version_digest: str | None
    base: str
    base_fingerprint: str
    engine: str = ""
    blend: str = ""
    parts: tuple[BlendPart, ...] = ()
    rollout_part: str | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of a request."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool; in a stream a piece of one: id and name come with the first, arguments join up.

    Attributes:
        index: which call of the answer.
        arguments: JSON text, as the model wrote it.
    """

    index: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, or in a stream what is new of it.

    In a stream provenance is set on the first and last, finish_reason, usage and attestation on the last.

    Attributes:
        index: which of n answers.
        tool_calls: in a stream pieces of them.
        others: the answers with index 1 and up, of a call that answers once.
        prompt_logprobs: where asked for: the prompt's tokens from the second on.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    finish_reason: FinishReason | None
    provenance: Provenance | None
    usage: Usage | None
    attestation: Attestation | None = None
    index: int = 0
    tool_calls: tuple[ToolCall, ...] = ()
    others: tuple[Answer, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Vectors of length 1, one for each text, with the tokens that each text had."""

    vectors: tuple[tuple[float, ...], ...]
    prompt_tokens: tuple[int, ...]
    provenance: Provenance


@dataclass(frozen=True, slots=True)
class TokenCount:
    """What a prompt takes of the context that it shares with its answer."""

    tokens: int
    max_context_tokens: int
    provenance: Provenance


@dataclass(frozen=True, slots=True)
class Model:
    """A name that a request may use; version is None for the base, base_version where that is a folder.

    engine is who computes it; blend as in Provenance.
    """

    reference: str
    version: str | None
    version_digest: str | None
    resident: bool
    engine: str = ""
    blend: str = ""
    base: str = ""
    base_version: str | None = None


@dataclass(frozen=True, slots=True)
class ResidentAdapter:
    """An adapter version on an engine. blend as in Provenance."""

    version: str
    version_digest: str
    state: ResidencyState
    in_flight: int
    size_bytes: int
    message: str
    engine: str = ""
    blend: str = ""


@dataclass(frozen=True, slots=True)
class Residency:
    """What an engine holds, and the registry revision that it last acted upon.

    base_version is None where the base is a folder; base_switch says what the base is being changed to.
    slot_room counts pages of page_rank ranks where small adapters share the engine's slots, else slots.
    """

    base: str
    base_fingerprint: str
    adapters: tuple[ResidentAdapter, ...]
    revision: int
    base_version: str | None = None
    base_quantization: str = ""
    base_switch: str = ""
    slot_room: int = 0
    slot_room_taken: int = 0
    page_rank: int = 0


def short_id(name: str) -> str:
    """Last part of a resource name: "bot" of "namespaces/default/adapters/bot"."""
    return name.rpartition("/")[2]
