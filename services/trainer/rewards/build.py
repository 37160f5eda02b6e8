"""The reward functions of a job's spec, built and checked; an invalid one is refused here, by its field."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from graft.trainer.v1 import job_spec_pb2 as pb

from services.trainer.fields import integer, invalid_field, number
from services.trainer.rewards.base import Reward, WeightedReward
from services.trainer.rewards.exact_match import ExactMatch
from services.trainer.rewards.json_schema import JsonSchema
from services.trainer.rewards.length import Length
from services.trainer.rewards.regex import Regex

_MOST_TOKENS = 1_000_000
_MOST_WEIGHT = 1000.0


def build_rewards(
    path: str, messages: Sequence[pb.RewardFunction], max_completion_tokens: int
) -> tuple[WeightedReward, ...]:
    """Builds reward functions.

    Args:
        path: the field that they stand in.
        messages: at least one.
        max_completion_tokens: no answer is longer.

    Raises:
        GraftError: INVALID_SPEC, naming the field and what is wrong with it.
    """
    if not messages:
        raise invalid_field(
            path,
            [],
            "at least one reward function",
            "Add exact_match, regex, json_schema or length: without one nothing makes an answer better.",
        )
    return tuple(
        _weighted(f"{path}[{index}]", message, max_completion_tokens)
        for index, message in enumerate(messages)
    )


def _weighted(path: str, message: pb.RewardFunction, max_completion_tokens: int) -> WeightedReward:
    kind = message.WhichOneof("kind")
    if kind is None:
        raise invalid_field(path, "nothing", "exact_match, regex, json_schema or length")
    weight = number(f"{path}.weight", message.weight, 1.0, -_MOST_WEIGHT, _MOST_WEIGHT)
    build = _BUILDERS[kind]
    return WeightedReward(
        build(f"{path}.{kind}", getattr(message, kind), max_completion_tokens), weight
    )


def _exact_match(_: str, message: pb.ExactMatch, __: int) -> Reward:
    return ExactMatch(message.ignore_case)


def _regex(path: str, message: pb.Regex, _: int) -> Reward:
    path = f"{path}.pattern"
    if not message.pattern:
        raise invalid_field(path, "", "a regular expression")
    try:
        return Regex(message.pattern, message.whole)
    except ValueError as error:
        raise invalid_field(
            path,
            message.pattern,
            f"a regular expression in RE2's syntax ({error})",
            "Mend the pattern; RE2 has no back references and no look-around.",
        ) from None


def _json_schema(path: str, message: pb.JsonSchema, _: int) -> Reward:
    path = f"{path}.schema_json"
    if not message.schema_json:
        raise invalid_field(path, "", "a JSON schema as text")
    try:
        return JsonSchema(message.schema_json)
    except ValueError as error:
        raise invalid_field(
            path,
            _shortened(message.schema_json),
            f"a JSON schema of draft 2020-12 ({error})",
            "Mend the schema; put what it refers to into its own $defs.",
        ) from None


def _length(path: str, message: pb.Length, max_completion_tokens: int) -> Reward:
    fewest = integer(f"{path}.min_tokens", message.min_tokens, 0, 0, _MOST_TOKENS)
    most = integer(f"{path}.max_tokens", message.max_tokens, 0, 0, _MOST_TOKENS)
    if not fewest and not most:
        raise invalid_field(path, "without bounds", "given min_tokens, max_tokens or both")
    if most and fewest > most:
        raise invalid_field(f"{path}.min_tokens", fewest, f"at most max_tokens ({most})")
    if fewest > max_completion_tokens:
        raise invalid_field(
            f"{path}.min_tokens",
            fewest,
            f"at most objective.grpo.max_completion_tokens ({max_completion_tokens}), which no answer exceeds",
        )
    return Length(fewest, most)


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


_BUILDERS: dict[str, Callable[[str, Any, int], Reward]] = {
    "exact_match": _exact_match,
    "regex": _regex,
    "json_schema": _json_schema,
    "length": _length,
}
