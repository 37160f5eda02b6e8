"""Versions of kinds that the engine does not serve: refused by name, and nobody else notices."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from graft.errors import Reason
from graft.inference.v1 import inference_service_pb2 as pb

from tests.support.inference import (
    RunningInference,
    adapter_resource,
    question,
    start_inference,
    write_adapter,
)
from tests.support.waiting import eventually
from tests.unit.inference.refusals import refusal

# What adapter_config.json says, the rank, and the word that the refusal names it by.
KINDS: dict[str, tuple[dict[str, object], int, str]] = {
    "IA3": ({"peft_type": "IA3", "feedforward_modules": []}, 0, "it is IA3"),
    "prompt tuning": ({"peft_type": "PROMPT_TUNING"}, 0, "it is PROMPT_TUNING"),
    "P-tuning": ({"peft_type": "P_TUNING"}, 0, "it is P_TUNING"),
    "prefix tuning": ({"peft_type": "PREFIX_TUNING"}, 0, "it is PREFIX_TUNING"),
    "bottleneck": ({"peft_type": "BOTTLENECK", "size": 16}, 0, "it is BOTTLENECK"),
    "AdaLoRA": ({"peft_type": "ADALORA", "init_r": 8}, 8, "it is ADALORA"),
    "DoRA": ({"peft_type": "LORA", "r": 8, "use_dora": True}, 8, "it is a DoRA"),
    "reward model": (
        {"peft_type": "LORA", "r": 8, "task_type": "SEQ_CLS", "modules_to_save": ["score"]},
        8,
        "fully trained modules, as a reward model",
    ),
}


async def commit(service: RunningInference, kind: str, adapter: str = "bot") -> None:
    """The adapter's next version, of a kind; the registry admits each of them."""
    config, rank, _ = KINDS[kind]
    folder = write_adapter(service.folder / f"{adapter}-{kind}", kind)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    await service.memory.add_version(
        adapter_resource(adapter), folder, rank=rank, peft_type=str(config["peft_type"])
    )


async def failures(service: RunningInference) -> dict[str, str]:
    """Why each version that was refused was refused."""
    answer = await service.stub.GetResidency(pb.GetResidencyRequest())
    return {
        "/".join(each.version.split("/")[3::2]): each.message
        for each in answer.adapters
        if each.state == pb.RESIDENCY_STATE_FAILED
    }


@pytest.mark.parametrize("kind", KINDS)
async def test_an_alias_that_moves_to_it_leaves_what_was_served(
    service: RunningInference, kind: str
) -> None:
    words = KINDS[kind][2]
    await service.publish("bot", "one")
    await service.promote("bot", 1)
    before = await service.ask("bot")
    await commit(service, kind)
    await service.promote("bot", 2)

    async def refused() -> bool:
        return words in (await failures(service)).get("bot/2", "")

    await eventually(refused, "the refusal")
    after = await service.ask("bot")
    assert (after.text, after.provenance) == (before.text, before.provenance)
    error = await refusal(service.stub.Generate(question("bot:2")))
    assert error.reason is Reason.ADAPTER_UNUSABLE
    assert "bot/versions/2 cannot be served" in error.message
    assert words in error.message
    assert "plain LoRA" in error.next_step
    assert len(service.fake.loaded) == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_an_alias_that_begins_on_it_hurts_no_other_and_recovers(
    tmp_path: Path, kind: str
) -> None:
    async with start_inference(tmp_path / "first") as first:
        await first.publish("good", "one")
        await first.promote("good", 1)
        await first.publish("bot", "one")
        await commit(first, kind)
        await first.promote("bot", 2)
        async with start_inference(tmp_path / "second", registry=first.registry) as service:
            for call in (question("bot"), question("bot@production"), question("bot:2")):
                error = await refusal(service.stub.Generate(call))
                assert error.reason is Reason.ADAPTER_UNUSABLE
                assert KINDS[kind][2] in error.message
            messages = [pb.ChatMessage(role="user", content="hi")]
            chat = pb.ChatRequest(model="bot", messages=messages)
            assert (await refusal(service.stub.Chat(chat))).reason is Reason.ADAPTER_UNUSABLE
            assert (await service.ask("good")).provenance.version.endswith("good/versions/1")
            assert (await service.ask("tiny")).text
            listed = (await service.stub.ListModels(pb.ListModelsRequest())).models
            resident = {each.reference: each.resident for each in listed}
            assert (resident["bot"], resident["good"]) == (False, True)
            await first.promote("bot", 1)

            async def recovered() -> bool:
                models = (await service.stub.ListModels(pb.ListModelsRequest())).models
                return any(m.reference == "bot" and m.resident for m in models)

            await eventually(recovered, "bot -> 1")
            assert (await service.ask("bot")).provenance.version.endswith("bot/versions/1")
