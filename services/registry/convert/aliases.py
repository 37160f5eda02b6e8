"""Requests about aliases, their policies and approvals, as domain values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from graft.names import check_id
from graft.registry.v1 import registry_service_pb2 as pb
from graft.rollout_policy import Rollout

from services.registry import domain
from services.registry.catalogue.base import AliasMove
from services.registry.catalogue.policies import NewPolicy
from services.registry.convert.checks import check_alias, check_text, version_number
from services.registry.convert.rollouts import report_in, rollout_for
from services.registry.errors import invalid

_MOST_CANARIES = 3
_MOST_CONDITIONS = 32
_MOST_NAMES = 100
_COMPARISONS: Mapping[int, domain.Comparison] = {
    pb.COMPARISON_LESS: domain.Comparison.LESS,
    pb.COMPARISON_AT_MOST: domain.Comparison.AT_MOST,
    pb.COMPARISON_AT_LEAST: domain.Comparison.AT_LEAST,
    pb.COMPARISON_MORE: domain.Comparison.MORE,
}


def alias_move(request: pb.SetAliasRequest, actor: str) -> AliasMove:
    """Raises INVALID_NAME, INVALID_REQUEST."""
    check_alias(request.name)
    check_text("reason", request.reason)
    expected: int | None = None
    if request.HasField("expected_version"):
        expected = _number_for(request.name, request.expected_version)
    if not request.version:
        raise invalid(f"No version is given for {request.name}", "Write .../versions/7.")
    canaries = _canaries(request)
    rollout: Rollout | None = None
    if request.HasField("rollout"):
        split = ((_number_for(request.name, request.version), 0.0), *canaries)
        rollout = rollout_for(request.name, request.rollout, split)
    return AliasMove(
        name=request.name,
        version=_number_for(request.name, request.version),
        expected_version=expected,
        etag=request.etag or None,
        actor=actor,
        reason=request.reason,
        canaries=canaries,
        rollout=rollout,
        gate=conditions(request.gate),
        validate_only=request.validate_only,
    )


def alias_rollback(request: pb.RollbackAliasRequest, actor: str) -> AliasMove:
    """Raises INVALID_NAME, INVALID_REQUEST."""
    check_alias(request.name)
    check_text("reason", request.reason)
    out = tuple(_number_for(request.name, one) for one in request.canaries)
    if not all(out) or len(out) > _MOST_CANARIES:
        raise invalid(
            f"The canaries to take out of {request.name} are {len(out)}, or one is empty",
            f"Name at most {_MOST_CANARIES} as .../versions/7.",
        )
    return AliasMove(
        request.name,
        None,
        None,
        request.etag or None,
        actor,
        request.reason,
        take_out=out,
        report=report_in(request),
    )


def alias_advance(request: pb.AdvanceRolloutRequest, actor: str) -> AliasMove:
    """Raises INVALID_NAME, INVALID_REQUEST."""
    check_alias(request.name)
    check_text("reason", request.reason)
    if not request.etag:
        raise invalid(
            f"No etag is given for the next step of {request.name}",
            "Read it with GetAlias: a step is taken from the state in which it was judged.",
        )
    return AliasMove(request.name, None, None, request.etag, actor, request.reason, advance=True)


def new_policy(request: pb.SetAliasPolicyRequest) -> NewPolicy:
    """Raises INVALID_NAME, INVALID_REQUEST."""
    policy = request.policy
    check_alias(policy.name)
    if len(policy.movers) > _MOST_NAMES or not all(policy.movers):
        raise invalid(
            f"The movers of {policy.name} are empty or too many",
            f"Name at most {_MOST_NAMES} actors.",
        )
    return NewPolicy(
        name=policy.name,
        protected=policy.protected,
        movers=tuple(check_text("a mover", one) for one in policy.movers),
        conditions=conditions(policy.conditions),
        etag=policy.etag or None,
        reason=check_text("reason", request.reason),
    )


def conditions(messages: Iterable[pb.Condition]) -> tuple[domain.Condition, ...]:
    """A gate's conditions. Raises INVALID_REQUEST naming the one that cannot be decided."""
    found = tuple(_condition(index, one) for index, one in enumerate(messages, start=1))
    if len(found) > _MOST_CONDITIONS:
        raise invalid(
            f"A gate has {len(found)} conditions", f"Use at most {_MOST_CONDITIONS} of them."
        )
    return found


def approval_alias(alias: str) -> str:
    """The alias id of an approval; empty for every alias. Raises INVALID_NAME."""
    return check_id("alias", alias) if alias else ""


def _condition(index: int, message: pb.Condition) -> domain.Condition:
    match message.WhichOneof("condition"):
        case "metric":
            return _metric(index, message.metric)
        case "approval":
            if message.approval.count < 0:
                raise invalid(
                    f"Condition {index} asks for {message.approval.count} approvals",
                    "Ask for 1 or more.",
                )
            actors = tuple(check_text("an actor", one) for one in message.approval.actors)
            return domain.ApprovalCondition(message.approval.count or 1, actors)
        case "label":
            if not message.label.key:
                raise invalid(f"Condition {index} names no label", "Set label.key.")
            key = check_text("a label", message.label.key)
            return domain.LabelCondition(key, check_text("a label", message.label.value))
        case _:
            raise invalid(f"Condition {index} is empty", "Set metric, approval or label.")


def _metric(index: int, message: pb.MetricCondition) -> domain.MetricCondition:
    comparison = _COMPARISONS.get(message.comparison)
    if not message.metric or comparison is None:
        raise invalid(
            f"Condition {index} names no metric or no comparison", "Write it like eval_loss < 0.5."
        )
    if not math.isfinite(message.margin):
        raise invalid(f"The margin of condition {index} is no number", "Use a finite number.")
    metric = check_text("a metric", message.metric)
    match message.WhichOneof("bound"):
        case "value":
            if math.isnan(message.value):
                raise invalid(f"The bound of condition {index} is no number", "Use a number.")
            return domain.MetricCondition(metric, comparison, message.value, "", message.margin)
        case "alias":
            alias = check_id("alias", message.alias)
            return domain.MetricCondition(metric, comparison, None, alias, message.margin)
        case _:
            raise invalid(
                f"Condition {index} has nothing to compare {metric} with", "Set value or alias."
            )


def _canaries(request: pb.SetAliasRequest) -> tuple[tuple[int, float], ...]:
    found = tuple(
        (_number_for(request.name, one.version), one.weight_percent) for one in request.canaries
    )
    numbers = [_number_for(request.name, request.version), *(number for number, _ in found)]
    if len(found) > _MOST_CANARIES or len(set(numbers)) < len(numbers) or not all(numbers):
        raise invalid(
            f"The canaries of {request.name} are {len(found)} versions, or one is named twice",
            f"Name at most {_MOST_CANARIES} versions, each once and other than version.",
        )
    weights = [weight for _, weight in found]
    if not all(0 < weight < 100 for weight in weights) or sum(weights) >= 100:
        said = ", ".join(f"{weight:g} %" for weight in weights)
        raise invalid(
            f"The weights of the canaries of {request.name} are {said}",
            "Each is more than 0, and together they are less than 100: version gets the rest.",
        )
    return found


def _number_for(alias: str, version: str) -> int:
    if not version:
        return 0
    parent, number = version_number(version)
    if parent != alias.rsplit("/", 2)[0]:
        raise invalid(
            f"{alias} cannot name {version}: it is of another adapter or base",
            "An alias names versions of its own adapter or base.",
        )
    return number
