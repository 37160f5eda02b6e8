"""Structured answers as a client of the service sees them, and the trial that a structure has to pass."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from graft.errors import GraftError, Reason
from graft.inference.v1 import inference_service_pb2 as pb
from graft.inference.v1 import structured_pb2

from services.inference.engines.base import Structure
from services.inference.engines.structure_schema import SchemaError, parse, shortest
from services.inference.engines.structures import Structures
from tests.support.inference import RunningInference, question
from tests.unit.inference.refusals import refusal


def asking(max_tokens: int = 60, **form: Any) -> pb.GenerateRequest:
    return question("tiny", max_tokens=max_tokens, structure=structured_pb2.Structure(**form))


async def test_an_answer_has_the_form_that_was_asked_for(service: RunningInference) -> None:
    choice = await service.stub.Generate(asking(choice={"texts": ["maybe", "no", "yes"]}))
    assert (choice.text, choice.finish_reason) == ("no", pb.FINISH_REASON_STOP)
    schema = {"type": "object", "properties": {"n": {"const": 3}}, "required": ["n"]}
    answer = await service.stub.Generate(asking(json_schema=json.dumps(schema)))
    assert json.loads(answer.text) == {"n": 3}


async def test_an_answer_that_does_not_fit_ends_at_max_tokens(service: RunningInference) -> None:
    answer = await service.stub.Generate(asking(max_tokens=9, json_schema='{"const": [[[1], 2]]}'))
    assert answer.finish_reason == pb.FINISH_REASON_LENGTH
    assert answer.usage.completion_tokens == 9


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "sampling.structure is empty"),
    ({"json_object": False}, "sampling.structure is empty"),
    ({"choice": {"texts": []}}, "sampling.structure is empty"),
    ({"choice": {"texts": [""]}}, "structure.choice has an empty text"),
    ({"choice": {"texts": ["a", "a"]}}, "structure.choice has a text twice"),
    ({"choice": {"texts": [str(i) for i in range(2000)]}}, "has 2000 texts"),
    ({"json_schema": " " * 70_000}, "has 70000 characters"),
    ({"json_schema": '{"type": "string", "minLength": 61}'}, "takes 63 tokens at least"),
    ({"json_schema": '{"$ref": "#"}'}, "structure.json_schema cannot be used"),
    ({"regex": "[ab"}, "structure.regex cannot be used"),
    ({"grammar": "nothing"}, "structure.grammar cannot be used"),
]


async def test_a_wrong_structure_is_refused_before_the_engine_sees_it(
    service: RunningInference,
) -> None:
    service.fake.hold(after_tokens=0)
    for form, words in WRONG:
        request = asking(**form)
        request.sampling.structure.SetInParent()
        error = await refusal(service.stub.Generate(request))
        assert error.reason is Reason.INVALID_REQUEST
        assert words in error.message
        assert error.next_step
        assert error.metadata["field"].startswith("sampling.structure")


def test_the_shortest_text_of_a_schema_is_counted_from_what_it_requires() -> None:
    tree = {
        "type": "object",
        "properties": {"kids": {"type": "array", "items": {"$ref": "#"}}},
        "required": ["kids"],
    }
    assert shortest(tree) == len('{"kids":[]}')
    endless = {**tree, "properties": {"kids": {"$ref": "#"}}}
    assert math.isinf(shortest(endless))
    assert shortest({"enum": ["abc", 12]}) == 2
    assert shortest({"type": "array", "minItems": 3, "items": {"type": "null"}}) == 16
    assert math.isinf(shortest({"anyOf": [False, {"$ref": "#/anyOf/1"}]}))
    with pytest.raises(SchemaError, match="leads nowhere"):
        shortest({"$ref": "#/$defs/none"})
    with pytest.raises(SchemaError, match="nested more than"):
        parse('{"items":' * 100 + "{}" + "}" * 100)


@pytest.fixture
async def structures(tiny_base: Path) -> AsyncIterator[Structures]:
    trials = Structures(tiny_base, max_token_characters=16)
    yield trials
    await trials.close()


async def test_an_explosive_structure_costs_its_own_process_and_nobody_elses(
    structures: Structures,
) -> None:
    explosive = Structure(grammar='root ::= s\ns ::= "" | s s s s s | [a-z]')
    trying = asyncio.create_task(structures.least_tokens(explosive))
    turns = 0
    while not trying.done():
        await asyncio.sleep(0.005)
        turns += 1
    assert turns > 5, "the event loop went on meanwhile"
    with pytest.raises(GraftError, match=r"sampling\.structure\.grammar") as caught:
        await trying
    assert caught.value.reason is Reason.INVALID_REQUEST
    assert await structures.least_tokens(Structure(json_object=True)) == 1
    assert await structures.least_tokens(Structure(regex="[a-z]{1,9}")) == 1


async def test_the_trial_lives_on_after_its_process_was_killed(structures: Structures) -> None:
    assert await structures.least_tokens(Structure(choice=("yes", "no"))) == 1
    process = structures._process
    assert process is not None
    process.kill()
    await process.wait()
    long = Structure(json_schema='{"type": "string", "minLength": 100}')
    assert await structures.least_tokens(long) == 7
