"""Versions of bases: pushed, verified, pulled, and adapters trained on them."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import graft
import pytest
from graft.bases import read_base
from graft.errors import GraftError, Reason
from graft.registry.v1 import registry_service_pb2 as pb

from services.registry.server import RegistryServer
from tests.support.models import make_adapter, make_base
from tests.support.registry import RegistryCalls


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the tiny base's shape with other weights, as a merge makes it."""
    return make_base(tmp_path_factory.mktemp("merged") / "merged", seed=5)


@pytest.fixture
async def client(registry: RegistryServer) -> AsyncIterator[graft.Client]:
    """Of the registry."""
    async with graft.Client(registry=registry.address, actor="ann") as opened:
        yield opened


async def test_a_merged_model_becomes_a_version_with_its_parent(
    client: graft.Client, versions: list[pb.Version], merged: Path, tmp_path: Path
) -> None:
    version = await client.base_versions.push(
        merged, "tiny", method="merge", parents=[versions[0].name]
    )
    assert (version.number, version.method, version.quantization) == (1, "merge", "none")
    assert version.fingerprint == read_base(merged, "x").fingerprint.digest
    assert version.lineage.parent_versions == (versions[0].name,)
    assert "finite" in " ".join(check.name for check in version.checks)
    assert [one.number for one in await client.base_versions.list("tiny")] == [1]
    await client.base_versions.pull("tiny", 1, tmp_path / "pulled")
    pulled = read_base(tmp_path / "pulled", "x").fingerprint.digest
    assert pulled == version.fingerprint


async def test_the_same_model_again_is_the_same_version(
    client: graft.Client, base: pb.Base, merged: Path
) -> None:
    first = await client.base_versions.push(merged, "tiny")
    assert (await client.base_versions.push(merged, "tiny")).name == first.name


async def test_an_adapter_is_checked_against_the_version_that_it_was_trained_on(
    calls: RegistryCalls, client: graft.Client, base: pb.Base, merged: Path, tmp_path: Path
) -> None:
    adapter = make_adapter(tmp_path / "adapter", merged, seed=1)
    fingerprint = read_base(merged, "x").fingerprint.digest
    with pytest.raises(GraftError) as raised:
        await calls.commit(adapter, fingerprint)
    assert (raised.value.reason, raised.value.metadata["check"]) == (
        Reason.VERSION_REFUSED,
        "base-fingerprint",
    )
    await client.base_versions.push(merged, "tiny", method="merge")
    version = await calls.commit(adapter, fingerprint)
    assert version.manifest.base_fingerprint == fingerprint


async def test_an_alias_of_a_base_names_its_versions(
    client: graft.Client, base: pb.Base, merged: Path
) -> None:
    version = await client.base_versions.push(merged, "tiny")
    alias = await client.adapters.promote(base.name, 1, alias="stable")
    assert alias.version == version.name
    stub = client.connection.registry
    found = await client.connection.call(
        stub.GetVersion, pb.GetVersionRequest(name=alias.name), "the registry"
    )
    assert found.name == version.name


async def test_a_model_with_code_is_refused(
    client: graft.Client, base: pb.Base, merged: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "code"
    shutil.copytree(merged, folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["auto_map"] = {"AutoModel": "modeling.Evil"}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(GraftError, match="auto_map") as raised:
        await client.base_versions.push(folder, "tiny")
    assert raised.value.reason is Reason.VERSION_REFUSED
    assert await client.base_versions.list("tiny") == []
