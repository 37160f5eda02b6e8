"""What is wrong with a request is said in OpenAI's form, with a status, the field and the next step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest
from graft.errors import STATUS, GraftError, Reason

from services.inference.http.errors import error_body, error_headers, status_of
from tests.support.inference import RunningInference, start_inference
from tests.support.waiting import eventually
from tests.unit.inference.http.conftest import client_of

CHAT = "/chat/completions"
MESSAGES = [{"role": "user", "content": "hello"}]


async def refusal(client: openai.AsyncOpenAI, path: str, body: Any) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as caught:
        await client.post(path, body=body, cast_to=object)
    return caught.value


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": MESSAGES, **fields}


def user(content: Any, **more: Any) -> dict[str, Any]:
    return chat(messages=[{"role": "user", "content": content, **more}])


def tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": function}


# Path, body, the field that is named, and what the message says.
WRONG = [
    (CHAT, {"messages": MESSAGES}, "model", "is missing"),
    (CHAT, {"model": "", "messages": MESSAGES}, "model", "at least 1 character"),
    (CHAT, {"model": "tiny"}, "messages", "is missing"),
    (CHAT, chat(messages=[]), "messages", "is empty"),
    (CHAT, chat(messages=[1] * 100_000), "messages[0]", "should be an object"),
    (CHAT, chat(messages=MESSAGES * 65_537), "messages", "at most 65536"),
    (CHAT, chat(messages=3), "messages", "valid array"),
    (CHAT, chat(messages=[{"content": "x"}]), "messages[0].role", "is missing"),
    (CHAT, chat(messages=[{"role": "boss", "content": "x"}]), "messages[0].role", "'boss'"),
    (CHAT, chat(messages=[*MESSAGES, {"role": "assistant", "content": "x"}]), "messages", "ends"),
    (CHAT, user(None), "messages[0].content", "is missing"),
    (CHAT, user(3), "messages[0].content", "neither a text"),
    (CHAT, user([3]), "messages[0].content[0]", "is not a part"),
    (CHAT, user([{"type": "text"}]), "messages[0].content[0].text", "is not a text"),
    (CHAT, chat(temperature=3), "temperature", "0 to 2"),
    (CHAT, chat(temperature="hot"), "temperature", "number"),
    (CHAT, chat(top_p=0), "top_p", "above 0"),
    (CHAT, chat(max_tokens=0), "max_tokens", "greater than or equal to 1"),
    (CHAT, chat(max_tokens=2**40), "max_tokens", "less than or equal"),
    (CHAT, chat(n=0), "n", "n is 0"),
    (CHAT, chat(n=10**6), "n", "n is 1000000"),
    (CHAT, chat(stop=[""]), "stop", "empty"),
    (CHAT, chat(logprobs=True, top_logprobs=21), "logprobs", "0 to 20"),
    (CHAT, chat(top_logprobs=2), "top_logprobs", "without logprobs"),
    (CHAT, chat(priority=101), "priority", "101"),
    (CHAT, chat(stop_token_ids=[2**40]), "stop_token_ids", "token ids"),
    (CHAT, chat(tools=[tool()]), "tools[0].function.name", "is missing"),
    (CHAT, chat(tool_choice="always"), "tool_choice", "'always'"),
    (CHAT, chat(tool_choice={"type": "function"}), "tool_choice", "names no function"),
    (CHAT, chat(tool_choice="required"), "tool_choice", "tool"),
    (CHAT, chat(response_format={"type": "xml"}), "response_format.type", "'xml'"),
    (CHAT, chat(response_format={"type": "json_schema"}), "response_format.json_schema.schema", ""),
    (CHAT, chat(guided_regex="a", guided_choice=["b"]), "guided_choice", "so is guided_regex"),
    (CHAT, chat(guided_choice=[]), "response_format", "is empty"),
    ("/completions", {"model": "tiny", "prompt": {"a": 1}}, "prompt", "valid"),
    ("/completions", {"model": "tiny", "prompt": []}, "prompt", "is empty"),
    ("/completions", {"model": "tiny", "prompt": ["x"] * 129}, "prompt", "129"),
    ("/completions", {"model": "tiny", "prompt": [4096]}, "prompt", "4096"),
    ("/embeddings", {"model": "tiny", "input": []}, "input", "is empty"),
    ("/embeddings", {"model": "tiny", "input": "x", "encoding_format": "hex"}, "encoding_format", ""),
]  # fmt: skip


async def test_wrong_requests_name_their_field(
    service: RunningInference, client: openai.AsyncOpenAI
) -> None:
    for path, body, field, says in WRONG:
        error = await refusal(client, path, body)
        assert error.status_code == 400, body
        assert isinstance(error, openai.BadRequestError)
        assert isinstance(error.body, dict)
        assert error.body["param"] == field, body
        assert error.body["type"] == "invalid_request_error"
        assert says in error.body["message"], body
        assert error.body["graft"]["next_step"] in error.body["message"], body
        assert "sampling." not in error.body["message"]
    assert service.fake.unfinished() == 0


REFUSED = [
    (CHAT, chat(logit_bias={"5": 1})),
    (CHAT, chat(audio={"voice": "alloy"})),
    (CHAT, chat(modalities=["audio"])),
    (CHAT, chat(functions=[{"name": "f"}])),
    (CHAT, chat(best_of=2)),
    (CHAT, chat(use_beam_search=True)),
    (CHAT, chat(chat_template="{{ x }}")),
    (CHAT, user([{"type": "image_url", "image_url": {"url": "x"}}])),
    (CHAT, user([{"type": "input_audio", "input_audio": {}}])),
    (CHAT, chat(tools=[{"type": "custom", "custom": {"name": "x"}}])),
    ("/completions", {"model": "tiny", "prompt": "x", "echo": True}),
    ("/completions", {"model": "tiny", "prompt": "x", "suffix": "y"}),
    ("/embeddings", {"model": "tiny", "input": "x", "dimensions": 8}),
]


async def test_what_is_not_done_is_refused_by_name(client: openai.AsyncOpenAI) -> None:
    for path, body in REFUSED:
        error = await refusal(client, path, body)
        assert error.status_code == 400, body
        assert isinstance(error.body, dict)
        assert error.code == "unsupported_parameter", body
        assert error.body["param"].split("[")[0].split(".")[0] in body, body
        assert error.body["graft"]["next_step"]


async def test_what_asks_for_nothing_is_taken(client: openai.AsyncOpenAI) -> None:
    body = chat(logit_bias={}, best_of=1, audio=None, modalities=["text"], echo=False, unheard_of=1,
                max_tokens=1, response_format={"type": "text"}, tools=[], tool_choice="none")  # fmt: skip
    await client.post(CHAT, body=body, cast_to=object)


@pytest.mark.parametrize(
    "model", ["nobody", "nobody:3", "nobody@canary", "bot:7", "bot@canary", "other/bot"]
)
async def test_a_model_that_is_not_there_is_404(
    service: RunningInference, client: openai.AsyncOpenAI, model: str
) -> None:
    await service.publish("bot", "one")
    error = await refusal(client, CHAT, chat(model=model))
    assert isinstance(error, openai.NotFoundError)
    assert (error.code, error.param) == ("model_not_found", "model")


async def test_what_is_no_reference_and_no_json_is_400(client: openai.AsyncOpenAI) -> None:
    error = await refusal(client, CHAT, chat(model="No Name!"))
    assert (error.status_code, error.param) == (400, "model")
    for content in (b"", b"{", b"[]", b'"x"', b'{"model": "\xff"}', b'{"model": "\\ud800"}'):
        with pytest.raises(openai.BadRequestError):
            await client.post(CHAT, content=content, cast_to=object)


async def test_a_prompt_that_is_too_long_says_so_as_openai_does(client: openai.AsyncOpenAI) -> None:
    error = await refusal(client, CHAT, user("x" * 600))
    assert (error.status_code, error.code, error.param) == (
        400,
        "context_length_exceeded",
        "messages",
    )
    assert isinstance(error.body, dict)
    assert error.body["graft"]["max_context_tokens"] == "512"


async def test_paths_and_methods_that_are_not_there(client: openai.AsyncOpenAI) -> None:
    assert (await refusal(client, "/nothing", {})).status_code == 404
    with pytest.raises(openai.APIStatusError) as caught:
        await client.get(CHAT, cast_to=object)
    assert caught.value.status_code == 405
    assert caught.value.response.headers["allow"] == "POST"


async def test_an_engine_that_dies_in_the_middle_of_a_stream_is_an_event_of_it(
    service: RunningInference, client: openai.AsyncOpenAI
) -> None:
    service.fake.hold(2)
    stream = await client.completions.create(model="tiny", prompt="x", max_tokens=9, stream=True)
    text = ""

    async def read() -> None:
        nonlocal text
        async for part in stream:
            text += part.choices[0].text
            if len(text) == 2:
                service.fake.die()

    with pytest.raises(openai.APIError) as caught:
        await read()
    assert len(text) == 2
    assert caught.value.code == "engine_dead"
    assert "started anew" in caught.value.message


async def test_an_innocent_stream_goes_on_beside_wrong_requests(
    service: RunningInference, client: openai.AsyncOpenAI
) -> None:
    service.fake.hold(2)
    stream = await client.completions.create(model="tiny", prompt="x", max_tokens=9, stream=True)
    for path, body, *_ in WRONG:
        await refusal(client, path, body)
    for path, body in REFUSED:
        await refusal(client, path, body)
    await service.fake.release()
    parts = [part async for part in stream]
    assert sum(len(part.choices[0].text) for part in parts) == 9
    assert parts[-1].choices[0].finish_reason == "length"
    await eventually(lambda: service.fake.unfinished() == 0)


async def test_who_asks_too_much_is_told_when_to_come_back(tmp_path: Path) -> None:
    limits = {"tiny": {"tokens_per_s": 1, "burst_tokens": 20}}
    async with (
        start_inference(tmp_path, adapter_limits=limits, rate_limit_wait_s=0) as service,
        client_of(service) as client,
    ):
        await client.completions.create(model="tiny", prompt="hello", max_tokens=15)
        with pytest.raises(openai.RateLimitError) as caught:
            await client.completions.create(model="tiny", prompt="hello", max_tokens=15)
        assert caught.value.type == "rate_limit_error"
        assert int(caught.value.response.headers["retry-after"]) >= 1
        assert int(caught.value.response.headers["retry-after-ms"]) > 0


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_has_a_status(reason: Reason) -> None:
    error = GraftError(reason, "what is wrong", next_step="Mend it.", retry_after_s=1.2, field="x")
    assert 400 <= status_of(error) < 600
    body = error_body(error)["error"]
    assert isinstance(body, dict)
    assert set(body) == {"message", "type", "param", "code", "graft"}
    # OpenAI's clients try these again by themselves.
    again = status_of(error) in (408, 409, 429) or status_of(error) >= 500
    lasting = STATUS[reason].name in (
        "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "OUT_OF_RANGE",
        "PERMISSION_DENIED", "UNAUTHENTICATED", "UNIMPLEMENTED",
    )  # fmt: skip
    assert not (again and lasting)


def test_who_may_try_again_is_told_when() -> None:
    error = GraftError(Reason.RATE_LIMITED, "too much", next_step="Wait.", retry_after_s=1.2)
    assert error_headers(error) == {"Retry-After": "2", "retry-after-ms": "1200"}
    assert status_of(error) == 429
    lost = GraftError(Reason.QUOTA_EXCEEDED, "too much", next_step="Ask for more.")
    assert error_headers(lost) == {"x-should-retry": "false"}
