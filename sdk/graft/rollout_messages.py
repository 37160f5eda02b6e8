"""Rollouts as protobuf and back. What they may say is checked by the registry."""

from __future__ import annotations

from graft.names import version_name
from graft.registry.v1 import rollout_pb2 as pb
from graft.rollout_policy import (
    DEFAULT_MIN_REQUESTS,
    LIMITS,
    Rollout,
    RolloutLimits,
    RolloutReport,
    Shadow,
)


def rollout_message(rollout: Rollout, parent: str) -> pb.Rollout:
    """A rollout of an alias of this adapter or base."""
    shadow = rollout.shadow
    return pb.Rollout(
        limits=None if rollout.limits is None else limits_message(rollout.limits),
        steps_percent=rollout.steps_percent,
        paused=rollout.paused,
        shadow=None
        if shadow is None
        else pb.Shadow(version=version_name(parent, shadow.version), percent=shadow.percent),
    )


def limits_message(limits: RolloutLimits) -> pb.RolloutLimits:
    """Limits as the contract has them."""
    message = pb.RolloutLimits(
        window_s=limits.window_s,
        min_requests=limits.min_requests,
        refusal_patterns=limits.refusal_patterns,
    )
    for name in LIMITS:
        value = getattr(limits, name)
        if value is not None:
            setattr(message, name, value)
    return message


def report_message(report: RolloutReport, parent: str) -> pb.RolloutReport:
    """Why a canary of an alias of this adapter or base was taken back."""
    return pb.RolloutReport(
        version=version_name(parent, report.version),
        limit=report.limit,
        observed=report.observed,
        allowed=report.allowed,
        stable=report.stable,
        requests=report.requests,
        window_s=report.window_s,
        detail=report.detail,
    )


def rollout_of(message: pb.Rollout) -> Rollout:
    """A rollout as it was sent; a version without a number counts as 0."""
    shadow = message.shadow
    return Rollout(
        limits=limits_of(message.limits) if message.HasField("limits") else None,
        steps_percent=tuple(message.steps_percent),
        paused=message.paused,
        shadow=Shadow(number_of(shadow.version), shadow.percent)
        if message.HasField("shadow")
        else None,
    )


def limits_of(message: pb.RolloutLimits) -> RolloutLimits:
    """Limits as they were sent."""
    given = {name: getattr(message, name) for name in LIMITS if message.HasField(name)}  # type: ignore[arg-type]
    return RolloutLimits(
        window_s=message.window_s,
        min_requests=message.min_requests or DEFAULT_MIN_REQUESTS,
        refusal_patterns=tuple(message.refusal_patterns),
        **given,
    )


def report_of(message: pb.RolloutReport) -> RolloutReport:
    """A report as it was sent."""
    return RolloutReport(
        version=number_of(message.version),
        limit=message.limit,
        observed=message.observed,
        allowed=message.allowed,
        stable=message.stable if message.HasField("stable") else None,
        requests=message.requests,
        window_s=message.window_s,
        detail=message.detail,
    )


def number_of(version: str) -> int:
    """The number in ".../versions/{number}"; 0 where there is none."""
    number = version.rpartition("/versions/")[2]
    return int(number) if number.isascii() and number.isdigit() else 0
