"""Rollouts in requests, checked: what an alias may be told about its canaries."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import pairwise

from graft.registry.v1 import registry_service_pb2 as pb
from graft.registry.v1 import rollout_pb2
from graft.rollout_messages import report_of, rollout_of
from graft.rollout_policy import (
    LIMITS,
    RATES,
    RATIOS,
    SECONDS,
    Rollout,
    RolloutLimits,
    RolloutReport,
)

from services.registry.convert.checks import check_text, version_number
from services.registry.errors import invalid

_MOST_WINDOW_S = 86400.0
_MOST_REQUESTS = 1_000_000
_MOST_STEPS = 20
_MOST_PATTERNS, _MOST_PATTERN_CHARACTERS = 16, 200


def rollout_for(
    alias: str, message: rollout_pb2.Rollout, split: Sequence[tuple[int, float]]
) -> Rollout:
    """A rollout as it may be stored.

    Args:
        alias: its full name.
        message: as it was sent.
        split: (number, percent) of the version, whose percent does not count, and of each canary.

    Raises:
        GraftError: INVALID_REQUEST, naming the field.
    """
    if message.HasField("limits"):
        _check_limits(alias, message)
    elif message.steps_percent:
        raise invalid(
            f"rollout.steps_percent of {alias} is set, and rollout.limits is not",
            "Steps are taken while limits hold: set at least rollout.limits.window_s and one limit.",
        )
    _check_steps(alias, message.steps_percent, split)
    _check_shadow(alias, message, [number for number, _ in split])
    return rollout_of(message)


def report_in(request: pb.RollbackAliasRequest) -> RolloutReport | None:
    """Why canaries are taken out; None where no limit was passed. Raises INVALID_REQUEST."""
    if not request.HasField("report"):
        return None
    if not request.canaries:
        raise invalid(
            f"A report about {request.name} comes without the canaries that are taken out",
            "Name them in canaries.",
        )
    report = report_of(request.report)
    check_text("report.detail", report.detail)
    check_text("report.limit", report.limit)
    numbers = (report.observed, report.allowed, report.stable or 0.0, report.window_s)
    if request.report.version not in request.canaries or not all(map(math.isfinite, numbers)):
        raise invalid(
            f"The report about {request.name} is of {request.report.version or 'no version'}, which "
            "is not taken out, or has figures that are no numbers",
            "Report on one of canaries, with finite figures.",
        )
    return report


def _check_limits(alias: str, message: rollout_pb2.Rollout) -> None:
    limits = rollout_of(message).limits
    assert limits is not None
    if not 1 <= limits.window_s <= _MOST_WINDOW_S:
        raise invalid(
            f"rollout.limits.window_s of {alias} is {limits.window_s:g}",
            f"Limits are judged over a window: give it 1 to {_MOST_WINDOW_S:g} seconds.",
            field="rollout.limits.window_s",
        )
    if not 1 <= limits.min_requests <= _MOST_REQUESTS:
        raise invalid(
            f"rollout.limits.min_requests of {alias} is {limits.min_requests}",
            f"Give it 1 to {_MOST_REQUESTS}, or leave it out.",
            field="rollout.limits.min_requests",
        )
    given = {name: value for name in LIMITS if (value := getattr(limits, name)) is not None}
    if not given:
        raise invalid(
            f"rollout.limits of {alias} has a window and no limit",
            f"Set at least one of {', '.join(LIMITS)}.",
        )
    for name, value in given.items():
        _check_limit(alias, name, value)
    _check_patterns(alias, limits)


def _check_limit(alias: str, name: str, value: float) -> None:
    # Written so that NaN is outside.
    least, most, allows = (
        (0.0, 1.0, 0 <= value < 1)
        if name in RATES
        else (1.0, 1000.0, 1 < value <= 1000)
        if name in RATIOS
        else (0.0, 3600.0, 0 < value <= 3600)
    )
    assert name in (*RATES, *RATIOS, *SECONDS)
    if not allows:
        raise invalid(
            f"rollout.limits.{name} of {alias} is {value:g}",
            f"It is between {least:g} and {most:g}: a share, a multiple of the stable version's, or "
            "seconds.",
            field=f"rollout.limits.{name}",
        )


def _check_patterns(alias: str, limits: RolloutLimits) -> None:
    patterns = limits.refusal_patterns
    if patterns and limits.max_refusal_rate is None:
        raise invalid(
            f"rollout.limits.refusal_patterns of {alias} are set, and max_refusal_rate is not",
            "Say which share of refusals is too much.",
        )
    if len(patterns) > _MOST_PATTERNS:
        raise invalid(
            f"rollout.limits.refusal_patterns of {alias} are {len(patterns)}",
            f"Use at most {_MOST_PATTERNS}.",
        )
    for pattern in patterns:
        wrong = _wrong_pattern(pattern)
        if wrong:
            raise invalid(
                f"rollout.limits.refusal_patterns of {alias} has {pattern[:60]!r}: {wrong}",
                r"Write beginnings of answers, for example (?i)i('m| am) sorry.",
            )


def _wrong_pattern(pattern: str) -> str:
    if not 0 < len(pattern) <= _MOST_PATTERN_CHARACTERS:
        return f"it has {len(pattern)} characters, and 1 to {_MOST_PATTERN_CHARACTERS} are allowed"
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return f"it is not a regular expression ({error})"
    return ""


def _check_steps(alias: str, steps: Sequence[float], split: Sequence[tuple[int, float]]) -> None:
    if not steps:
        return
    grows = all(before < after for before, after in pairwise(steps))
    within = all(math.isfinite(step) and 0 < step <= 100 for step in steps)
    if len(steps) > _MOST_STEPS or not grows or not within:
        said = ", ".join(f"{step:g}" for step in steps)
        raise invalid(
            f"rollout.steps_percent of {alias} is {said}",
            f"Use at most {_MOST_STEPS} growing numbers, above 0 and at most 100.",
            field="rollout.steps_percent",
        )
    if len(split) != 2:
        raise invalid(
            f"rollout.steps_percent of {alias} is set, and it has {len(split) - 1} canaries",
            "Steps are of one canary: name exactly one.",
        )


def _check_shadow(alias: str, message: rollout_pb2.Rollout, numbers: Sequence[int]) -> None:
    if not message.HasField("shadow"):
        return
    shadow = message.shadow
    parent, number = version_number(shadow.version)
    if parent != alias.rsplit("/", 2)[0]:
        raise invalid(
            f"{alias} cannot be shadowed by {shadow.version}: it is of another adapter or base",
            "Name a version of the alias' own adapter.",
        )
    if number in numbers:
        raise invalid(
            f"{alias} cannot be shadowed by {shadow.version}, which is a part of it",
            "Shadow to a version that the alias names neither itself nor as a canary.",
        )
    if not 0 < shadow.percent <= 100:
        raise invalid(
            f"rollout.shadow.percent of {alias} is {shadow.percent:g}",
            "It is more than 0 and at most 100.",
            field="rollout.shadow.percent",
        )
