"""Preflight: what a job's data looks like to the model, asked of the trainer before anything is trained."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from graft.connection import Connection
from graft.errors import GraftError, Reason
from graft.jobs import Jobs
from graft.names import namespace_name
from graft.specs import SpecSource, TrainOptions, build_spec
from graft.trainer.v1 import preflight_pb2 as pb

_PEER = "the trainer"
# A large data set is read as a whole; the trainer has a limit of its own.
_TIMEOUT_S = 3600.0
# Nothing is made, so nobody needs to name it.
_NOBODY = "preflight"
OnProgress = Callable[[str, int], None]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about the data or the spec. severity: "error", "warning" or "note"."""

    severity: str
    code: str
    message: str
    next_step: str
    rows: int
    places: Sequence[str]


@dataclass(frozen=True, slots=True)
class Bin:
    """How many rows have from_tokens up to, and not including, to_tokens."""

    from_tokens: int
    to_tokens: int
    rows: int


@dataclass(frozen=True, slots=True)
class Lengths:
    """Statistics of lengths in tokens."""

    min: int
    median: int
    mean: float
    p95: int
    p99: int
    max: int
    total: int
    histogram: Sequence[Bin]


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a row's text: whether it is learned, and whether max_length_tokens cuts it off."""

    text: str
    learned: bool
    cut: bool


@dataclass(frozen=True, slots=True)
class Example:
    """A row as the model sees it. answer: "chosen", "rejected", "good", "bad" or ""."""

    place: str
    segments: Sequence[Segment]
    tokens: int
    learned_tokens: int
    answer: str


@dataclass(frozen=True, slots=True)
class PreflightReport:
    """What a job's data looks like. score: 100 when nothing is to mend, 0 when the job would fail."""

    score: int
    passed: bool
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
    lengths: Lengths | None
    learned_lengths: Lengths | None
    examples: Sequence[Example]
    cleaned_rows: Mapping[str, int]


async def preflight(
    connection: Connection,
    namespace: str,
    spec: SpecSource | None,
    options: TrainOptions,
    *,
    examples: int,
    upload: bool,
    on_progress: OnProgress | None,
) -> PreflightReport:
    """Asks the trainer; see Client.preflight."""
    message = build_spec(spec, {"adapter": _NOBODY, **options} if spec is None else options)
    if upload:
        await Jobs(connection, namespace).upload_data(message.dataset)
    request = pb.ValidateJobRequest(
        parent=namespace_name(namespace), spec=message, examples=examples
    )
    stream: AsyncGenerator[pb.ValidateJobResponse, None] = connection.stream(
        connection.trainer.ValidateJob, request, _PEER, timeout_s=_TIMEOUT_S
    )
    async with aclosing(stream) as updates:
        async for update in updates:
            if update.HasField("report"):
                return _report(update.report)
            if on_progress is not None:
                on_progress(update.progress.stage, update.progress.rows)
    raise GraftError(
        Reason.INTERNAL,
        "The trainer ended the preflight without a report",
        next_step="Try it again; if it stays so, look into the trainer's log.",
    )


def _report(message: pb.PreflightReport) -> PreflightReport:
    return PreflightReport(
        score=message.score,
        passed=message.passed,
        findings=[_finding(one) for one in message.findings],
        format=message.format,
        rows=message.rows,
        kept_rows=message.kept_rows,
        eval_rows=message.eval_rows,
        tokens=message.tokens,
        learned_tokens=message.learned_tokens,
        max_length_tokens=message.max_length_tokens,
        total_steps=message.total_steps,
        padding_fraction=message.padding_fraction,
        lengths=_lengths(message.lengths) if message.HasField("lengths") else None,
        learned_lengths=_lengths(message.learned_lengths)
        if message.HasField("learned_lengths")
        else None,
        examples=[_example(one) for one in message.examples],
        cleaned_rows=dict(message.cleaned_rows),
    )


def _finding(message: pb.Finding) -> Finding:
    severity = pb.Severity.Name(message.severity).removeprefix("SEVERITY_").lower()
    return Finding(
        severity,
        message.code,
        message.message,
        message.next_step,
        message.rows,
        list(message.places),
    )


def _lengths(message: pb.LengthStatistics) -> Lengths:
    return Lengths(
        min=message.min,
        median=message.median,
        mean=message.mean,
        p95=message.p95,
        p99=message.p99,
        max=message.max,
        total=message.total,
        histogram=[Bin(one.from_tokens, one.to_tokens, one.rows) for one in message.histogram],
    )


def _example(message: pb.PreflightExample) -> Example:
    return Example(
        place=message.place,
        segments=[Segment(one.text, one.learned, one.cut) for one in message.segments],
        tokens=message.tokens,
        learned_tokens=message.learned_tokens,
        answer=message.answer,
    )
