"""Adapters through the client, against a real registry."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import graft
import pytest
from graft.digests import digest_file

from tests.support.fakes import FakeTrainer, serving


async def _push(client: graft.Client, base: Path, adapter: Path, times: int = 1) -> graft.Version:
    version = None
    for number in range(times):
        copy = adapter.parent / f"{adapter.name}-{number}"
        if not copy.exists():
            shutil.copytree(adapter, copy)
            (copy / "README.md").write_text(f"copy {number}")
        version = await client.adapters.push("bot", copy, base=base)
    assert version is not None
    return version


async def test_a_push_makes_the_base_the_adapter_and_a_verified_version(
    registry_client: graft.Client, tiny_base: Path, tiny_adapter: Path
) -> None:
    moved: dict[str, int] = {}

    def progress(path: str, moved_bytes: int, size_bytes: int) -> None:
        moved[path] = moved.get(path, 0) + moved_bytes

    version = await registry_client.adapters.push(
        "bot", tiny_adapter, base=tiny_base, progress=progress
    )
    assert (version.number, version.rank, version.lineage.job) == (1, 8, None)
    assert version.checks
    assert moved == {file.path: file.size_bytes for file in version.files}
    assert [base.source for base in await registry_client.bases.list()] == [str(tiny_base)]
    assert (await registry_client.adapters.get("bot")).latest_version == 1


async def test_the_same_folder_again_is_the_same_version(
    registry_client: graft.Client, tiny_base: Path, tiny_adapter: Path
) -> None:
    first = await registry_client.adapters.push("bot", tiny_adapter, base=tiny_base)
    again = await registry_client.adapters.push("bot", tiny_adapter)
    assert again.name == first.name


async def test_what_was_pulled_has_the_bytes_that_were_pushed(
    registry_client: graft.Client, tiny_base: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    pushed = await registry_client.adapters.push("bot", tiny_adapter, base=tiny_base)
    pulled = await registry_client.adapters.pull("bot", tmp_path / "new")
    assert pulled == pushed
    assert {path.name: digest_file(path) for path in (tmp_path / "new").iterdir()} == {
        file.path: file.digest for file in pushed.files
    }
    with pytest.raises(graft.ConflictError, match="exists already"):
        await registry_client.adapters.pull("bot", tmp_path / "new")


async def test_promoting_is_compare_and_set_and_can_be_rolled_back(
    registry_client: graft.Client, tiny_base: Path, tiny_adapter: Path
) -> None:
    adapters = registry_client.adapters
    await _push(registry_client, tiny_base, tiny_adapter, times=2)
    await adapters.promote("bot", 1, expected=0, reason="first")
    with pytest.raises(graft.ConflictError) as caught:
        await adapters.promote("bot", 2, expected=0)
    assert caught.value.reason is graft.Reason.ALIAS_MOVED
    await adapters.promote("bot", 2, expected=1)
    back = await adapters.rollback("bot", reason="worse")
    assert back.version.endswith("/versions/1")
    history = await adapters.history("bot")
    assert [(move.version[-1], move.reason) for move in history] == [
        ("1", "worse"),
        ("2", ""),
        ("1", "first"),
    ]
    assert {move.actor for move in history} == {"ann@desk"}


async def test_a_reference_means_what_it_means_in_a_request_for_text(
    registry_client: graft.Client, tiny_base: Path, tiny_adapter: Path
) -> None:
    adapters = registry_client.adapters
    await _push(registry_client, tiny_base, tiny_adapter, times=2)
    assert (await adapters.version("bot")).number == 2
    await adapters.promote("bot", 1)
    assert (await adapters.version("bot")).number == 1
    assert (await adapters.version("bot@production")).number == 1
    assert (await adapters.version("bot:2")).number == 2
    with pytest.raises(graft.NotFoundError):
        await adapters.version("bot@canary")
    with pytest.raises(graft.NotFoundError):
        await adapters.version("nobody")


async def test_a_refused_version_says_why_and_leaves_none(
    registry_client: graft.Client, tiny_base: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_adapter, broken)
    weights = broken / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(graft.RefusedError, match="the file is truncated"):
        await registry_client.adapters.push("bot", broken, base=tiny_base)
    assert await registry_client.adapters.versions("bot") == []


async def test_pushing_without_knowing_the_base_asks_for_it(
    registry_client: graft.Client, tiny_adapter: Path, tmp_path: Path
) -> None:
    nameless = tmp_path / "nameless"
    shutil.copytree(tiny_adapter, nameless)
    (nameless / "adapter_config.json").write_text("{}")
    with pytest.raises(graft.InvalidError, match="which base") as caught:
        await registry_client.adapters.push("bot", nameless)
    assert "--base FOLDER" in caught.value.next_step


async def test_a_watch_tells_what_happens_from_now_on(
    registry_client: graft.Client, tiny_base: Path, tiny_adapter: Path
) -> None:
    await _push(registry_client, tiny_base, tiny_adapter)
    changes = registry_client.watch()
    first = asyncio.ensure_future(anext(changes))
    async with asyncio.timeout(60):
        # The watch asks for the present revision first; moves go on until it has seen one.
        while not first.done():
            await registry_client.adapters.promote("bot", 1, reason="watched")
            await asyncio.wait({first}, timeout=0.05)
    change = first.result()
    assert change.alias is not None
    assert change.alias.reason == "watched"
    await changes.aclose()


async def test_all_changes_can_be_read_from_the_beginning(
    registry_client: graft.Client, tiny_base: Path, tiny_adapter: Path
) -> None:
    await _push(registry_client, tiny_base, tiny_adapter)
    kinds = []
    async for change in registry_client.watch(after_revision=0):
        kinds.append(next(name for name in ("base", "adapter", "version") if getattr(change, name)))
        if change.version is not None:
            break
    assert kinds == ["base", "adapter", "version"]


async def test_data_for_a_trainer_elsewhere_goes_through_the_blob_store(
    registry_client: graft.Client, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a"}\n')
    trainer = FakeTrainer()
    async with (
        serving(trainer=trainer) as address,
        graft.Client(registry=registry_client.endpoints.registry, trainer=address) as client,
    ):
        await client.train(data=rows, base="org/model", adapter="bot", upload=True)
        with pytest.raises(graft.InvalidError, match="is not a file"):
            await client.train(data=tmp_path, base="org/model", adapter="bot", upload=True)
    sent = trainer.requests[0].spec.dataset
    assert (sent.path, sent.blob_digest, sent.blob_name) == ("", digest_file(rows), "rows.jsonl")


async def test_of_several_sets_those_on_this_machine_are_uploaded(
    registry_client: graft.Client, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a"}\n')
    trainer = FakeTrainer()
    dataset = {
        "sources": [{"path": str(rows)}, {"path": "hf://org/set"}],
        "eval_sources": [{"path": str(rows)}],
    }
    async with (
        serving(trainer=trainer) as address,
        graft.Client(registry=registry_client.endpoints.registry, trainer=address) as client,
    ):
        await client.train({"dataset": dataset}, base="org/model", adapter="bot", upload=True)
    sent = trainer.requests[0].spec.dataset
    assert [one.path for one in (*sent.sources, *sent.eval_sources)] == ["", "hf://org/set", ""]
    assert sent.sources[0].blob_digest == sent.eval_sources[0].blob_digest == digest_file(rows)
