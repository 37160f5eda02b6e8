"""What a client of the inference service sees: answers, and clear statuses for wrong requests."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import grpc
import pytest
from graft.errors import GraftError, Reason
from graft.inference.v1 import inference_service_pb2 as pb
from graft.inference.v1 import structured_pb2

from services.inference.convert.requests import generate_question
from services.inference.engines.base import Sampling, Structure
from services.inference.sampling import checked_sampling
from tests.support.inference import FINGERPRINT, RunningInference, question, start_inference
from tests.support.waiting import eventually
from tests.unit.inference.refusals import refusal


async def test_a_stream_says_what_the_unary_call_says(service: RunningInference) -> None:
    whole = await service.ask("tiny")
    parts = [part async for part in service.stub.StreamGenerate(question("tiny"))]
    assert "".join(part.text for part in parts) == whole.text
    assert [token for part in parts for token in part.token_ids] == list(whole.token_ids)
    assert whole.usage.completion_tokens == 8
    assert parts[-1].usage == whole.usage
    assert parts[-1].finish_reason == whole.finish_reason == pb.FINISH_REASON_LENGTH


async def test_the_first_and_the_last_message_name_what_made_the_answer(
    service: RunningInference,
) -> None:
    (version,) = await service.publish("bot", "one")
    parts = [part async for part in service.stub.StreamGenerate(question("bot:1"))]
    for part in (parts[0], parts[-1]):
        assert part.provenance.version == version.name
        assert part.provenance.version_digest == version.digest
        assert part.provenance.base_fingerprint == FINGERPRINT
    assert not any(part.HasField("provenance") for part in parts[1:-1])


async def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(
    service: RunningInference,
) -> None:
    free = await service.ask("tiny", max_tokens=20)
    stop = free.text[5:7]
    answer = await service.ask("tiny", max_tokens=20, stop=[stop])
    assert answer.text == free.text[: free.text.index(stop)]
    assert answer.finish_reason == pb.FINISH_REASON_STOP


async def test_logprobs_come_for_every_token(service: RunningInference) -> None:
    answer = await service.ask("tiny", logprobs=2)
    assert [each.token.token_id for each in answer.logprobs] == list(answer.token_ids)
    assert all(len(each.top) == 2 for each in answer.logprobs)


async def test_without_max_tokens_the_answer_fills_the_context(service: RunningInference) -> None:
    request = pb.GenerateRequest(model="tiny", prompt="x" * 500)
    answer = await service.stub.Generate(request)
    assert answer.usage.prompt_tokens == 501
    assert answer.usage.completion_tokens == 11


async def test_token_ids_are_taken_as_they_are(service: RunningInference) -> None:
    request = question("tiny")
    request.prompt_token_ids.ids.extend([256, *b"hello"])
    assert (await service.stub.Generate(request)).text == (await service.ask("tiny")).text


WRONG_SAMPLING = [
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": math.nan}, "temperature"),
    ({"temperature": math.inf}, "temperature"),
    ({"top_p": 0.0}, "top_p"),
    ({"top_p": 1.01}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": 1.5}, "min_p"),
    ({"repetition_penalty": 0.0}, "repetition_penalty"),
    ({"presence_penalty": 2.1}, "presence_penalty"),
    ({"frequency_penalty": -2.1}, "frequency_penalty"),
    ({"seed": -1}, "seed"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop": [""]}, "stop"),
    ({"stop_token_ids": [-1]}, "stop_token_ids"),
    ({"logprobs": 21}, "logprobs"),
    ({"min_tokens": 9}, "min_tokens"),
    ({"min_tokens": -1}, "min_tokens"),
]


@pytest.mark.parametrize(("sampling", "field"), WRONG_SAMPLING)
def test_wrong_sampling_is_refused_with_the_name_of_its_field(
    sampling: dict[str, Any], field: str
) -> None:
    params = pb.SamplingParams(**{"max_tokens": 8, **sampling})
    with pytest.raises(GraftError, match=rf"sampling\.{field} ") as caught:
        checked_sampling(params)
    assert caught.value.reason is Reason.INVALID_REQUEST
    assert caught.value.next_step


def test_sampling_that_is_left_out_takes_the_defaults_of_the_contract() -> None:
    assert checked_sampling(pb.SamplingParams()) == Sampling(max_tokens=0)


def test_every_field_of_sampling_arrives() -> None:
    params = pb.SamplingParams(
        max_tokens=9,
        temperature=0.0,
        top_p=0.5,
        top_k=7,
        min_p=0.1,
        repetition_penalty=1.25,
        presence_penalty=-1.5,
        frequency_penalty=0.5,
        seed=0,
        stop=["a", "b"],
        stop_token_ids=[3],
        ignore_eos=True,
        logprobs=0,
        min_tokens=2,
        structure=structured_pb2.Structure(choice=structured_pb2.Choice(texts=["a", "b"])),
        n=2,
        include_stop=True,
        prompt_logprobs=3,
    )
    assert checked_sampling(params) == Sampling(
        9, 0.0, 0.5, 7, 0.1, 1.25, -1.5, 0.5, 0, ("a", "b"), (3,), True, 0, 2,
        structure=Structure(choice=("a", "b")), include_stop=True, prompt_logprobs=3,
    )  # fmt: skip
    assert generate_question(pb.GenerateRequest(model="m", prompt="p", sampling=params)).n == 2
    names = {field.name for field in params.DESCRIPTOR.fields}
    assert names - {"n"} == set(Sampling.__slots__) - {"special_tokens_text"}


WRONG_REQUESTS = [
    (pb.GenerateRequest(model="tiny"), Reason.INVALID_REQUEST, "prompt"),
    (pb.GenerateRequest(model="tiny", prompt=""), Reason.INVALID_REQUEST, "empty"),
    (pb.GenerateRequest(prompt="x"), Reason.INVALID_REQUEST, "model"),
    (question("tiny", stop_token_ids=[5000]), Reason.INVALID_REQUEST, "stop_token_ids"),
    (
        question("tiny", "x" * 500, max_tokens=50, min_tokens=20),
        Reason.INVALID_REQUEST,
        "min_tokens",
    ),
    (question("tiny", stop_token_ids=[1] * 2000), Reason.INVALID_REQUEST, "2000"),
    (question("tiny", "x" * 511), Reason.PROMPT_TOO_LONG, "512 tokens"),
    (question("tiny", "x" * 512), Reason.PROMPT_TOO_LONG, "512 characters"),
    (question("tiny", "x" * 10**6), Reason.PROMPT_TOO_LONG, "512"),
    (
        pb.GenerateRequest(model="tiny", prompt_token_ids=pb.TokenIds(ids=[1, 2000])),
        Reason.INVALID_REQUEST,
        "2000",
    ),
    (
        pb.GenerateRequest(model="tiny", prompt_token_ids=pb.TokenIds()),
        Reason.INVALID_REQUEST,
        "empty",
    ),
    (
        pb.GenerateRequest(model="tiny", prompt_token_ids=pb.TokenIds(ids=[2000] * 512)),
        Reason.PROMPT_TOO_LONG,
        "512 tokens",
    ),
    (question("no/thing/x"), Reason.INVALID_REFERENCE, "no/thing"),
    (question("nobody"), Reason.ADAPTER_NOT_FOUND, "nobody"),
    (question("other/bot"), Reason.MODEL_NOT_FOUND, "other"),
]


async def test_a_wrong_request_is_a_clear_status_and_never_reaches_the_engine(
    service: RunningInference,
) -> None:
    service.fake.hold(after_tokens=0)
    for request, reason, word in WRONG_REQUESTS:
        error = await refusal(service.stub.Generate(request))
        assert error.reason is reason
        assert word in error.message
        assert error.next_step


async def test_a_client_that_goes_away_frees_the_engine(service: RunningInference) -> None:
    await service.publish("bot", "one")
    service.fake.hold(after_tokens=2)
    call = service.stub.StreamGenerate(question("bot:1", max_tokens=100))
    await call.read()
    assert service.engine.unfinished() == 1
    call.cancel()
    await eventually(lambda: service.engine.unfinished() == 0, "the abort")
    residency = await service.stub.GetResidency(pb.GetResidencyRequest())
    assert [each.in_flight for each in residency.adapters] == [0]


async def test_a_unary_client_that_goes_away_frees_the_engine(service: RunningInference) -> None:
    service.fake.hold(after_tokens=0)
    call = service.stub.Generate(question("tiny"))
    waiting = asyncio.ensure_future(call)
    await eventually(lambda: service.engine.unfinished() == 1, "the request")
    call.cancel()
    await eventually(lambda: service.engine.unfinished() == 0, "the abort")
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_deadline_ends_the_request_in_the_engine(service: RunningInference) -> None:
    service.fake.hold(after_tokens=2)
    call = service.stub.StreamGenerate(question("tiny", max_tokens=100), timeout=0.3)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [part async for part in call]
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await eventually(lambda: service.engine.unfinished() == 0, "the abort")


async def test_models_names_the_base_and_what_can_be_asked(service: RunningInference) -> None:
    await service.publish("bot", "one", "two")
    await service.promote("bot", 1)
    await service.promote("bot", 2, alias="next")
    await service.ask("bot")
    answer = await service.stub.ListModels(pb.ListModelsRequest())
    listed = {model.reference: (model.version[-1:], model.resident) for model in answer.models}
    assert listed == {
        "tiny": ("", True),
        "bot": ("1", True),
        "bot@next": ("2", False),
        "bot@production": ("1", True),
        "bot:1": ("1", True),
    }


async def test_a_stop_lets_answers_in_flight_end(tmp_path: Path) -> None:
    async with start_inference(tmp_path) as service:
        service.fake.hold(after_tokens=2)
        parts = aiter(service.stub.StreamGenerate(question("tiny", max_tokens=20)))
        text = (await anext(parts)).text
        stopping = asyncio.create_task(service.server.grpc.drain())
        await asyncio.sleep(0)
        await service.fake.release()
        text += "".join([part.text async for part in parts])
        assert len(text) == 20
        await stopping
