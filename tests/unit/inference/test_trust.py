"""The signature policy of a running service: who may be loaded, and that nobody else notices a refusal."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from graft.errors import GraftError, Reason, from_rpc_error
from graft.keys import PrivateKey, load_key, new_key
from graft.signatures import sign

from services.inference.domain import AdapterVersion
from services.inference.registry.memory import MemoryRegistry
from tests.support.inference import FINGERPRINT, RunningInference, start_inference
from tests.support.waiting import eventually


@pytest.fixture
def key(tmp_path: Path) -> PrivateKey:
    new_key(tmp_path / "key")
    return load_key(tmp_path / "key")


async def _refusal(service: RunningInference, model: str) -> GraftError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.ask(model)
    return from_rpc_error(caught.value)


async def test_what_must_be_signed_and_is_not_is_refused_and_nobody_else_notices(
    tmp_path: Path, key: PrivateKey
) -> None:
    async with start_inference(
        tmp_path, signature_policy="require", trusted_keys=[tmp_path / "key.pub"]
    ) as service:
        signed, _ = await service.publish("bot", "one", "two")
        await service.memory.add_signature(signed.name, sign(signed.digest, key))
        await service.promote("bot", 1)
        assert (await service.ask("bot")).provenance.version == signed.name
        error = await _refusal(service, "bot:2")
        assert error.reason is Reason.SIGNATURE_REQUIRED
        assert "graft adapters sign bot:2" in error.next_step
        # The alias moves to it: the old version goes on.
        await service.promote("bot", 2)
        assert (await service.ask("bot")).provenance.version == signed.name
        assert (await service.ask("tiny")).text


async def test_a_version_that_is_signed_later_is_taken_over_at_once(
    tmp_path: Path, key: PrivateKey
) -> None:
    async with start_inference(
        tmp_path,
        signature_policy="require",
        trusted_keys=[tmp_path / "key.pub"],
        retry_failed_after_s=3600,
    ) as service:
        first, second = await service.publish("bot", "one", "two")
        await service.memory.add_signature(first.name, sign(first.digest, key))
        await service.promote("bot", 1)
        await service.ask("bot")
        await service.promote("bot", 2)
        assert (await _refusal(service, "bot:2")).reason is Reason.SIGNATURE_REQUIRED
        await service.memory.add_signature(second.name, sign(second.digest, key))

        async def moved() -> bool:
            return (await service.ask("bot")).provenance.version == second.name

        await eventually(moved, "the move")


async def test_a_signature_of_another_key_or_version_does_not_count(
    tmp_path: Path, key: PrivateKey
) -> None:
    new_key(tmp_path / "stranger")
    stranger = load_key(tmp_path / "stranger")
    async with start_inference(
        tmp_path, signature_policy="require", trusted_keys=[tmp_path / "key.pub"]
    ) as service:
        first, second = await service.publish("bot", "one", "two")
        await service.memory.add_signature(first.name, sign(first.digest, stranger))
        await service.memory.add_signature(second.name, sign(first.digest, key))
        for model, word in (("bot:1", "not trusted"), ("bot:2", "not of this version")):
            error = await _refusal(service, model)
            assert error.reason is Reason.SIGNATURE_INVALID
            assert word in error.message


async def test_a_registry_whose_digest_is_not_its_manifests_is_not_believed(
    tmp_path: Path, key: PrivateKey
) -> None:
    class Liar(MemoryRegistry):
        async def version(self, name: str) -> AdapterVersion:
            found = await super().version(name)
            object.__setattr__(found, "manifest_digest", "sha256:" + "0" * 64)
            return found

    async with start_inference(
        tmp_path,
        registry=Liar(FINGERPRINT),
        signature_policy="require",
        trusted_keys=[tmp_path / "key.pub"],
    ) as service:
        (version,) = await service.publish("bot", "one")
        await service.memory.add_signature(version.name, sign(version.digest, key))
        service.memory._versions[version.name] = await service.memory.version(version.name)
        error = await _refusal(service, "bot:1")
        assert error.reason is Reason.SIGNATURE_INVALID


async def test_a_policy_of_warn_serves_what_nobody_signed(tmp_path: Path) -> None:
    async with start_inference(tmp_path, signature_policy="warn") as service:
        (version,) = await service.publish("bot", "one")
        assert (await service.ask("bot:1")).provenance.version == version.name


async def test_requiring_signatures_of_nobody_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(GraftError, match="no key is trusted"):
        async with start_inference(tmp_path, signature_policy="require"):
            pass
