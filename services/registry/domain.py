"""What the registry keeps: adapters, bases, versions, aliases, policies and the events of their changes.

Plain values without protobuf, SQL or I/O. Names are full resource names (graft.names makes them).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import ClassVar, Generic, TypeVar

from graft.rollout_policy import Rollout, RolloutReport

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Life:
    """Where a resource is in its life; times are None for what did not happen.

    etag changes with every update of what is said of it; actor created it; until expire_time it can
    be undeleted.
    """

    etag: str = ""
    actor: str = ""
    delete_time: datetime | None = None
    expire_time: datetime | None = None
    purge_time: datetime | None = None

    @property
    def deleted(self) -> bool:
        """Whether it is hidden: deleted or purged."""
        return self.delete_time is not None or self.purge_time is not None


@dataclass(frozen=True, slots=True)
class Adapter:
    """A line of versions trained for one base; latest_version is 0 before the first."""

    name: str
    base: str
    description: str
    labels: Mapping[str, str]
    latest_version: int
    create_time: datetime
    life: Life = Life()


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Digests of what a base consists of; only digest is compared."""

    digest: str
    config_digest: str
    tokenizer_digest: str
    weights_digest: str


@dataclass(frozen=True, slots=True)
class Module:
    """A weight matrix of a base, (out_features, in_features), by its module path."""

    path: str
    in_features: int
    out_features: int


@dataclass(frozen=True, slots=True)
class Base:
    """A model that adapters are trained on and served with.

    fingerprint, config_json and modules are those of its source; its versions have their own.
    """

    name: str
    source: str
    fingerprint: Fingerprint
    config_json: str
    modules: Sequence[Module]
    create_time: datetime
    description: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    latest_version: int = 0
    life: Life = Life()


@dataclass(frozen=True, slots=True)
class BaseContent:
    """What adapters are checked against: a base as recorded, or a version of it."""

    name: str
    fingerprint: Fingerprint
    config_json: str
    modules: Sequence[Module]


@dataclass(frozen=True, slots=True)
class File:
    """A file of a version, by the digest of its bytes."""

    path: str
    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a version came from; every field may be empty, for a push by hand."""

    job: str = ""
    attempt: int = 0
    spec_json: str = ""
    data_digest: str = ""
    data_rows: int = 0
    seed: int = 0
    library_versions: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    parent_versions: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    # A diverged run's loss is NaN, which plain JSON would store as null.
    __pydantic_config__: ClassVar[Mapping[str, str]] = {"ser_json_inf_nan": "strings"}


class Kind(StrEnum):
    """What a version is a version of; UNSPECIFIED for adapters from before kinds were kept."""

    UNSPECIFIED = ""
    ADAPTER = "adapter"
    BASE = "base"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a version consists of; the digest of its canonical JSON names the version.

    base, base_fingerprint, peft_type, rank, alpha and target_modules are an adapter's, quantization
    and fingerprint a base's.
    """

    base: str
    base_fingerprint: str
    peft_type: str
    rank: int
    alpha: float
    target_modules: Sequence[str]
    files: Sequence[File]
    lineage: Lineage
    kind: Kind = Kind.UNSPECIFIED
    method: str = ""
    quantization: str = ""
    fingerprint: Fingerprint | None = None

    @property
    def size_bytes(self) -> int:
        """Sum of the sizes of its files."""
        return sum(file.size_bytes for file in self.files)


@dataclass(frozen=True, slots=True)
class Check:
    """A check of admission and what it found, in words."""

    name: str
    detail: str


@dataclass(frozen=True, slots=True)
class Report:
    """The checks that a version passed before it existed."""

    checks: Sequence[Check]
    tensors: int
    parameters: int


@dataclass(frozen=True, slots=True)
class Signature:
    """Somebody's signature of a version's digest, as a DSSE envelope."""

    key_id: str
    envelope_json: str
    actor: str
    create_time: datetime


@dataclass(frozen=True, slots=True)
class Version:
    """An immutable, verified version; parent is the full name of its adapter or base."""

    parent: str
    number: int
    digest: str
    manifest: Manifest
    report: Report
    create_time: datetime
    description: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    life: Life = Life()
    signatures: tuple[Signature, ...] = ()


@dataclass(frozen=True, slots=True)
class Approval:
    """Somebody's agreement with a version's promotion; alias is "" for every alias."""

    parent: str
    number: int
    alias: str
    actor: str
    reason: str
    create_time: datetime


class Comparison(StrEnum):
    """How two numbers must compare."""

    LESS = "<"
    AT_MOST = "<="
    AT_LEAST = ">="
    MORE = ">"


@dataclass(frozen=True, slots=True)
class MetricCondition:
    """A metric of the version compared with value, or with what alias names; margin is added to that."""

    metric: str
    comparison: Comparison
    value: float | None
    alias: str = ""
    margin: float = 0.0


@dataclass(frozen=True, slots=True)
class ApprovalCondition:
    """At least count approvals by others than the mover, of the actors where some are named."""

    count: int
    actors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LabelCondition:
    """The version has the label; value "" for any."""

    key: str
    value: str = ""


Condition = MetricCondition | ApprovalCondition | LabelCondition


@dataclass(frozen=True, slots=True)
class ConditionResult:
    """What one condition of a gate found for one version; the numbers are None where there is none."""

    version: int
    condition: str
    passed: bool
    detail: str
    actual: float | None = None
    bound: float | None = None
    # A metric may be NaN, which plain JSON would store as null.
    __pydantic_config__: ClassVar[Mapping[str, str]] = {"ser_json_inf_nan": "strings"}


@dataclass(frozen=True, slots=True)
class GateReport:
    """What a gate found at a move."""

    passed: bool
    results: tuple[ConditionResult, ...]


@dataclass(frozen=True, slots=True)
class AliasPolicy:
    """What must hold before an alias moves; name is the alias'."""

    name: str
    parent: str
    protected: bool
    movers: tuple[str, ...]
    conditions: tuple[Condition, ...]
    etag: str
    actor: str
    update_time: datetime


@dataclass(frozen=True, slots=True)
class Canary:
    """A version that gets a part of an alias' requests, in percent."""

    version: int
    version_digest: str
    weight_percent: float


@dataclass(frozen=True, slots=True)
class Alias:
    """A mutable pointer to a version, as it was after the move of that revision.

    version and previous_version are numbers of the alias' parent (an adapter or a base);
    previous_version is 0 for none. canaries get their parts of the requests, version the rest; rollout
    says what happens to them, rollout_report why some were taken out at this move. In a history deleted
    says that the entry is the alias' removal; version is what it named last.
    """

    name: str
    parent: str
    version: int
    version_digest: str
    previous_version: int
    etag: str
    actor: str
    reason: str
    update_time: datetime
    revision: int
    canaries: tuple[Canary, ...] = ()
    gate_report: GateReport | None = None
    deleted: bool = False
    rollout: Rollout | None = None
    rollout_report: RolloutReport | None = None


Resource = Adapter | Base | Version | Alias | AliasPolicy


class Action(StrEnum):
    """What happened to a resource."""

    CREATED = "created"
    UPDATED = "updated"
    DELETED = "deleted"
    UNDELETED = "undeleted"
    PURGED = "purged"


@dataclass(frozen=True, slots=True)
class Event:
    """One change. Revisions are global, without gaps, in the order of the commits.

    parent is the adapter or base that the resource is or belongs to.
    """

    revision: int
    namespace: str
    parent: str
    action: Action
    time: datetime
    resource: Resource


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a listing and the key after which the next one begins; None at the end."""

    items: Sequence[T]
    next_key: str | None
