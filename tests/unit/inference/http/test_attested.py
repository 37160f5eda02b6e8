"""What a service attests of an answer, over HTTP: whole, streamed, of several answers and of several prompts."""

from __future__ import annotations

import openai
from graft.attestation import Attestation, text_digest
from graft.attested import compare, read_saved

from tests.support.inference import RunningInference

ASKED = {"model": "bot", "max_tokens": 8, "temperature": 0}
MESSAGES = [{"role": "user", "content": "hi"}]


async def test_a_saved_answer_holds_and_one_that_was_changed_does_not(
    service: RunningInference, client: openai.AsyncOpenAI
) -> None:
    await service.publish("bot", "one")
    chat = await client.chat.completions.create(**ASKED, messages=MESSAGES, n=2)  # type: ignore[call-overload]
    text = await client.completions.create(**ASKED, prompt="hello")  # type: ignore[call-overload]
    for answer, choices in ((chat, 2), (text, 1)):
        attestation, said = read_saved(answer.model_dump_json())
        found = compare(attestation.statement, said)
        assert all(one.holds for one in found), found
        assert {f"answers[{n}].text" for n in range(choices)} <= {one.what for one in found}
    text.choices[0].text += "!"
    attestation, said = read_saved(text.model_dump_json())
    wrong = [one.what for one in compare(attestation.statement, said) if not one.holds]
    assert wrong == ["answers[0].text"]


async def test_a_streams_last_event_attests_all_of_it(
    service: RunningInference, client: openai.AsyncOpenAI
) -> None:
    await service.publish("bot", "one")
    stream = await client.chat.completions.create(**ASKED, messages=MESSAGES, stream=True)  # type: ignore[call-overload]
    parts = [part async for part in stream]
    attested = [
        part.model_extra["graft"]["attestation"]
        for part in parts
        if "attestation" in (part.model_extra or {}).get("graft", {})
    ]
    (statement,) = [Attestation.of_envelope(one).statement for one in attested]
    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    assert statement["answers"][0]["text"] == text_digest(text)


async def test_several_prompts_have_an_attestation_each(
    service: RunningInference, client: openai.AsyncOpenAI
) -> None:
    await service.publish("bot", "one")
    answer = await client.completions.create(**ASKED, prompt=["one", "two"])  # type: ignore[call-overload]
    graft = (answer.model_extra or {})["graft"]
    said = [Attestation.of_envelope(one).statement for one in graft["attestations"]]
    assert [one["prompt"]["text"] for one in said] == [text_digest("one"), text_digest("two")]
    texts = [one["answers"][0]["text"] for one in said]
    assert texts == [text_digest(each.text) for each in answer.choices]
