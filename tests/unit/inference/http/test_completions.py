"""Completions through OpenAI's own client."""

from __future__ import annotations

import openai

from tests.support.inference import RunningInference


async def test_a_completion_is_what_grpc_answers(
    service: RunningInference, client: openai.AsyncOpenAI
) -> None:
    (version,) = await service.publish("bot", "one")
    over_grpc = await service.ask("bot", "hello", max_tokens=8)
    answer = await client.completions.create(
        model="bot", prompt="hello", max_tokens=8, temperature=0
    )
    assert answer.choices[0].text == over_grpc.text
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == over_grpc.usage.prompt_tokens
    assert (answer.model_extra or {})["graft"]["version"] == version.name


async def test_token_ids_are_a_prompt_too(client: openai.AsyncOpenAI) -> None:
    text = await client.completions.create(model="tiny", prompt="hello", temperature=0)
    ids = await client.completions.create(model="tiny", prompt=[256, *b"hello"], temperature=0)
    assert ids.choices[0].text == text.choices[0].text
    assert text.usage is not None
    assert text.usage.completion_tokens == 16, "OpenAI's default"


async def test_several_prompts_have_their_answers_in_order(client: openai.AsyncOpenAI) -> None:
    alone = [
        (await client.completions.create(model="tiny", prompt=each, max_tokens=6, temperature=0))
        .choices[0]
        .text
        for each in ("one", "two", "three")
    ]
    together = await client.completions.create(
        model="tiny", prompt=["one", "two", "three"], max_tokens=6, temperature=0
    )
    assert [each.text for each in together.choices] == alone
    assert [each.index for each in together.choices] == [0, 1, 2]
    assert together.usage is not None
    assert together.usage.completion_tokens == 18
    assert all((each.model_extra or {})["graft"]["base"] for each in together.choices)
    stream = await client.completions.create(
        model="tiny",
        prompt=["one", "two", "three"],
        max_tokens=6,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    texts, usage = ["", "", ""], None
    async for part in stream:
        if part.choices:
            texts[part.choices[0].index] += part.choices[0].text
        usage = part.usage or usage
    assert texts == alone
    assert usage == together.usage


async def test_each_of_several_prompts_can_have_several_answers(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(
        model="tiny", prompt=["one", "two"], max_tokens=6, n=2, seed=3
    )
    assert [each.index for each in answer.choices] == [0, 1, 2, 3]
    assert len({each.text for each in answer.choices}) == 4


async def test_log_probabilities_say_where_their_tokens_are(client: openai.AsyncOpenAI) -> None:
    whole = await client.completions.create(
        model="tiny", prompt="hello", max_tokens=5, temperature=0, logprobs=2
    )
    logprobs = whole.choices[0].logprobs
    assert logprobs is not None
    assert "".join(logprobs.tokens or ()) == whole.choices[0].text
    assert logprobs.text_offset == [0, 1, 2, 3, 4]
    stream = await client.completions.create(
        model="tiny", prompt="hello", max_tokens=5, temperature=0, logprobs=2, stream=True
    )
    found = [part.choices[0].logprobs async for part in stream]
    assert [place for each in found if each for place in each.text_offset or ()] == [0, 1, 2, 3, 4]


async def test_vllms_own_fields_are_understood(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(
        model="tiny",
        prompt="hello",
        max_tokens=5,
        extra_body={"top_k": 5, "min_p": 0.1, "ignore_eos": True, "return_token_ids": True,
                    "repetition_penalty": 1.1, "priority": 3},
    )  # fmt: skip
    ids = (answer.choices[0].model_extra or {})["token_ids"]
    assert bytes(ids).decode() == answer.choices[0].text
