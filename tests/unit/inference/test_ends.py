"""What is deleted in the registry is served no more, and what comes back is served again."""

from __future__ import annotations

from pathlib import Path

import graft
from graft.channel import rpc_errors
from graft.errors import GraftError, Reason

from services.inference.config import InferenceSettings
from services.inference.server import make_registry
from tests.support.inference import RunningInference, adapter_resource, start_inference
from tests.support.registry import registry_calls, running_registry
from tests.support.waiting import eventually

BOT = adapter_resource("bot")


async def answer(service: RunningInference, model: str) -> str:
    """The version that answers, or why none does."""
    try:
        with rpc_errors("inference"):
            return (await service.ask(model)).provenance.version
    except GraftError as error:
        return error.reason.value


async def test_a_deleted_adapter_is_served_no_more_until_it_is_back(
    tmp_path: Path, tiny_base: Path, tiny_adapter: Path
) -> None:
    async with (
        running_registry(tmp_path / "registry") as registry,
        registry_calls(registry.address) as calls,
        graft.Client(registry=registry.address) as client,
    ):
        base = await calls.create_base(tiny_base)
        await calls.create_adapter()
        version = await calls.commit(tiny_adapter, base.fingerprint.digest)
        await calls.set_alias(version.name)
        settings = InferenceSettings(base=tiny_base, registry_address=registry.address)
        async with start_inference(
            tmp_path, registry=make_registry(settings), base=tiny_base
        ) as service:
            for model in ("bot", "bot@production"):
                assert await answer(service, model) == version.name
            await client.operations.delete(BOT)

            async def unloaded() -> bool:
                return not service.fake.loaded

            await eventually(unloaded, "the unload of what was deleted")
            assert await answer(service, "bot@production") == Reason.DELETED
            assert await answer(service, "bot") == Reason.DELETED
            await client.operations.undelete(BOT)

            async def back() -> bool:
                return bool(service.fake.loaded)

            await eventually(back, "the return of its production version")
            for model in ("bot", "bot@production"):
                assert await answer(service, model) == version.name
