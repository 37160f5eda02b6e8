"""What an engine serves is held in the registry, and let go when it serves it no more."""

from __future__ import annotations

from pathlib import Path

import graft

from services.inference.config import InferenceSettings
from services.inference.server import make_registry
from tests.support.inference import start_inference
from tests.support.models import make_adapter
from tests.support.registry import registry_calls, running_registry
from tests.support.waiting import eventually


async def test_a_resident_version_is_held_until_the_replica_drains(
    tmp_path: Path, tiny_base: Path, tiny_adapter: Path
) -> None:
    async with (
        running_registry(tmp_path / "registry") as registry,
        registry_calls(registry.address) as calls,
        graft.Client(registry=registry.address) as client,
    ):
        base = await calls.create_base(tiny_base)
        await calls.create_adapter()
        first = await calls.commit(tiny_adapter, base.fingerprint.digest)
        other = make_adapter(tmp_path / "other", tiny_base, seed=9)
        second = await calls.commit(other, base.fingerprint.digest)
        await calls.set_alias(first.name)
        settings = InferenceSettings(base=tiny_base, registry_address=registry.address)

        async def held(*names: str) -> bool:
            found = await client.operations.leases()
            return sorted(name for one in found for name in one.targets) == sorted(names)

        async with start_inference(tmp_path, registry=make_registry(settings), base=tiny_base):
            await eventually(lambda: held(first.name), "the lease")
            (lease,) = await client.operations.leases()
            assert (lease.holder.split("/")[0], lease.purpose) == ("inference", "serve")
            await calls.set_alias(second.name)
            await eventually(lambda: held(second.name), "the lease following the swap")
        assert await held(), "a replica that has drained holds nothing"
