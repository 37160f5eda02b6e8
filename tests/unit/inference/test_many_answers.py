"""Several answers to one prompt, and what else a request may say of its answers."""

from __future__ import annotations

from typing import Any

import pytest
from graft.errors import Reason
from graft.inference.v1 import inference_service_pb2 as pb

from tests.support.inference import RunningInference, question
from tests.support.waiting import eventually
from tests.unit.inference.refusals import refusal


def three(**sampling: Any) -> pb.GenerateRequest:
    return question("tiny", temperature=1.0, seed=7, n=3, **sampling)


async def test_each_answer_is_that_of_its_own_seed(service: RunningInference) -> None:
    answer = await service.stub.Generate(three())
    found = [answer, *answer.others]
    assert [each.index for each in found] == [0, 1, 2]
    alone = [await service.ask("tiny", temperature=1.0, seed=seed) for seed in (7, 8, 9)]
    assert [each.text for each in found] == [each.text for each in alone]
    assert answer.usage.prompt_tokens == alone[0].usage.prompt_tokens
    assert answer.usage.completion_tokens == 24


async def test_a_stream_of_several_says_whose_each_part_is(service: RunningInference) -> None:
    whole = await service.stub.Generate(three())
    texts, ended = ["", "", ""], []
    parts = [part async for part in service.stub.StreamGenerate(three())]
    for part in parts:
        texts[part.index] += part.text
        if part.finish_reason:
            ended.append(part.index)
    assert texts == [whole.text, *(each.text for each in whole.others)]
    assert sorted(ended) == [0, 1, 2]
    assert parts[-1].usage == whole.usage
    assert [bool(part.HasField("usage")) for part in parts].count(True) == 1
    assert parts[0].HasField("provenance")
    assert parts[-1].HasField("provenance")


async def test_a_client_that_goes_away_frees_all_of_its_answers(service: RunningInference) -> None:
    service.fake.hold(after_tokens=2)
    call = service.stub.StreamGenerate(three(max_tokens=100))
    await call.read()
    assert service.engine.unfinished() == 3
    call.cancel()
    await eventually(lambda: service.engine.unfinished() == 0, "the aborts")


async def test_when_the_engine_dies_there_is_one_error_and_nothing_left(
    service: RunningInference,
) -> None:
    service.fake.hold(after_tokens=2)
    call = service.stub.StreamGenerate(three(max_tokens=100))
    await call.read()
    service.fake.die()
    error = await refusal(_read_all(call))
    assert error.reason is Reason.ENGINE_DEAD
    assert service.engine.unfinished() == 0


async def _read_all(call: Any) -> None:
    while await call.read():
        pass


@pytest.mark.parametrize("n", [0, -1, 33])
async def test_too_many_answers_or_none_are_refused(service: RunningInference, n: int) -> None:
    error = await refusal(service.stub.Generate(question("tiny", n=n)))
    assert error.reason is Reason.INVALID_REQUEST
    assert error.metadata["field"] == "sampling.n"


async def test_the_stop_string_is_part_of_the_text_where_that_is_wanted(
    service: RunningInference,
) -> None:
    free = await service.ask("tiny", max_tokens=20)
    stop = free.text[5:7]
    answer = await service.ask("tiny", max_tokens=20, stop=[stop], include_stop=True)
    assert answer.text == free.text[: free.text.index(stop) + 2]


async def test_the_prompts_log_probabilities_come_with_the_first_part(
    service: RunningInference,
) -> None:
    request = question("tiny", "abc", prompt_logprobs=1)
    parts = [part async for part in service.stub.StreamGenerate(request)]
    assert [each.token.text for each in parts[0].prompt_logprobs] == ["a", "b", "c"]
    assert not any(part.prompt_logprobs for part in parts[1:])
