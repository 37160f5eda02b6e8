"""OpenAI's own client against the real engine: every kind of answer, by an adapter version."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio
from graft.inference.v1 import inference_service_pb2 as pb

from services.inference.registry.memory import MemoryRegistry
from tests.support.engines import SharedEngine
from tests.support.inference import (
    BASE,
    FINGERPRINT,
    RunningInference,
    adapter_resource,
    start_inference,
)
from tests.support.models import make_adapter
from tests.support.waiting import eventually
from tests.unit.inference.http.conftest import client_of

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.engine]
BOT = adapter_resource("bot")
MESSAGES: Any = [{"role": "user", "content": "The cat sees a door."}]
FIND: Any = {
    "type": "function",
    "function": {
        "name": "find",
        "parameters": {
            "type": "object",
            "properties": {"room": {"enum": ["kitchen", "hall"]}},
            "required": ["room"],
            "additionalProperties": False,
        },
    },
}


@pytest_asyncio.fixture(loop_scope="session")
async def served(
    vllm_engine: SharedEngine, tiny_base: Path, tmp_path: Path
) -> AsyncIterator[RunningInference]:
    """One version of bot, on the slots as soon as it is asked."""
    registry = MemoryRegistry(FINGERPRINT)
    await registry.add_adapter(BOT, BASE)
    await registry.add_version(BOT, make_adapter(tmp_path / "bot", tiny_base, seed=3))
    async with start_inference(
        tmp_path, engine=vllm_engine, registry=registry, base=tiny_base
    ) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def door(served: RunningInference) -> AsyncIterator[openai.AsyncOpenAI]:
    async with client_of(served) as made:
        yield made


async def test_both_doors_answer_the_same(
    served: RunningInference, door: openai.AsyncOpenAI
) -> None:
    for model in ("tiny", "bot:1"):
        over_grpc = await served.stub.Chat(
            pb.ChatRequest(
                model=model,
                messages=[pb.ChatMessage(**MESSAGES[0])],
                sampling=pb.SamplingParams(max_tokens=16, temperature=0, logprobs=2),
            )
        )
        whole = await door.chat.completions.create(
            model=model,
            messages=MESSAGES,
            max_tokens=16,
            temperature=0,
            logprobs=True,
            top_logprobs=2,
        )
        choice = whole.choices[0]
        assert choice.message.content == over_grpc.text
        assert whole.usage is not None
        assert whole.usage.prompt_tokens == over_grpc.usage.prompt_tokens
        assert choice.logprobs is not None
        assert [each.logprob for each in choice.logprobs.content or ()] == pytest.approx(
            [each.token.logprob for each in over_grpc.logprobs], abs=1e-4
        )
        stream = await door.chat.completions.create(
            model=model, messages=MESSAGES, max_tokens=16, temperature=0, stream=True
        )
        parts = [part.choices[0].delta.content or "" async for part in stream]
        assert "".join(parts) == over_grpc.text
        said = (whole.model_extra or {})["graft"]
        assert said["version_digest"] == over_grpc.provenance.version_digest


async def test_answers_keep_to_their_form(door: openai.AsyncOpenAI) -> None:
    schema = FIND["function"]["parameters"]
    named: Any = {"type": "json_schema", "json_schema": {"name": "room", "schema": schema}}
    answer = await door.chat.completions.create(
        model="bot:1",
        messages=MESSAGES,
        max_tokens=60,
        response_format=named,
    )
    assert json.loads(answer.choices[0].message.content or "")["room"] in ("kitchen", "hall")
    chosen = await door.completions.create(
        model="bot:1", prompt="x", extra_body={"structured_outputs": {"choice": ["yes", "no"]}}
    )
    assert chosen.choices[0].text in ("yes", "no")


async def test_a_tool_that_must_be_called_is_called(door: openai.AsyncOpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "bot:1", "messages": MESSAGES, "tools": [FIND], "max_tokens": 200,
        "tool_choice": {"type": "function", "function": {"name": "find"}},
    }  # fmt: skip
    whole = await door.chat.completions.create(**asked)
    (call,) = whole.choices[0].message.tool_calls
    assert json.loads(call.function.arguments)["room"] in ("kitchen", "hall")
    async with door.chat.completions.stream(**asked) as stream:
        final = await stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls or []
    assert call.function.name == "find"
    assert json.loads(call.function.arguments)["room"] in ("kitchen", "hall")


async def test_a_schema_that_cannot_be_is_refused_and_an_innocent_stream_goes_on(
    door: openai.AsyncOpenAI,
) -> None:
    innocent = await door.completions.create(
        model="tiny", prompt="x", max_tokens=100, temperature=0, stream=True,
        stream_options={"include_usage": True}, extra_body={"ignore_eos": True},
    )  # fmt: skip
    schemas: list[Any] = [
        {"type": "integer", "minimum": 5, "maximum": 1},
        {"type": "no such type"},
    ]
    for schema in schemas:
        with pytest.raises(openai.BadRequestError) as caught:
            await door.chat.completions.create(
                model="tiny",
                messages=MESSAGES,
                max_tokens=20,
                response_format={
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": schema},
                },
            )
        assert isinstance(caught.value.body, dict)
        assert caught.value.body["graft"]["next_step"]
    parts = [part async for part in innocent]
    assert parts[-1].usage is not None
    assert parts[-1].usage.completion_tokens == 100


async def test_embeddings_are_of_length_one_and_the_adapters_own(door: openai.AsyncOpenAI) -> None:
    of = {
        model: (await door.embeddings.create(model=model, input=["a door", "a cat"])).data
        for model in ("tiny", "bot:1")
    }
    for data in of.values():
        assert sum(value**2 for value in data[0].embedding) == pytest.approx(1, abs=1e-3)
        assert data[0].embedding != data[1].embedding
    assert of["tiny"][0].embedding != pytest.approx(of["bot:1"][0].embedding, abs=1e-3)


async def test_who_hangs_up_frees_the_engine(
    served: RunningInference, door: openai.AsyncOpenAI
) -> None:
    stream = await door.completions.create(
        model="bot:1", prompt="x", max_tokens=240, stream=True, extra_body={"ignore_eos": True}
    )
    async for _ in stream:
        break
    await stream.close()
    await eventually(lambda: served.engine.unfinished() == 0)
