"""Kinds that need none of the engine's slots: they are resident beside those that do, in a room of their own."""

from __future__ import annotations

import asyncio
import json

from graft.inference.v1 import inference_service_pb2 as pb

from services.inference.engines.fake import FakeEngine
from tests.support.inference import RunningInference, adapter_resource, question, write_adapter
from tests.support.waiting import eventually

KIND = "PROMPT_TUNING"


async def commit(service: RunningInference, *contents: str) -> None:
    """Versions of "soft" that need no slot."""
    name = adapter_resource("soft")
    for content in contents:
        folder = write_adapter(service.folder / f"soft-{content}", content)
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": KIND}))
        await service.memory.add_version(name, folder, rank=0, peft_type=KIND)


async def resident(service: RunningInference) -> set[str]:
    """What is on the engine, as "bot/1"."""
    found = await service.stub.GetResidency(pb.GetResidencyRequest())
    assert all(each.state == pb.RESIDENCY_STATE_READY for each in found.adapters)
    return {"/".join(each.version.split("/")[3::2]) for each in found.adapters}


async def start(service: RunningInference, most: int = 2) -> FakeEngine:
    """One slot, and room for so many beside it."""
    service.fake.limit_slots(1)
    service.fake.serve_apart(KIND, most)
    await service.publish("bot", "one", "two")
    await service.memory.add_adapter(adapter_resource("soft"), "namespaces/default/bases/tiny")
    await commit(service, "a", "b", "c")
    return service.fake


async def test_they_take_no_slot_and_no_turn_from_those_that_need_one(
    service: RunningInference,
) -> None:
    fake = await start(service)
    fake.hold(after_tokens=1)
    on_slot = asyncio.ensure_future(service.stub.Generate(question("bot:1")))
    await eventually(lambda: fake.unfinished() == 1, "the first answer")
    # The only slot is busy: a second LoRA would wait for its turn.
    beside = [asyncio.ensure_future(service.stub.Generate(question(f"soft:{n}"))) for n in (1, 2)]
    await eventually(lambda: fake.unfinished() == 3, "answers beside the busy slot")
    await fake.release()
    await asyncio.gather(on_slot, *beside)
    assert await resident(service) == {"bot/1", "soft/1", "soft/2"}


async def test_they_make_room_for_each_other_alone(service: RunningInference) -> None:
    await start(service)
    for model in ("bot:1", "soft:1", "soft:2", "soft:3"):
        await service.ask(model)
    assert await resident(service) == {"bot/1", "soft/2", "soft/3"}
    await service.ask("bot:2")
    assert await resident(service) == {"bot/2", "soft/2", "soft/3"}


async def test_an_engine_without_slots_serves_them(service: RunningInference) -> None:
    fake = await start(service)
    fake.limit_slots(0)
    assert (await service.ask("soft:1")).provenance.version.endswith("soft/versions/1")
