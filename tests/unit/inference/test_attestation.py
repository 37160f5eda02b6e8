"""What a service attests of its answers: the same whole and streamed, true, and signed where it has a key."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from graft import convert
from graft.attestation import Attestation, check_signature, text_digest, token_digest
from graft.attested import compare, read_saved
from graft.cli.output import to_json
from graft.errors import GraftError, Reason
from graft.inference.v1 import inference_service_pb2 as pb
from graft.keys import load_trusted, new_key
from graft.version import VERSION

from services.inference.attestation.attestor import attestation_json
from tests.support.inference import (
    BASE,
    FINGERPRINT,
    RunningInference,
    question,
    start_inference,
)


def attested(message: pb.GenerateResponse) -> Attestation:
    """The attestation of an answer, as a client sees it."""
    found = convert.answer(message).attestation
    assert found is not None
    return found


async def test_it_says_what_answered_how_and_what(service: RunningInference) -> None:
    (version,) = await service.publish("bot", "one")
    call = question("bot:1", "hello", max_tokens=6, stop=["zzz"], seed=3)
    answer = await service.stub.Generate(call, metadata=(("x-request-id", "r-17"),))
    found = attested(answer)
    assert not found.signatures, "the service has no key"
    statement = found.statement
    ids = service.engine.tokenize("hello", special_tokens=True)
    assert statement.pop("time").endswith("Z")
    assert statement == {
        "request_id": "r-17",
        "base": {"name": BASE, "fingerprint": FINGERPRINT},
        "adapter": {"version": version.name, "digest": version.digest},
        "engine": {"name": "fake", "version": VERSION},
        "sampling": {
            "max_tokens": 6,
            "temperature": 0.0,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": 3,
            "stop": ["zzz"],
            "ignore_eos": False,
            "min_tokens": 0,
            "include_stop": False,
            "special_tokens_text": False,
        },
        "prompt": {"count": len(ids), "tokens": token_digest(ids), "text": text_digest("hello")},
        "answers": [
            {
                "index": 0,
                "finish": "length",
                "count": 6,
                "tokens": token_digest(answer.token_ids),
                "text": text_digest(answer.text),
            }
        ],
    }


async def test_the_sampling_is_as_it_was_used_and_not_as_it_was_asked(
    service: RunningInference,
) -> None:
    whole = pb.GenerateRequest(model="tiny", prompt="hello")
    answer = await service.stub.Generate(whole)
    statement = attested(answer).statement
    assert statement["sampling"]["max_tokens"] == answer.usage.completion_tokens
    assert statement["adapter"] is None, "the base alone"


async def test_a_conversation_has_no_text_of_a_prompt(service: RunningInference) -> None:
    messages = [pb.ChatMessage(role="user", content="hi")]
    answer = await service.stub.Chat(pb.ChatRequest(model="tiny", messages=messages))
    prompt = attested(answer).statement["prompt"]
    assert (prompt["text"], prompt["count"]) == ("", answer.usage.prompt_tokens)


async def test_a_streams_last_message_attests_the_whole_answer(service: RunningInference) -> None:
    call = question("tiny", max_tokens=20)
    parts = [part async for part in service.stub.StreamGenerate(call)]
    assert len(parts) > 1
    assert not any(part.HasField("attestation") for part in parts[:-1])
    (answer,) = attested(parts[-1]).statement["answers"]
    assert answer["text"] == text_digest("".join(part.text for part in parts))
    assert answer["tokens"] == token_digest(one for part in parts for one in part.token_ids)
    (whole,) = attested(await service.stub.Generate(call)).statement["answers"]
    assert whole == answer


async def test_what_is_long_among_the_sampling_parameters_is_said_by_its_digest(
    service: RunningInference,
) -> None:
    answer = await service.stub.Generate(question("tiny", stop=["x" * 300, "é" * 3]))
    assert attested(answer).statement["sampling"]["stop"] == [text_digest("x" * 300), "é" * 3]
    assert len(attested(answer).statement_json) < 2000


async def test_with_a_key_it_is_signed_and_whoever_trusts_the_key_can_tell(tmp_path: Path) -> None:
    key = tmp_path / "service.key"
    public = await asyncio.to_thread(new_key, key)
    stranger = await asyncio.to_thread(new_key, tmp_path / "other.key")
    (trusted,) = load_trusted([tmp_path / "service.key.pub"])
    async with start_inference(tmp_path, attestation_key=key) as service:
        found = attested(await service.ask("tiny"))
    assert check_signature(found, [trusted]) == (public.key_id, "")
    named = f"it is signed by {public.key_id}, which is not trusted"
    assert check_signature(found, [stranger]) == ("", named)
    # What HTTP clients get is the same, and whole.
    assert Attestation.of_envelope(json.loads(json.dumps(attestation_json(found)))) == found


async def test_a_saved_answer_is_held_against_its_attestation(service: RunningInference) -> None:
    await service.publish("bot", "one")
    answer = convert.answer(await service.ask("bot:1"))
    attestation, said = read_saved(to_json(answer))
    said.prompt = "hello"
    found = compare(attestation.statement, said)
    assert all(one.holds for one in found), found
    assert {one.what for one in found} == {
        "adapter.version",
        "adapter.digest",
        "base.name",
        "base.fingerprint",
        "engine.name",
        "prompt.count",
        "prompt.text",
        "usage.completion_tokens",
        "answers[0].text",
        "answers[0].tokens",
        "answers[0].finish",
    }


async def test_an_answer_that_was_broken_off_is_attested_by_nobody(
    service: RunningInference,
) -> None:
    service.fake.hold(after_tokens=2)
    call = service.stub.StreamGenerate(question("tiny", max_tokens=20))
    part = await call.read()
    assert isinstance(part, pb.GenerateResponse)
    assert not part.HasField("attestation")
    call.cancel()
    await service.fake.release()


def test_a_key_that_is_none_is_refused_at_the_start_naming_the_file(tmp_path: Path) -> None:
    from services.inference.attestation.attestor import Attestor

    path = tmp_path / "service.key"
    path.write_text("no key")
    with pytest.raises(GraftError) as caught:
        Attestor.from_file(path)
    assert caught.value.reason is Reason.INVALID_REQUEST
    assert str(path) in caught.value.message
