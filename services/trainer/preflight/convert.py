"""The only place where a preflight's values become the contract's messages."""

from __future__ import annotations

from typing import Any

from google.protobuf.json_format import MessageToDict
from graft.trainer.v1 import preflight_pb2 as pb

from services.trainer.preflight.lengths import Statistics
from services.trainer.preflight.report import Finding, Report, Shown


def report_message(report: Report) -> dict[str, Any]:
    """The report as protobuf's JSON values."""
    message = pb.PreflightReport(
        score=report.score,
        passed=report.passed,
        findings=[_finding(one) for one in report.findings],
        format=report.format,
        rows=report.rows,
        kept_rows=report.kept_rows,
        eval_rows=report.eval_rows,
        tokens=report.tokens,
        learned_tokens=report.learned_tokens,
        lengths=_statistics(report.lengths),
        learned_lengths=_statistics(report.learned_lengths),
        examples=[_example(one) for one in report.examples],
        cleaned_rows=report.cleaned_rows,
        max_length_tokens=report.max_length_tokens,
        total_steps=report.total_steps,
        padding_fraction=report.padding_fraction,
    )
    found: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    return found


def _finding(finding: Finding) -> pb.Finding:
    return pb.Finding(
        severity=pb.Severity.ValueType(finding.severity),
        code=finding.code,
        message=finding.message,
        next_step=finding.next_step,
        rows=finding.rows,
        places=finding.places,
    )


def _statistics(statistics: Statistics | None) -> pb.LengthStatistics | None:
    if statistics is None:
        return None
    bins = [
        pb.HistogramBin(from_tokens=one.from_tokens, to_tokens=one.to_tokens, rows=one.rows)
        for one in statistics.histogram
    ]
    fields = ("min", "median", "mean", "p95", "p99", "max", "total")
    return pb.LengthStatistics(
        histogram=bins, **{field: getattr(statistics, field) for field in fields}
    )


def _example(shown: Shown) -> pb.PreflightExample:
    return pb.PreflightExample(
        place=shown.place,
        segments=[
            pb.Segment(text=one.text, learned=one.learned, cut=one.cut) for one in shown.segments
        ],
        tokens=shown.tokens,
        learned_tokens=shown.learned_tokens,
        answer=shown.answer,
    )
