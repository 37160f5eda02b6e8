"""Requests that name a blend: one version is derived for all that mean the same, and computed once."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from graft.errors import GraftError, Reason
from graft.inference.v1 import inference_service_pb2 as pb
from graft.keys import load_key, new_key
from graft.signatures import sign

from services.inference.blends.fake import FakeBlender
from services.inference.engines.fake import FakeEngine
from services.inference.registry.memory import MemoryRegistry
from tests.support.inference import (
    BASE,
    FINGERPRINT,
    RunningInference,
    adapter_resource,
    question,
    start_inference,
    write_adapter,
)
from tests.support.waiting import eventually
from tests.unit.inference.refusals import refusal

BLEND = "0.7*bot@production+0.3*tone:1"
PINNED = "0.7*bot:1+0.3*tone:1"


class OpenRegistry(MemoryRegistry):
    """Stays when a service ends."""

    async def close(self) -> None:
        return


@pytest.fixture
def blender() -> FakeBlender:
    return FakeBlender()


@pytest.fixture
async def service(tmp_path: Path, blender: FakeBlender) -> Any:
    async with start_inference(tmp_path, blender=blender) as running:
        await publish(running)
        yield running


async def publish(running: RunningInference) -> None:
    """bot@production is bot:1, and there is a second; tone has two versions without an alias."""
    await running.publish("bot", "one", "two")
    await running.publish("tone", "soft", "loud")
    await running.promote("bot", 1)


async def refused(service: RunningInference, model: str) -> GraftError:
    return await refusal(service.stub.Generate(question(model)))


async def next_of(call: Any) -> pb.GenerateResponse:
    """The next message of a stream that goes on."""
    message = await call.read()
    assert isinstance(message, pb.GenerateResponse)
    return message


def stages(service: RunningInference, stage: str) -> float:
    """How often a stage was passed."""
    name = "graft_inference_swap_stage_seconds_count"
    registry = service.server.metrics_registry
    return registry.get_sample_value(name, {"stage": stage}) or 0.0


async def test_a_blend_answers_as_itself_and_says_what_it_is_made_of(
    service: RunningInference, blender: FakeBlender
) -> None:
    answer = await service.ask(BLEND)
    alone = {(await service.ask(model)).text for model in ("bot", "tone:1", "tiny")}
    assert len({answer.text, *alone}) == 4
    said = answer.provenance
    assert said.blend == PINNED
    assert said.version.startswith("namespaces/default/blends/bot+tone/versions/")
    assert said.version_digest.startswith("sha256:")
    assert said.base_fingerprint == FINGERPRINT
    parts = {one.version: (one.version_digest, one.weight) for one in said.parts}
    bot_said = (await service.ask("bot")).provenance
    tone_said = (await service.ask("tone:1")).provenance
    assert parts == {
        bot_said.version: (bot_said.version_digest, 0.7),
        tone_said.version: (tone_said.version_digest, 0.3),
    }
    assert (await service.ask(BLEND)).text == answer.text
    assert blender.blended == [PINNED]


async def test_vectors_of_several_texts_are_the_same_blends(service: RunningInference) -> None:
    texts = [pb.EmbedInput(text=text) for text in ("a", "b", "a")]
    made = await service.stub.Embed(pb.EmbedRequest(model=BLEND, inputs=texts))
    assert made.provenance.blend == PINNED
    first, second, third = (list(one.values) for one in made.embeddings)
    assert first == third != second


async def test_it_is_one_version_however_it_is_written(
    service: RunningInference, blender: FakeBlender
) -> None:
    written = (
        BLEND,
        "0.30*tone:1 + .7*bot",
        "0.7*bot:1+0.3*tone:1~cat",
        "0.4*bot+0.3*tone:1+0.3*bot:1",
    )
    digests = {(await service.ask(one)).provenance.version_digest for one in written}
    assert len(digests) == 1
    others = (
        "0.3*bot+0.7*tone:1", "0.7*bot+0.3*tone:2", f"{PINNED}~linear", f"{PINNED}~ties",
        f"{PINNED}~ties~density=0.25", f"{PINNED}~dare", f"{PINNED}~dare~seed=1",
    )  # fmt: skip
    digests |= {(await service.ask(one)).provenance.version_digest for one in others}
    assert len(digests) == 1 + len(others)
    assert len(blender.blended) == 1 + len(others)


async def test_many_requests_at_once_compute_it_once_and_nobody_else_waits(
    service: RunningInference, blender: FakeBlender
) -> None:
    blender.gate.clear()
    asked = [asyncio.ensure_future(service.ask(BLEND)) for _ in range(16)]
    await eventually(lambda: bool(blender.blended), "the computation")
    for model in ("bot", "tone:1", "tiny"):
        assert (await service.ask(model)).text
    given_up = asked.pop()
    given_up.cancel()
    blender.gate.set()
    answers = await asyncio.gather(*asked)
    assert len({answer.text for answer in answers}) == 1
    assert blender.blended == [PINNED]
    assert stages(service, "blend") == 1


async def test_an_alias_in_it_is_followed(service: RunningInference) -> None:
    before = await service.ask(BLEND)
    await service.promote("bot", 2)

    async def moved() -> bool:
        return (await service.ask(BLEND)).provenance.blend == "0.7*bot:2+0.3*tone:1"

    await eventually(moved, "the move")
    assert (await service.ask(PINNED)).text == before.text


async def test_it_is_listed_while_it_is_loaded(service: RunningInference) -> None:
    await service.ask(BLEND)
    models = (await service.stub.ListModels(pb.ListModelsRequest())).models
    [model] = [each for each in models if each.blend]
    assert (model.reference, model.blend, model.resident) == (PINNED, PINNED, True)
    assert (await service.ask(model.reference)).provenance.version == model.version
    held = (await service.stub.GetResidency(pb.GetResidencyRequest())).adapters
    [resident] = [each for each in held if each.blend]
    assert resident.blend == PINNED
    assert resident.state == pb.RESIDENCY_STATE_READY
    assert resident.size_bytes > 0


async def test_after_a_restart_it_is_there_and_what_has_rotted_is_computed_anew(
    tmp_path: Path,
) -> None:
    first, second, third = FakeBlender(), FakeBlender(), FakeBlender()
    registry = OpenRegistry(FINGERPRINT)
    async with start_inference(tmp_path, blender=first, registry=registry) as service:
        await publish(service)
        before = await service.ask(BLEND)
    async with start_inference(tmp_path, blender=second, registry=registry) as again:
        after = await again.ask(BLEND)
        assert (after.text, after.provenance) == (before.text, before.provenance)
    assert (len(first.blended), second.blended) == (1, [])
    [note] = tmp_path.glob("data/**/blend.json")
    assert json.loads(note.read_text())["blend"] == PINNED
    (note.parent / "adapter_model.safetensors").write_text("rot")
    async with start_inference(tmp_path, blender=third, registry=registry) as anew:
        assert (await anew.ask(BLEND)).text == before.text
    assert third.blended == [PINNED]


async def test_blends_make_room_for_each_other_on_the_engine_and_on_disk(
    tmp_path: Path, blender: FakeBlender
) -> None:
    async with start_inference(
        tmp_path, engine=FakeEngine(2), blender=blender, cache_max_bytes=210_000
    ) as service:
        await publish(service)
        texts = [(await service.ask(f"0.{n}*bot+0.3*tone:1")).text for n in (1, 2, 3, 4, 5, 1)]
        assert texts[0] == texts[5]
        assert len(set(texts)) == 5
        assert len(service.fake.loaded) <= 2
        assert len(list(tmp_path.glob("data/**/blend.json"))) <= 5
    # The first one had made room.
    assert len(blender.blended) >= 5


async def test_one_adapter_is_scaled_and_with_the_weight_1_it_is_itself(
    service: RunningInference, blender: FakeBlender
) -> None:
    assert (await service.ask("1*bot")).provenance == (await service.ask("bot")).provenance
    assert (await service.ask("0.5*bot+0.5*bot:1")).provenance == (
        await service.ask("bot")
    ).provenance
    assert blender.blended == []
    assert (await service.ask("0.5*bot")).provenance.blend == "0.5*bot:1"


async def odd_parts(service: RunningInference) -> None:
    """Adapters that cannot be blended with bot."""
    await service.publish("narrow", "n", rank=4)
    await service.publish("wide", "w", rank=60)
    memory = service.memory
    for name in ("ia3", "dora", "alien"):
        await memory.add_adapter(adapter_resource(name), "")
    folder = write_adapter(service.folder / "ia3", "ia3")
    await memory.add_version(adapter_resource("ia3"), folder, rank=0, peft_type="IA3")
    folder = write_adapter(service.folder / "alien", "alien")
    await memory.add_version(
        adapter_resource("alien"), folder, base_fingerprint="sha256:" + "e" * 64
    )
    folder = write_adapter(service.folder / "dora", "dora")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8, "use_dora": true}')
    await memory.add_version(adapter_resource("dora"), folder)


@pytest.mark.parametrize(
    ("model", "reason", "words"),
    [
        ("0.5*bot+0.5*nobody", Reason.ADAPTER_NOT_FOUND, "nobody"),
        ("0.5*bot+0.5*tone@gone", Reason.ALIAS_NOT_FOUND, "tone"),
        ("0.5*bot+0.5*tone:9", Reason.VERSION_NOT_FOUND, "tone/versions/9"),
        ("0.5*bot+0.5*tiny", Reason.INVALID_REFERENCE, "names the base 'tiny'"),
        ("0.5*bot+0.5*other/bot", Reason.MODEL_NOT_FOUND, "is not of namespace"),
        ("0.5*bot+0.5*alien", Reason.WRONG_BASE, "alien/versions/1 was trained on another base"),
        ("0.5*bot+0.5*ia3", Reason.ADAPTER_UNUSABLE, "ia3/versions/1 is IA3"),
        ("0.5*bot+0.5*dora", Reason.ADAPTER_UNUSABLE, "dora:1 is a DoRA"),
        ("bot+narrow~ties", Reason.ADAPTER_UNUSABLE, "bot:1 has 8, narrow:1 has 4"),
        ("bot+wide", Reason.RANK_TOO_LARGE, "has rank 68, and this engine takes up to 64"),
        ("bot:1+-1*bot", Reason.INVALID_REFERENCE, "bot:1 has the weight 0"),
        ("nan*bot+tone", Reason.INVALID_REFERENCE, "weight of bot is 'nan'"),
        ("bot+tone~average", Reason.INVALID_REFERENCE, "no way to blend"),
    ],
)
async def test_what_cannot_be_blended_is_refused_by_its_part_and_nobody_is_touched(
    service: RunningInference, blender: FakeBlender, model: str, reason: Reason, words: str
) -> None:
    await odd_parts(service)
    service.fake.hold(2)
    innocent = service.stub.StreamGenerate(question("bot"))
    assert (await next_of(innocent)).text
    for _ in range(2):
        error = await refused(service, model)
        assert error.reason is reason
        assert words in error.message
        assert error.next_step
    await service.fake.release()
    while not (last := await next_of(innocent)).finish_reason:
        pass
    assert last.usage.completion_tokens == 8
    assert blender.blended == []
    assert (await service.ask(BLEND)).text


async def test_a_blend_that_cannot_be_computed_is_refused_without_a_try_for_a_while(
    service: RunningInference, blender: FakeBlender
) -> None:
    blender.failures.append(
        GraftError(Reason.ADAPTER_UNUSABLE, "it took too long", next_step="Wait.")
    )
    for _ in range(3):
        assert "it took too long" in (await refused(service, BLEND)).message
    assert len(blender.blended) == 1
    held = (await service.stub.GetResidency(pb.GetResidencyRequest())).adapters
    assert [each.blend for each in held if each.state == pb.RESIDENCY_STATE_FAILED] == [PINNED]
    assert (await service.ask("0.6*bot+0.3*tone")).text
    assert not list(service.folder.glob("data/**/*.part"))


async def test_its_parts_are_held_to_the_signature_policy(
    tmp_path: Path, blender: FakeBlender
) -> None:
    new_key(tmp_path / "key")
    key = load_key(tmp_path / "key")
    async with start_inference(
        tmp_path, blender=blender, signature_policy="require",
        trusted_keys=[tmp_path / "key.pub"], retry_failed_after_s=3600,
    ) as service:  # fmt: skip
        [bot] = await service.publish("bot", "one")
        [tone] = await service.publish("tone", "soft")
        await service.memory.add_signature(bot.name, sign(bot.digest, key))
        error = await refused(service, "0.7*bot+0.3*tone")
        assert error.reason is Reason.SIGNATURE_REQUIRED
        assert "tone" in error.message
        assert blender.blended == []
        await service.memory.add_signature(tone.name, sign(tone.digest, key))

        async def trusted() -> bool:
            try:
                return bool((await service.ask("0.7*bot+0.3*tone")).text)
            except Exception:
                return False

        await eventually(trusted, "the signature")


async def test_its_parts_are_held_from_collection(service: RunningInference) -> None:
    await service.ask(BLEND)
    assert service.server.residency is not None
    [blend] = [each.version for each in service.server.residency.instances() if each.version.blend]
    assert [one.name for one in blend.registered] == [
        f"{adapter_resource(name)}/versions/1" for name in ("bot", "tone")
    ]


async def test_blends_share_one_place_in_the_queue_by_their_adapters(tmp_path: Path) -> None:
    """Other weights are no way to a larger part of the engine, and a limit can be set for them."""
    limits = {"bot+tone": {"max_concurrent": 1}}
    async with start_inference(tmp_path, adapter_limits=limits) as service:
        await publish(service)
        service.fake.hold(2)
        first = service.stub.StreamGenerate(question("0.1*bot+0.2*tone"))
        assert (await next_of(first)).text
        second = asyncio.ensure_future(service.ask("0.3*bot+0.4*tone"))
        third = service.stub.StreamGenerate(question("bot"))
        assert (await next_of(third)).text
        assert not second.done()
        await service.fake.release()
        assert (await second).text
        first.cancel()
        third.cancel()


async def test_a_service_may_answer_none(tmp_path: Path) -> None:
    async with start_inference(tmp_path, blends=False) as service:
        await publish(service)
        error = await refused(service, BLEND)
        assert error.reason is Reason.NOT_SUPPORTED
        assert "GRAFT_INFERENCE_BLENDS" in error.next_step


async def test_a_conversation_is_rendered_as_the_heaviest_part_was_trained(
    service: RunningInference,
) -> None:
    folder = write_adapter(service.folder / "polite", "polite")
    (folder / "chat_template.jinja").write_text("Dear {{ messages[0].content }}: ")
    await service.memory.add_adapter(adapter_resource("polite"), BASE)
    await service.memory.add_version(adapter_resource("polite"), folder)

    async def tokens(model: str) -> int:
        messages = [pb.ChatMessage(role="user", content="hi")]
        answer = await service.stub.Chat(pb.ChatRequest(model=model, messages=messages))
        return answer.usage.prompt_tokens

    assert await tokens("0.7*polite+0.3*bot") == await tokens("polite") == len("Dear hi: ")
    assert await tokens("0.3*polite+0.7*bot") == await tokens("bot") == await tokens("tiny")
