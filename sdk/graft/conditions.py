"""Conditions of gates as people write them: "eval_loss < @production", "approvals >= 2", "label team=a"."""

from __future__ import annotations

import re

from graft.errors import GraftError, Reason
from graft.registry.v1 import registry_service_pb2 as pb

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_METRIC = re.compile(
    rf"(?P<metric>[^\s<>=@]+)\s*(?P<comparison><=|>=|<|>)\s*"
    rf"(?:@(?P<alias>[a-z0-9._-]+)(?:\s*(?P<margin>[+-]\s*{_NUMBER.removeprefix('[+-]?')}))?"
    rf"|(?P<value>{_NUMBER}))"
)
_APPROVALS = re.compile(r"approvals?\s*>=\s*(?P<count>\d{1,4})(?:\s+by\s+(?P<actors>.+))?")
_LABEL = re.compile(r"label\s+(?P<key>[^\s=]+)(?:\s*=\s*(?P<value>.+))?")
_COMPARISONS = {
    "<": pb.COMPARISON_LESS,
    "<=": pb.COMPARISON_AT_MOST,
    ">=": pb.COMPARISON_AT_LEAST,
    ">": pb.COMPARISON_MORE,
}
_SIGNS = {number: sign for sign, number in _COMPARISONS.items()}


def parse_condition(text: str) -> pb.Condition:
    """A condition from its text.

    "METRIC < NUMBER" or "METRIC < @ALIAS", with <, <=, >= or > and, after an alias, a margin such as
    "- 0.01"; "approvals >= N", with "by ann, bob" where only theirs count; "label KEY" or
    "label KEY=VALUE".

    Raises:
        GraftError: INVALID_REQUEST.
    """
    text = text.strip()
    if found := _APPROVALS.fullmatch(text):
        actors = [one.strip() for one in (found["actors"] or "").split(",") if one.strip()]
        return pb.Condition(approval=pb.ApprovalCondition(count=int(found["count"]), actors=actors))
    if found := _LABEL.fullmatch(text):
        value = (found["value"] or "").strip()
        return pb.Condition(label=pb.LabelCondition(key=found["key"], value=value))
    found = _METRIC.fullmatch(text)
    if found and not found["metric"].startswith("approval"):
        metric = pb.MetricCondition(
            metric=found["metric"], comparison=_COMPARISONS[found["comparison"]]
        )
        if found["alias"]:
            metric.alias = found["alias"]
            metric.margin = float((found["margin"] or "0").replace(" ", ""))
        else:
            metric.value = float(found["value"])
        return pb.Condition(metric=metric)
    raise GraftError(
        Reason.INVALID_REQUEST,
        f"{text!r} is not a condition",
        next_step='Write it like "eval_loss < @production", "accuracy >= 0.9", "approvals >= 2" '
        'or "label reviewed=yes".',
    )


def describe_condition(condition: pb.Condition) -> str:
    """The text of a condition, which parse_condition() takes."""
    match condition.WhichOneof("condition"):
        case "metric":
            metric = condition.metric
            bound = f"{metric.value:g}"
            if metric.WhichOneof("bound") == "alias":
                margin = f" {'-' if metric.margin < 0 else '+'} {abs(metric.margin):g}"
                bound = f"@{metric.alias}" + (margin if metric.margin else "")
            return f"{metric.metric} {_SIGNS.get(metric.comparison, '?')} {bound}"
        case "approval":
            by = f" by {', '.join(condition.approval.actors)}" if condition.approval.actors else ""
            return f"approvals >= {condition.approval.count}{by}"
        case "label":
            label = condition.label
            return f"label {label.key}" + (f"={label.value}" if label.value else "")
        case _:
            return ""
