"""What a preflight found, as values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from services.trainer.formats import Place
from services.trainer.preflight.lengths import Statistics

_PLACES = 10


class Severity(IntEnum):
    """How grave a finding is."""

    NOTE = 1
    WARNING = 2
    ERROR = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about the data or the spec. weight: what it takes off the score, of 100."""

    severity: Severity
    code: str
    message: str
    next_step: str
    rows: int = 0
    places: tuple[str, ...] = ()
    weight: float = 0.0


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a row's text."""

    text: str
    learned: bool
    cut: bool


@dataclass(frozen=True, slots=True)
class Shown:
    """A row as the model sees it."""

    place: str
    segments: tuple[Segment, ...]
    tokens: int
    learned_tokens: int
    answer: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What a job's data looks like."""

    findings: Sequence[Finding]
    format: str
    rows: int
    kept_rows: int
    eval_rows: int
    tokens: int
    learned_tokens: int
    max_length_tokens: int
    total_steps: int
    padding_fraction: float
    lengths: Statistics | None
    learned_lengths: Statistics | None
    examples: Sequence[Shown]
    cleaned_rows: Mapping[str, int]

    @property
    def passed(self) -> bool:
        """Whether the job would be accepted."""
        return all(finding.severity < Severity.ERROR for finding in self.findings)

    @property
    def score(self) -> int:
        """100 for nothing to mend, 0 for a job that would fail."""
        if not self.passed:
            return 0
        return max(1, round(100 - sum(finding.weight for finding in self.findings)))


@dataclass(slots=True)
class Rows:
    """The rows that something is true of: how many, and the first of them."""

    count: int = 0
    places: list[str] = field(default_factory=list)

    def add(self, place: Place, why: str = "") -> None:
        """Takes one more."""
        self.count += 1
        if len(self.places) < _PLACES:
            self.places.append(f"{place}: {why}" if why else str(place))
