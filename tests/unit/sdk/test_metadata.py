"""Finding and labelling through the client, against a real registry."""

from __future__ import annotations

import asyncio
from pathlib import Path

import graft
import pytest

from tests.support.models import make_adapter

NS = "namespaces/default"


@pytest.fixture
async def client(registry_client: graft.Client, tiny_base: Path, tmp_path: Path) -> graft.Client:
    """Two versions of bot and one of other, the second of bot labelled."""
    for adapter, seed in (("bot", 1), ("bot", 2), ("other", 3)):
        folder = make_adapter(tmp_path / str(seed), tiny_base, seed=seed)
        await registry_client.adapters.push(adapter, folder, base=tiny_base)
    await registry_client.metadata.label("bot:2", {"stage": "done"})
    return registry_client


async def test_lists_are_filtered_sorted_and_cut(client: graft.Client) -> None:
    names = [one.name[len(NS) + 10 :] for one in await client.adapters.list(order_by="name desc")]
    assert names == ["other", "bot"]
    assert len(await client.adapters.list(limit=1)) == 1
    assert [one.name for one in await client.adapters.list(filter="latest_version = 2")] == [
        f"{NS}/adapters/bot"
    ]
    (done,) = await client.adapters.versions("bot", filter="labels.stage = done")
    assert (done.number, done.labels) == (2, {"stage": "done"})
    assert [one.number for one in await client.adapters.versions("bot", order_by="number")] == [
        1,
        2,
    ]
    assert len(await client.adapters.versions()) == 3
    assert [one.labels for one in await client.bases.list(filter="source:*")] == [{}]
    assert await client.bases.list(filter="labels:x") == []


async def test_a_wrong_filter_tells_where(client: graft.Client) -> None:
    with pytest.raises(graft.InvalidError, match="wrong at position 1") as raised:
        await client.adapters.list(filter="rank = 8")
    assert raised.value.reason is graft.Reason.INVALID_FILTER


async def test_what_is_deleted_is_listed_where_it_is_asked_for(client: graft.Client) -> None:
    await client.operations.delete(f"{NS}/adapters/other")
    assert [one.deleted for one in await client.adapters.list()] == [False]
    assert [one.deleted for one in await client.adapters.list(show_deleted=True)] == [False, True]
    (deleted,) = await client.adapters.list(filter="state = deleted")
    assert deleted.name == f"{NS}/adapters/other"


async def test_labels_are_changed_one_by_one_by_many_at_once(client: graft.Client) -> None:
    await asyncio.gather(*(client.metadata.label("bot", {f"k{n}": str(n)}) for n in range(4)))
    changed = await client.metadata.label("bot", {"k0": None, "k1": "x", "absent": None})
    assert changed.labels == {"k1": "x", "k2": "2", "k3": "3"}
    assert (await client.adapters.get("bot")).labels == changed.labels


async def test_descriptions_of_versions_bases_and_what_an_alias_names(
    client: graft.Client,
) -> None:
    await client.adapters.promote("bot", 1)
    of_alias = await client.metadata.update("bot@production", description="first")
    assert of_alias.name == f"{NS}/adapters/bot/versions/1"
    version = await client.adapters.version("bot:1")
    assert (version.description, version.etag) == ("first", of_alias.etag)
    (base,) = await client.bases.list()
    said = await client.metadata.update(base.name, description="small", labels={"a": "1"})
    assert (said.description, said.labels) == ("small", {"a": "1"})
    assert await client.metadata.get(base.name) == said


async def test_an_update_of_what_others_changed_is_refused(client: graft.Client) -> None:
    seen = await client.metadata.get("bot")
    await client.metadata.update("bot", description="new")
    with pytest.raises(graft.ConflictError) as raised:
        await client.metadata.update("bot", description="newer", etag=seen.etag)
    assert raised.value.reason is graft.Reason.ETAG_MISMATCH
    with pytest.raises(graft.InvalidError, match="Nothing is to be changed of bot"):
        await client.metadata.update("bot")
