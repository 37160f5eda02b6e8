"""Decides the conditions of a gate for versions, and says in words and numbers what was found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.registry.domain import (
    Approval,
    ApprovalCondition,
    Comparison,
    Condition,
    ConditionResult,
    GateReport,
    LabelCondition,
    MetricCondition,
    Version,
)


@dataclass(frozen=True, slots=True)
class GateContext:
    """What conditions are decided by, besides the version.

    Attributes:
        named: by alias id, the version that the alias names before the move; None for no alias.
        approvals: by version number, those for the alias that moves.
        mover: who moves the alias; an approval of one's own does not count.
    """

    named: Mapping[str, Version | None]
    approvals: Mapping[int, Sequence[Approval]]
    mover: str


def evaluate(
    conditions: Sequence[Condition], versions: Sequence[Version], context: GateContext
) -> GateReport:
    """Every condition for every version, in order."""
    results = tuple(
        _evaluate(condition, version, context) for version in versions for condition in conditions
    )
    return GateReport(all(result.passed for result in results), results)


def describe(condition: Condition) -> str:
    """A condition in words, as people write it."""
    match condition:
        case MetricCondition():
            bound = f"@{condition.alias}" if condition.value is None else f"{condition.value:g}"
            margin = f" {condition.margin:+g}" if condition.margin else ""
            return f"{condition.metric} {condition.comparison.value} {bound}{margin}"
        case ApprovalCondition():
            by = f" by {', '.join(condition.actors)}" if condition.actors else ""
            return f"approvals >= {condition.count}{by}"
        case LabelCondition():
            return f"label {condition.key}" + (f"={condition.value}" if condition.value else "")


def _evaluate(condition: Condition, version: Version, context: GateContext) -> ConditionResult:
    match condition:
        case MetricCondition():
            return _metric(condition, version, context)
        case ApprovalCondition():
            return _approval(condition, version, context)
        case LabelCondition():
            return _label(condition, version)


def _metric(condition: MetricCondition, version: Version, context: GateContext) -> ConditionResult:
    actual = version.manifest.lineage.metrics.get(condition.metric)
    if actual is None:
        there = ", ".join(sorted(version.manifest.lineage.metrics)) or "none"
        detail = f"version {version.number} has no metric {condition.metric} (it has: {there})"
        return ConditionResult(version.number, describe(condition), False, detail)
    bound, whose = condition.value, ""
    if bound is None:
        other = context.named.get(condition.alias)
        if other is None:
            detail = f"{condition.metric} is {actual:g}; {condition.alias} names nothing yet"
            passed = not math.isnan(actual)
            return ConditionResult(version.number, describe(condition), passed, detail, actual)
        bound = other.manifest.lineage.metrics.get(condition.metric)
        whose = f" of {condition.alias}, version {other.number}"
        if bound is None:
            detail = f"{condition.metric} is {actual:g}; version {other.number}, which {condition.alias} names, has none"
            return ConditionResult(version.number, describe(condition), False, detail, actual)
    bound += condition.margin
    passed = _holds(actual, condition.comparison, bound)
    word = "which holds" if passed else "which does not hold"
    margin = f" with the margin {condition.margin:+g}" if condition.margin else ""
    detail = (
        f"{condition.metric} is {actual:g}, and must be {condition.comparison.value} "
        f"{bound:g}{whose}{margin}, {word}"
    )
    return ConditionResult(version.number, describe(condition), passed, detail, actual, bound)


def _holds(actual: float, comparison: Comparison, bound: float) -> bool:
    # A NaN compares as false, whichever way it is asked.
    match comparison:
        case Comparison.LESS:
            return actual < bound
        case Comparison.AT_MOST:
            return actual <= bound
        case Comparison.AT_LEAST:
            return actual >= bound
        case Comparison.MORE:
            return actual > bound


def _approval(
    condition: ApprovalCondition, version: Version, context: GateContext
) -> ConditionResult:
    found = sorted(
        {
            one.actor
            for one in context.approvals.get(version.number, ())
            if one.actor != context.mover
            and (not condition.actors or one.actor in condition.actors)
        }
    )
    passed = len(found) >= condition.count
    by = f" ({', '.join(found)})" if found else ""
    detail = (
        f"version {version.number} has {len(found)} approvals{by} that count, "
        f"and {condition.count} are needed"
    )
    return ConditionResult(
        version.number, describe(condition), passed, detail, len(found), condition.count
    )


def _label(condition: LabelCondition, version: Version) -> ConditionResult:
    value = version.labels.get(condition.key)
    passed = value is not None and condition.value in ("", value)
    found = "has no label" if value is None else f"has the label {condition.key}={value}, not"
    detail = (
        f"version {version.number} has the label {condition.key}={value}"
        if passed
        else f"version {version.number} {found} {condition.key}"
        + (f"={condition.value}" if condition.value else "")
    )
    return ConditionResult(version.number, describe(condition), passed, detail)
