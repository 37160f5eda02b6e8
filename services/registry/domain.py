"""What the registry keeps: adapters, bases, versions, aliases and the events of their changes.

Plain values without protobuf, SQL or I/O. Names are full resource names (graft.names makes them).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Adapter:
    """A line of versions trained for one base; latest_version is 0 before the first."""

    name: str
    base: str
    description: str
    labels: Mapping[str, str]
    latest_version: int
    create_time: datetime


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
    """A model that adapters are trained on and served with."""

    name: str
    source: str
    fingerprint: Fingerprint
    config_json: str
    modules: Sequence[Module]
    create_time: datetime


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
    # A diverged run's loss is NaN, which plain JSON would store as null.
    __pydantic_config__: ClassVar[Mapping[str, str]] = {"ser_json_inf_nan": "strings"}


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a version consists of; the digest of its canonical JSON names the version."""

    base: str
    base_fingerprint: str
    peft_type: str
    rank: int
    alpha: float
    target_modules: Sequence[str]
    files: Sequence[File]
    lineage: Lineage


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
class Version:
    """An immutable, verified version of an adapter; adapter is its full name."""

    adapter: str
    number: int
    digest: str
    manifest: Manifest
    report: Report
    create_time: datetime


@dataclass(frozen=True, slots=True)
class Alias:
    """A mutable pointer to a version, as it was after the move of that revision.

    version and previous_version are numbers of the alias' adapter; previous_version is 0 for none.
    """

    name: str
    adapter: str
    version: int
    version_digest: str
    previous_version: int
    etag: str
    actor: str
    reason: str
    update_time: datetime
    revision: int


Resource = Adapter | Base | Version | Alias


@dataclass(frozen=True, slots=True)
class Event:
    """One change. Revisions are global, without gaps, in the order of the commits."""

    revision: int
    namespace: str
    time: datetime
    resource: Resource


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a listing and the key after which the next one begins; None at the end."""

    items: Sequence[T]
    next_key: str | None
