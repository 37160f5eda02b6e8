"""docs/backup.md, followed to the letter, with endpoints that go on across the restore."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
from graft.channel import open_channel
from graft.inference.v1 import inference_service_pb2 as inference_pb

from services.inference.registry.remote import RemoteRegistry
from tests.support.inference import RunningInference, start_inference
from tests.support.models import REPOSITORY, make_adapter
from tests.support.objects import ObjectStore
from tests.support.postgres import PostgresServer
from tests.support.registry import RegistryCalls, registry_calls, running_registry
from tests.support.runbook import Done, run_block, shell_blocks
from tests.support.waiting import eventually

BLOCKS = shell_blocks(REPOSITORY / "docs/backup.md")
ONE = "One machine: SQLite and a folder"
MANY = "Many machines: PostgreSQL and an object store"
MOVE = "From one machine to many"
BOT = "namespaces/default/adapters/bot"


def test_every_block_of_the_page_is_followed_here() -> None:
    assert {heading: len(blocks) for heading, blocks in BLOCKS.items()} == {
        ONE: 3,
        MANY: 5,
        MOVE: 2,
    }


@pytest.mark.soak
async def test_one_machine_and_an_endpoint_that_serves_all_the_time(
    tmp_path: Path, tiny_base: Path
) -> None:
    folders = [make_adapter(tmp_path / str(seed), tiny_base, seed=seed) for seed in range(4)]
    data = tmp_path / "registry"
    variables = {"GRAFT_REGISTRY_DATA_DIR": str(data), "BACKUP": str(tmp_path / "backup")}
    save, rehearse, restore = BLOCKS[ONE]
    async with running_registry(data) as server, registry_calls(server.address) as calls:
        address = server.address
        fingerprint = await _fill(calls, tiny_base, folders[:2])
        # Without an alias the newest version is meant.
        await calls.create_adapter("plain")
        await calls.commit(folders[0], fingerprint, "plain")
        channel = open_channel(address)
        endpoint = start_inference(
            tmp_path / "endpoint",
            registry=RemoteRegistry(channel, "default"),
            base=tiny_base,
        )
        replica = await endpoint.__aenter__()
        await _serves(replica, 2)
        assert (await _version(replica, "plain")).endswith("/plain/versions/1")
        saved = (await _follow(save, variables, tmp_path))[0]
        assert (saved["versions"], saved["copied"], saved["lost"]) == (3, 3, [])
        lost = await calls.commit(folders[2], fingerprint)
        await calls.set_alias(lost.name)
        await _serves(replica, 3)
        await calls.commit(folders[2], fingerprint, "plain")
        await _serves(replica, 2, "plain")
        restored, checked = await _follow(rehearse, variables, tmp_path)
        assert (restored["versions"], checked["versions"], checked["damages"]) == (3, 3, [])
    try:
        assert await _version(replica, "bot") == f"{BOT}/versions/3"
        restored, checked = await _follow(restore, variables, tmp_path)
        assert (restored["copied"], checked["damages"]) == (3, [])
        async with running_registry(data, listen=address) as server:
            await _serves(replica, 2)
            await _serves(replica, 1, "plain")
            with pytest.raises(grpc.aio.AioRpcError, match=r"There is no version .*bot.versions.3"):
                await _version(replica, "bot:3")
            async with registry_calls(server.address) as calls:
                new = await calls.commit(folders[3], fingerprint)
                assert new.number == 103
                await calls.set_alias(new.name)
            await _serves(replica, 103)
    finally:
        await endpoint.__aexit__(None, None, None)


async def test_many_machines_with_a_folder_and_with_a_dump(
    tmp_path: Path,
    tiny_base: Path,
    postgres: PostgresServer,
    object_store: ObjectStore,
) -> None:
    folders = [make_adapter(tmp_path / str(seed), tiny_base, seed=seed) for seed in range(2)]
    save, dump, from_folder, from_dump, mend = BLOCKS[MANY]
    backup = {"BACKUP": str(tmp_path / "backup")}
    (tmp_path / "backup").mkdir()
    first = _settings(postgres, object_store, tmp_path / "first")
    async with running_registry(**_fields(first)) as server:
        async with registry_calls(server.address) as calls:
            await _fill(calls, tiny_base, folders)
        saved = (await _follow(save, first | backup, tmp_path))[0]
        assert (saved["versions"], saved["copied"]) == (2, 3)
        await _follow(dump, first | backup, tmp_path)
    second = _settings(postgres, object_store, tmp_path / "second")
    restored, checked = await _follow(from_folder, second | backup, tmp_path)
    assert (restored["copied"], checked["versions"], checked["damages"]) == (3, 2, [])
    async with (
        running_registry(**_fields(second)) as server,
        registry_calls(server.address) as calls,
    ):
        version = await calls.get_version(f"{BOT}/aliases/production")
        await calls.blobs.fetch(version.manifest.files[1], tmp_path / "fetched")
    # The third has the dump, and a bucket that lost an object since.
    third = _settings(postgres, object_store, tmp_path / "third") | {
        name: value for name, value in first.items() if "S3" in name
    }
    bucket = third["GRAFT_REGISTRY_S3_BUCKET"]
    weights = max(
        saved_keys := object_store.keys(bucket), key=lambda key: len(object_store.get(bucket, key))
    )
    assert len(saved_keys) == 3
    object_store.remove(bucket, weights)
    done = await run_block(from_dump, third | backup, tmp_path)
    settled, checked = _results(done)
    assert (done.code, settled["revision"] > 1_000_000_000) == (1, True)
    assert len(checked["damages"]) == 1
    assert checked["damages"][0]["resource"].startswith(f"{BOT}/versions/")
    (mended,) = await _follow(mend, third | backup, tmp_path)
    assert (mended["copied"], mended["missing"]) == (1, [])
    done = await run_block("python -m services.registry.backup check", third | backup, tmp_path)
    assert (done.code, _results(done)[0]["damages"]) == (0, [])


async def test_a_move_from_one_machine_to_many_keeps_revisions_and_numbers(
    tmp_path: Path, tiny_base: Path, postgres: PostgresServer
) -> None:
    folders = [make_adapter(tmp_path / str(seed), tiny_base, seed=seed) for seed in range(2)]
    backup = {"BACKUP": str(tmp_path / "backup")}
    old = {"GRAFT_REGISTRY_DATA_DIR": str(tmp_path / "old")}
    new = {
        "GRAFT_REGISTRY_DATA_DIR": str(tmp_path / "new"),
        "GRAFT_REGISTRY_DATABASE": postgres.create_database(schema=False),
    }
    save, restore = BLOCKS[MOVE]
    async with (
        running_registry(tmp_path / "old") as server,
        registry_calls(server.address) as calls,
    ):
        fingerprint = await _fill(calls, tiny_base, folders[:1])
    saved = (await _follow(save, old | backup, tmp_path))[0]
    restored, _ = await _follow(restore, new | backup, tmp_path)
    assert restored["revision"] == saved["revision"]
    async with (
        running_registry(**_fields(new)) as server,
        registry_calls(server.address) as calls,
    ):
        first = await calls.first_of_watch(after=0)
        assert first.revision == 1
        assert (await calls.commit(folders[1], fingerprint)).number == 2


async def _fill(calls: RegistryCalls, base: Path, folders: list[Path]) -> str:
    """The adapter bot with a version for each folder, the last in production."""
    recorded = await calls.create_base(base)
    await calls.create_adapter()
    for folder in folders:
        version = await calls.commit(folder, recorded.fingerprint.digest)
        await calls.set_alias(version.name)
    return str(recorded.fingerprint.digest)


async def _version(replica: RunningInference, model: str) -> str:
    answer: inference_pb.GenerateResponse = await replica.ask(model)
    return answer.provenance.version


async def _serves(replica: RunningInference, number: int, adapter: str = "bot") -> None:
    wanted = f"namespaces/default/adapters/{adapter}/versions/{number}"

    async def it_does() -> bool:
        return await _version(replica, adapter) == wanted

    await eventually(it_does, f"{adapter}:{number} at the endpoint")


async def _follow(block: str, variables: Mapping[str, str], folder: Path) -> list[dict[str, Any]]:
    done = await run_block(block, variables, folder)
    assert done.code == 0, done.err
    return _results(done)


def _results(done: Done) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.out.splitlines() if line.startswith("{")]


def _settings(postgres: PostgresServer, store: ObjectStore, folder: Path) -> dict[str, str]:
    return {
        "GRAFT_REGISTRY_DATA_DIR": str(folder),
        "GRAFT_REGISTRY_DATABASE": postgres.create_database(schema=False),
        "GRAFT_REGISTRY_S3_BUCKET": store.new_bucket(),
        "GRAFT_REGISTRY_S3_ENDPOINT": store.url,
        "GRAFT_REGISTRY_S3_REGION": "us-east-1",
        "GRAFT_REGISTRY_S3_ALLOW_HTTP": "true",
    }


def _fields(variables: Mapping[str, str]) -> dict[str, Any]:
    """Settings for a registry in this process."""
    named = {name.removeprefix("GRAFT_REGISTRY_").lower(): one for name, one in variables.items()}
    return {"folder": Path(named.pop("data_dir")), **named}
