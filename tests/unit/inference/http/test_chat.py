"""Chats through OpenAI's own client: answers, streams, and what each field means."""

from __future__ import annotations

import openai
import pytest
from openai.types.chat import (
    ChatCompletionChunk,
    ChatCompletionContentPartTextParam,
    ChatCompletionMessageFunctionToolCallParam,
    ChatCompletionMessageParam,
)

from tests.support.inference import RunningInference

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]


async def chunks(client: openai.AsyncOpenAI, **options: object) -> list[ChatCompletionChunk]:
    given = {"model": "tiny", "messages": HELLO, "max_tokens": 8, "temperature": 0, **options}
    stream = await client.chat.completions.create(stream=True, **given)  # type: ignore[call-overload]
    return [chunk async for chunk in stream]


async def test_a_chat_is_answered_by_the_version_that_its_model_names(
    service: RunningInference, client: openai.AsyncOpenAI
) -> None:
    first, second = await service.publish("bot", "one", "two")
    await service.promote("bot", 1)
    answers = {}
    for model in ("tiny", "bot", "bot@production", "bot:1", "bot:2"):
        answers[model] = await client.chat.completions.create(
            model=model, messages=HELLO, max_tokens=8, temperature=0
        )
        assert answers[model].model == model
    text = {model: answer.choices[0].message.content for model, answer in answers.items()}
    assert text["bot"] == text["bot@production"] == text["bot:1"]
    assert len({text["tiny"], text["bot:1"], text["bot:2"]}) == 3
    graft = answers["bot@production"].model_extra or {}
    assert graft["graft"]["version"] == first.name
    assert graft["graft"]["version_digest"] == first.digest
    assert (answers["bot:2"].model_extra or {})["graft"]["version"] == second.name
    prints = {model: answer.system_fingerprint for model, answer in answers.items()}
    assert prints["bot"] == prints["bot:1"]
    assert len({prints["tiny"], prints["bot:1"], prints["bot:2"]}) == 3


async def test_a_stream_says_what_the_whole_answer_says(client: openai.AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=8, temperature=0
    )
    parts = await chunks(client, stream_options={"include_usage": True})
    *texts, usage = parts
    assert parts[0].choices[0].delta.role == "assistant"
    assert "".join(each.choices[0].delta.content or "" for each in texts) == (
        whole.choices[0].message.content
    )
    assert [each.choices[0].finish_reason for each in texts] == [None] * (len(texts) - 1) + [
        "length"
    ]
    assert whole.choices[0].finish_reason == "length"
    assert usage.choices == []
    assert usage.usage == whole.usage
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 8
    assert len({each.id for each in parts}) == 1
    assert whole.system_fingerprint == texts[0].system_fingerprint


async def test_a_stream_names_its_version_first_and_last(
    service: RunningInference, client: openai.AsyncOpenAI
) -> None:
    (version,) = await service.publish("bot", "one")
    parts = await chunks(client, model="bot")
    for part in (parts[0], parts[-1]):
        assert (part.model_extra or {})["graft"]["version"] == version.name
    assert not any("graft" in (part.model_extra or {}) for part in parts[1:-1])


async def test_usage_comes_only_where_asked_for_and_with_every_event_where_that_is_asked(
    client: openai.AsyncOpenAI,
) -> None:
    assert not any(part.usage for part in await chunks(client))
    options = {"include_usage": True, "continuous_usage_stats": True}
    counted = [part.usage for part in await chunks(client, stream_options=options)]
    assert [each.completion_tokens for each in counted[1:] if each] == [*range(1, 9), 8]


async def test_one_question_can_have_several_answers(client: openai.AsyncOpenAI) -> None:
    several = await client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=8, n=3, seed=5
    )
    assert [each.index for each in several.choices] == [0, 1, 2]
    texts = [each.message.content for each in several.choices]
    assert len(set(texts)) == 3
    assert several.usage is not None
    assert several.usage.completion_tokens == 24
    parts = await chunks(client, n=3, seed=5, temperature=1)
    streamed = ["", "", ""]
    for part in parts:
        streamed[part.choices[0].index] += part.choices[0].delta.content or ""
    assert streamed == texts
    assert sum(part.choices[0].delta.role == "assistant" for part in parts) == 3


async def test_log_probabilities_come_for_every_token(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=4, temperature=0, logprobs=True, top_logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(each.token for each in logprobs.content) == answer.choices[0].message.content
    assert all(len(each.top_logprobs) == 2 for each in logprobs.content)
    assert bytes(logprobs.content[0].bytes or ()).decode() == logprobs.content[0].token
    parts = await chunks(client, max_tokens=4, logprobs=True, top_logprobs=2)
    streamed = [
        each
        for part in parts
        if (found := part.choices[0].logprobs) is not None
        for each in found.content or ()
    ]
    assert streamed == logprobs.content


async def test_parts_of_text_are_joined_and_a_developer_is_the_system(
    client: openai.AsyncOpenAI,
) -> None:
    async def ask(*messages: ChatCompletionMessageParam) -> str | None:
        answer = await client.chat.completions.create(
            model="tiny", messages=messages, max_tokens=8, temperature=0
        )
        return answer.choices[0].message.content

    parts: list[ChatCompletionContentPartTextParam] = [
        {"type": "text", "text": "hel"},
        {"type": "text", "text": "lo"},
    ]
    assert await ask({"role": "user", "content": parts}) == await ask(HELLO[0])
    assert await ask({"role": "developer", "content": "be kind"}, HELLO[0]) == await ask(
        {"role": "system", "content": "be kind"}, HELLO[0]
    )


async def test_the_newer_name_of_max_tokens_means_the_same(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="tiny", messages=HELLO, max_completion_tokens=3
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


async def test_a_stop_string_ends_the_answer(client: openai.AsyncOpenAI) -> None:
    free = await client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=20, temperature=0
    )
    text = free.choices[0].message.content or ""
    answer = await client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=20, temperature=0, stop=text[5:7]
    )
    assert answer.choices[0].message.content == text[: text.index(text[5:7])]
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("field", ["metadata", "store", "service_tier", "prompt_cache_key"])
async def test_fields_that_change_no_answer_are_taken(
    client: openai.AsyncOpenAI, field: str
) -> None:
    value = {"metadata": {"a": "b"}, "store": True}.get(field, "auto")
    answer = await client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=2, extra_body={field: value}
    )
    assert answer.choices


async def test_a_conversation_with_calls_of_tools_in_it_is_rendered(
    client: openai.AsyncOpenAI,
) -> None:
    call: ChatCompletionMessageFunctionToolCallParam = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "find", "arguments": '{"order": 7}'},
    }
    answer = await client.chat.completions.create(
        model="tiny",
        max_tokens=4,
        messages=[
            *HELLO,
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": "it is there"},
        ],
    )
    assert answer.choices[0].finish_reason == "length"
