"""Committing versions over real gRPC."""

from __future__ import annotations

from pathlib import Path

from graft.registry.v1 import registry_service_pb2 as pb

from tests.support.registry import RegistryCalls


async def test_a_committed_version_can_be_got_by_number_and_by_alias(
    calls: RegistryCalls, base: pb.Base, adapter_folder: Path
) -> None:
    version = await calls.commit(adapter_folder, base.fingerprint.digest)
    assert version.name == "namespaces/default/adapters/bot/versions/1"
    alias = await calls.set_alias(version.name)
    assert alias.version_digest == version.digest
    by_alias = await calls.stub.GetVersion(pb.GetVersionRequest(name=alias.name))
    assert by_alias == version
    assert by_alias.manifest.rank == 8
    assert list(by_alias.manifest.target_modules) == ["q_proj", "v_proj"]
