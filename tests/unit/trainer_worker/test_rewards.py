"""The built-in reward functions: right on what people mean, and unshaken by whatever a model writes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from graft.errors import GraftError, Reason
from graft.spec_file import spec_from_dict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from services.trainer.rewards.base import Completion, Reward
from services.trainer.rewards.build import build_rewards
from services.trainer.rewards.exact_match import ExactMatch
from services.trainer.rewards.json_schema import JsonSchema
from services.trainer.rewards.length import Length
from services.trainer.rewards.regex import Regex

# No deadline: what bounds the time is counted work, and the machine may be busy.
ANYTHING = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
TREE = json.dumps(
    {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$ref": "#/$defs/node",
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "pattern": "^[a-z]+$"},
                    "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
                },
                "required": ["name"],
                "additionalProperties": False,
            }
        },
    }
)


def doubling(levels: int) -> dict[str, Any]:
    """A small schema whose work doubles with every level."""
    definitions: dict[str, Any] = {
        f"level{level}": {"allOf": [{"$ref": f"#/$defs/level{level + 1}"}] * 2}
        for level in range(levels)
    }
    definitions[f"level{levels}"] = {"type": "object"}
    return {"$ref": "#/$defs/level0", "$defs": definitions}


def score(reward: Reward, text: str, answer: str | None = None, tokens: int = 4) -> float:
    return reward.score([Completion(text, tokens)], [answer])[0]


@pytest.mark.parametrize(
    ("reward", "text", "answer", "expected"),
    [
        (ExactMatch(False), " Paris\n", "Paris", 1.0),
        (ExactMatch(False), "paris", "Paris", 0.0),
        (ExactMatch(True), "STRASSE", "straße", 1.0),
        (ExactMatch(False), "", None, 0.0),
        (Regex(r"\d{2}", whole=False), "about 42 km", None, 1.0),
        (Regex(r"\d{2}", whole=True), "about 42 km", None, 0.0),
        (Regex(r"\d{2}", whole=True), "42", None, 1.0),
        (Regex("é$", whole=False), "café", None, 1.0),
        (Regex("x", whole=False), "\ud800x", None, 1.0),
        (JsonSchema(TREE), '{"name": "a", "children": [{"name": "b"}]}', None, 1.0),
        (JsonSchema(TREE), '{"name": "a", "children": [{"nome": "b"}]}', None, 0.0),
        (JsonSchema(TREE), '{"name": "A"}', None, 0.0),
        (JsonSchema(TREE), 'Here it is: {"name": "a"}', None, 0.0),
        (JsonSchema("true"), "NaN", None, 0.0),
        (JsonSchema("true"), " [1, 2]\n", None, 1.0),
        (JsonSchema('{"uniqueItems": true}'), "[[1], [1.0]]", None, 0.0),
        (JsonSchema('{"uniqueItems": true}'), "[1, true, {}, []]", None, 1.0),
        (JsonSchema('{"patternProperties": {"^n": {"type": "null"}}}'), '{"n1": 1}', None, 0.0),
        (
            JsonSchema('{"patternProperties": {"^n": true}, "additionalProperties": false}'),
            '{"n1": 1}',
            None,
            1.0,
        ),
    ],
)
def test_a_reward_says_what_people_mean(
    reward: Reward, text: str, answer: str | None, expected: float
) -> None:
    assert score(reward, text, answer) == expected


def test_a_length_outside_the_bounds_is_worth_more_the_nearer_it_is() -> None:
    reward = Length(min_tokens=4, max_tokens=8)
    scores = [score(reward, "", tokens=tokens) for tokens in (0, 2, 4, 8, 10, 16)]
    assert scores == [0.0, 0.5, 1.0, 1.0, 0.8, 0.5]


@pytest.mark.parametrize(
    ("reward", "text"),
    [
        (Regex(r"(x+x+)+y", whole=False), "x" * 200_000),
        (Regex(r"(a|a?)+$", whole=True), "a" * 200_000 + "b"),
        (JsonSchema('{"pattern": "^(x+x+)+y$"}'), json.dumps("x" * 200_000)),
        (JsonSchema('{"additionalProperties": {"pattern": "(a*)*$"}}'), '{"k": "' + "a" * 9999 + '"}'),
        (JsonSchema(TREE), "[" * 200_000),
        (JsonSchema(TREE), '{"name": "a", "children": [' * 900 + "]}" * 900),
        (JsonSchema("true"), "1" * 5000),
        (JsonSchema('{"multipleOf": 1e-300}'), "1e308"),
        (JsonSchema('{"multipleOf": 0.5}'), "9" * 4000),
        (JsonSchema('{"multipleOf": 0.5}'), "1e999"),
        (JsonSchema('{"uniqueItems": true}'), "[" + "{}," * 60_000 + "1]"),
        (JsonSchema('{"items": {"anyOf": [{"minItems": 9}, {"minItems": 8}]}}'), "[" + "[]," * 60_000 + "1]"),
    ],
)  # fmt: skip
def test_an_answer_made_to_hang_or_break_it_gets_a_plain_number(reward: Reward, text: str) -> None:
    assert score(reward, text) in (0.0, 1.0)


@pytest.fixture(scope="module")
def rewards() -> list[Reward]:
    return [
        ExactMatch(True),
        Regex(r"(\w+\s?)+[!?]$", whole=False),
        Regex(r"(a*)*b", whole=True),
        JsonSchema(TREE),
        JsonSchema('{"type": ["number", "array"], "multipleOf": 0.1, "uniqueItems": true}'),
        Length(3, 7),
    ]


@ANYTHING
@given(
    text=some.one_of(
        some.text(),
        some.text(some.characters()),  # Half characters too.
        some.recursive(
            some.none() | some.booleans() | some.floats() | some.integers() | some.text(),
            lambda inner: some.lists(inner) | some.dictionaries(some.text(), inner),
        ).map(json.dumps),
    ),
    answer=some.none() | some.text(),
    tokens=some.integers(0, 100_000),
)
def test_whatever_is_written_the_reward_is_from_0_to_1(
    rewards: list[Reward], text: str, answer: str | None, tokens: int
) -> None:
    for reward in rewards:
        assert 0.0 <= score(reward, text, answer, tokens) <= 1.0


JSON_KEYWORDS = some.sampled_from(
    ["allOf", "anyOf", "not", "items", "properties", "$ref", "pattern", "type", "enum", "$defs"]
)


@ANYTHING
@given(
    schema=some.recursive(
        some.sampled_from([True, "object", "#", "#/$defs/a", "http://a/b", "(a*)*", 1]),
        lambda inner: some.lists(inner) | some.dictionaries(JSON_KEYWORDS | some.just("a"), inner),
    ),
    value=some.sampled_from(["{}", "[[]]", '"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaac"', '{"a": {"a": 1}}']),
)
def test_any_schema_is_refused_in_words_or_decides(schema: Any, value: str) -> None:
    try:
        reward = JsonSchema(json.dumps(schema))
    except ValueError:
        return
    assert score(reward, value) in (0.0, 1.0)


def built(*rewards: dict[str, Any], most: int = 64) -> Any:
    objective = {"grpo": {"rewards": list(rewards)}}
    message = spec_from_dict({"objective": objective}).objective.grpo.rewards
    return build_rewards("objective.grpo.rewards", message, most)


def test_rewards_are_weighted_and_a_punishment_is_a_negative_weight() -> None:
    one, other = built({"exact_match": {}}, {"regex": {"pattern": "sorry"}, "weight": -0.5})
    assert (one.reward.name, one.weight) == ("exact_match", 1.0)
    assert (other.reward.name, other.weight) == ("regex", -0.5)


@pytest.mark.parametrize(
    ("reward", "field", "words"),
    [
        ({}, "", "exact_match, regex, json_schema or length"),
        ({"regex": {}}, ".regex.pattern", "a regular expression"),
        ({"regex": {"pattern": "(a"}}, ".regex.pattern", "missing )"),
        ({"regex": {"pattern": r"(a)\1"}}, ".regex.pattern", "invalid escape sequence"),
        ({"regex": {"pattern": "(?=a)"}}, ".regex.pattern", "invalid perl operator"),
        ({"regex": {"pattern": "((a{99}){99}){99}"}}, ".regex.pattern", "invalid repetition size"),
        ({"regex": {"pattern": "a" * 5000}}, ".regex.pattern", "more than 4096"),
        ({"json_schema": {}}, ".json_schema.schema_json", "a JSON schema as text"),
        ({"json_schema": {"schema_json": "{"}}, ".json_schema.schema_json", "it is not JSON"),
        ({"json_schema": {"schema_json": "[]"}}, ".json_schema.schema_json", "neither an object"),
        (
            {"json_schema": {"schema_json": '{"type": "objekt"}'}},
            ".json_schema.schema_json",
            "'objekt' is not valid",
        ),
        (
            {"json_schema": {"schema_json": '{"$ref": "http://localhost/x"}'}},
            ".json_schema.schema_json",
            'must begin with "#"',
        ),
        (
            {"json_schema": {"schema_json": '{"$ref": "file:///etc/passwd"}'}},
            ".json_schema.schema_json",
            'must begin with "#"',
        ),
        (
            {"json_schema": {"schema_json": '{"items": {"$ref": "#/$defs/no"}}'}},
            ".json_schema.schema_json",
            "which is not in it",
        ),
        (
            {"json_schema": {"schema_json": '{"$ref": "#/const", "const": {"pattern": "("}}'}},
            ".json_schema.schema_json",
            "which is not a schema",
        ),
        (
            {"json_schema": {"schema_json": '{"$ref": "#"}'}},
            ".json_schema.schema_json",
            "does not come to an end",
        ),
        (
            {"json_schema": {"schema_json": json.dumps(doubling(40))}},
            ".json_schema.schema_json",
            "does not come to an end",
        ),
        (
            {"json_schema": {"schema_json": r'{"pattern": "(a)\\1"}'}},
            ".json_schema.schema_json",
            "is not one of RE2",
        ),
        (
            {"json_schema": {"schema_json": '{"unevaluatedProperties": false}'}},
            ".json_schema.schema_json",
            'use "additionalProperties"',
        ),
        (
            {"json_schema": {"schema_json": '{"$schema": "http://json-schema.org/draft-07/schema#"}'}},
            ".json_schema.schema_json",
            "draft-07",
        ),
        ({"length": {}}, ".length", "min_tokens, max_tokens or both"),
        ({"length": {"min_tokens": 9, "max_tokens": 8}}, ".length.min_tokens", "at most max_tokens (8)"),
        ({"length": {"min_tokens": 65}}, ".length.min_tokens", "max_completion_tokens (64)"),
        ({"length": {"min_tokens": -1}}, ".length.min_tokens", "0 to 1000000"),
        ({"exact_match": {}, "weight": 1e9}, ".weight", "-1000 to 1000"),
    ],
)  # fmt: skip
def test_a_reward_that_cannot_work_is_refused_by_its_field(
    reward: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(GraftError) as refused:
        built({"exact_match": {}}, reward)
    assert refused.value.reason is Reason.INVALID_SPEC
    assert refused.value.metadata["field"] == f"objective.grpo.rewards[1]{field}"
    assert words in refused.value.message
    assert refused.value.next_step


def test_without_a_reward_function_there_is_nothing_to_learn() -> None:
    with pytest.raises(GraftError, match="at least one reward function") as refused:
        built()
    assert refused.value.metadata["field"] == "objective.grpo.rewards"
