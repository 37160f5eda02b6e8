"""Models, probes and token counts, and who gets which part of a weighted alias."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from services.inference.http.convert import chat_question, completion_questions
from services.inference.http.schemas import ChatRequest, CompletionRequest
from tests.support.inference import RunningInference


async def test_models_are_the_base_and_every_name_of_each_adapter(
    service: RunningInference, client: openai.AsyncOpenAI
) -> None:
    first, _ = await service.publish("bot", "one", "two")
    await service.promote("bot", 1)
    await client.completions.create(model="bot", prompt="x", max_tokens=1)
    listed = {model.id: model async for model in client.models.list()}
    assert {"tiny", "bot", "bot@production", "bot:1"} <= set(listed)
    said = {name: model.model_extra or {} for name, model in listed.items()}
    assert said["bot"]["graft"] == {
        "version": first.name,
        "version_digest": first.digest,
        "resident": True,
    }
    assert said["tiny"]["max_model_len"] == 512
    for name, model in listed.items():
        assert await client.models.retrieve(name) == model


async def test_a_version_that_is_not_loaded_is_a_model_too(
    service: RunningInference, client: openai.AsyncOpenAI
) -> None:
    _, second = await service.publish("bot", "one", "two")
    model = await client.models.retrieve("default/bot:2")
    assert model.id == "bot:2"
    said = (model.model_extra or {})["graft"]
    assert (said["version"], said["resident"]) == (second.name, False)
    for name in ("nobody", "bot:3"):
        with pytest.raises(openai.NotFoundError) as caught:
            await client.models.retrieve(name)
        assert caught.value.code == "model_not_found"


async def test_tokens_are_counted_without_an_answer(client: openai.AsyncOpenAI) -> None:
    async def count(**body: Any) -> Any:
        return await client.post("../tokenize", body={"model": "tiny", **body}, cast_to=object)

    assert (await count(prompt="hello"))["count"] == 6
    talk = await count(messages=[{"role": "user", "content": "hello"}])
    answer = await client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "hello"}], max_tokens=1
    )
    assert answer.usage is not None
    assert talk["count"] == answer.usage.prompt_tokens
    assert talk["max_model_len"] == 512
    with pytest.raises(openai.BadRequestError, match="prompt"):
        await count()


def test_the_session_is_the_header_or_else_the_user() -> None:
    asked = ChatRequest.model_validate(
        {"model": "m", "messages": [{"role": "user", "content": "x"}], "user": "u"}
    )
    assert chat_question(asked, 10, "").session_key == "u"
    assert chat_question(asked, 10, "s").session_key == "s"
    completion = CompletionRequest.model_validate({"model": "m", "prompt": ["a", "b"], "user": "u"})
    assert [each.session_key for each in completion_questions(completion, "")] == ["u", "u"]


def test_what_is_left_out_has_the_contracts_defaults() -> None:
    asked = ChatRequest.model_validate(
        {"model": "m", "messages": [{"role": "user", "content": ""}]}
    )
    question = chat_question(asked, 10, "")
    assert question.sampling.max_tokens == 0
    assert question.sampling.temperature == 1
    assert (question.n, question.tool_choice, question.parallel_tool_calls) == (1, "", True)
