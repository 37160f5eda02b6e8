"""A trained adapter becomes one version in a real registry, however often it is committed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from graft.blobs import describe_file
from graft.keys import load_trusted, new_key
from graft.registry.v1 import registry_service_pb2 as pb
from graft.signatures import SignaturePolicy, check

from tests.support.models import make_base
from tests.support.registry import RegistryCalls, registry_calls, running_registry
from tests.unit.trainer_worker.support import Outcome

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("default")]
ADAPTER = "namespaces/default/adapters/bot"
STEPS = {"max_steps": 2}
Train = Callable[..., Outcome]


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[tuple[str, RegistryCalls]]:
    async with (
        running_registry(tmp_path / "registry") as server,
        registry_calls(server.address) as calls,
    ):
        yield server.address, calls


async def versions(calls: RegistryCalls) -> list[pb.Version]:
    answer = await calls.stub.ListVersions(pb.ListVersionsRequest(parent=ADAPTER))
    return list(answer.versions)


async def test_the_result_is_committed_once_with_its_lineage_and_alias(
    registry: tuple[str, RegistryCalls], train: Train, task: Path
) -> None:
    address, calls = registry
    changes = {"hyperparameters": STEPS, "output": {"alias": "production"}}
    outcome = await asyncio.to_thread(train, registry=address, **changes)
    assert outcome.code == 0, outcome.message
    assert outcome.finished["version"] == f"{ADAPTER}/versions/1"
    (version,) = await versions(calls)
    lineage = version.manifest.lineage
    assert lineage.job == "namespaces/default/jobs/j1"
    assert json.loads(lineage.spec_json)["dataset"]["path"] == str(task)
    assert (lineage.data_rows, lineage.seed) == (48, 7)
    assert lineage.library_versions["peft"]
    assert lineage.metrics["steps"] == 2
    assert version.manifest.rank == 8
    assert {file.path for file in version.manifest.files} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    alias = await calls.stub.GetAlias(pb.GetAliasRequest(name=f"{ADAPTER}/aliases/production"))
    assert alias.version == version.name

    again = await asyncio.to_thread(train, registry=address, **changes)
    assert again.finished["version"] == version.name
    assert not again.losses
    assert len(await versions(calls)) == 1


async def test_an_adapter_of_another_base_is_refused_before_training(
    registry: tuple[str, RegistryCalls], train: Train, tmp_path: Path
) -> None:
    address, calls = registry
    await calls.create_base(make_base(tmp_path / "other", seed=3), "other")
    await calls.create_adapter("bot", "other")
    outcome = await asyncio.to_thread(train, registry=address)
    assert outcome.code == 67
    assert f"{ADAPTER} belongs to namespaces/default/bases/other" in outcome.message
    assert not outcome.losses


async def test_another_base_under_a_known_name_is_refused_in_the_registrys_words(
    registry: tuple[str, RegistryCalls], train: Train, tmp_path: Path
) -> None:
    address, calls = registry
    await calls.create_base(make_base(tmp_path / "other", seed=3), "tiny")
    outcome = await asyncio.to_thread(train, registry=address)
    assert outcome.code == 67
    assert "bases/tiny is another model in the registry" in outcome.message
    assert not outcome.losses


async def test_a_job_refused_for_its_data_leaves_nothing_in_the_registry(
    registry: tuple[str, RegistryCalls], train: Train
) -> None:
    address, calls = registry
    outcome = await asyncio.to_thread(train, registry=address, dataset={"path": "/no/data.jsonl"})
    assert outcome.code == 65
    assert await calls.list_adapters() == []
    bases = await calls.stub.ListBases(pb.ListBasesRequest(parent="namespaces/default"))
    assert list(bases.bases) == []


async def test_data_comes_from_the_registry_and_its_rows_are_named_in_errors(
    registry: tuple[str, RegistryCalls], train: Train, task: Path, tmp_path: Path
) -> None:
    address, calls = registry
    good = await upload(calls, task)
    outcome = await asyncio.to_thread(train, registry=address, dataset=good, hyperparameters=STEPS)
    assert outcome.code == 0, outcome.message
    assert "Read 48 rows of colours.jsonl" in outcome.log
    (version,) = await versions(calls)
    assert version.manifest.lineage.data_digest == good["blob_digest"]

    bad = tmp_path / "bad.jsonl"
    bad.write_text(task.read_text() + '{"instruction": "red"}\n')
    dataset = await upload(calls, bad)
    outcome = await asyncio.to_thread(train, "bad", registry=address, dataset=dataset)
    assert outcome.code == 65
    assert "bad.jsonl, row 49" in outcome.message

    unknown = dataset | {"blob_digest": "sha256:" + 64 * "0"}
    outcome = await asyncio.to_thread(train, "unknown", registry=address, dataset=unknown)
    assert outcome.code == 65
    assert "does not hold bad.jsonl" in outcome.message


async def upload(calls: RegistryCalls, path: Path) -> dict[str, str]:
    file = describe_file(path.parent, path)
    await calls.blobs.upload(path, file)
    return {"path": "", "blob_digest": file.digest, "blob_name": path.name}


async def test_a_result_waits_in_its_folder_for_a_registry_that_is_away(
    train: Train, tmp_path: Path
) -> None:
    trained = await asyncio.to_thread(train, hyperparameters=STEPS)
    assert trained.code == 0
    away = await asyncio.to_thread(train, registry="127.0.0.1:9", hyperparameters=STEPS)
    assert away.code == 70
    assert "cannot be reached" in away.message
    async with running_registry(tmp_path / "registry") as server:
        back = await asyncio.to_thread(train, registry=server.address, hyperparameters=STEPS)
    assert back.finished["version"] == f"{ADAPTER}/versions/1"
    assert back.weights_digest == trained.weights_digest


async def test_a_version_is_signed_with_the_trainers_key_before_its_alias_moves(
    registry: tuple[str, RegistryCalls], train: Train, tmp_path: Path
) -> None:
    address, calls = registry
    public = new_key(tmp_path / "key")
    outcome = await asyncio.to_thread(
        train,
        registry=address,
        environment={"GRAFT_WORKER_SIGNING_KEY": str(tmp_path / "key")},
        hyperparameters=STEPS,
        output={"alias": "production"},
    )
    assert outcome.code == 0, outcome.message
    (version,) = await versions(calls)
    verdict = check(SignaturePolicy.REQUIRE, version, load_trusted([tmp_path / "key.pub"]))
    assert verdict.key_id == public.key_id
    assert public.key_id in outcome.log
    events = calls.stub.Watch(pb.WatchRequest(parent="namespaces/default"))
    signed_at = moved_at = 0
    async for event in events:
        if event.version.signatures:
            signed_at = event.revision
        if event.WhichOneof("change") == "alias":
            moved_at = event.revision
            break
    events.cancel()
    assert 0 < signed_at < moved_at


def test_a_key_that_cannot_be_used_is_refused_before_the_training(
    train: Train, tmp_path: Path
) -> None:
    outcome = train(environment={"GRAFT_WORKER_SIGNING_KEY": str(tmp_path / "none")})
    assert outcome.code != 0
    assert "key file" in outcome.message
    assert not outcome.losses
