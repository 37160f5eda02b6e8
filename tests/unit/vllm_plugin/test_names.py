"""Which version a name means to a stock vLLM server, from its first request on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from graft.errors import GraftError, Reason
from graft.names import ModelReference
from graft.registry.v1 import registry_service_pb2 as pb

from services.inference.domain import AdapterFile
from services.inference.registry.remote import RemoteRegistry
from tests.unit.vllm_plugin.conftest import World

pytestmark = pytest.mark.engine


async def test_every_form_of_a_reference_is_understood(world: World) -> None:
    first, second = await world.push(), await world.push()
    await world.calls.set_alias(first)
    await world.calls.set_alias(second, "canary")
    server = await world.start_server()
    assert await server.ask("bot@production") == "bot:1"
    assert await server.ask("bot@canary") == "bot:2"
    assert await server.ask("bot") == "bot:1#2"
    assert await server.ask("bot:2") == "bot:2#2"
    assert await server.ask("default/bot@canary") == "bot:2#3"


async def test_an_adapter_of_another_namespace_is_followed_there(world: World) -> None:
    await world.calls.create_base(world.base, ns="team")
    await world.calls.create_adapter("helper", ns="team")
    versions = [await world.push("helper", "team"), await world.push("helper", "team")]
    await world.calls.set_alias(versions[0])
    server = await world.start_server()
    assert await server.ask("team/helper@production") == "team/helper:1"
    await world.calls.set_alias(versions[1])
    await server.comes_to("team/helper@production", "team/helper:2")


async def test_a_bare_name_follows_the_newest_version_until_there_is_a_production_one(
    world: World,
) -> None:
    first = await world.push()
    server = await world.start_server()
    assert await server.ask("bot") == "bot:1"
    await world.push()
    await server.comes_to("bot", "bot:2")
    await world.calls.set_alias(first)
    await server.comes_to("bot", "bot:1")


async def test_no_two_loads_in_the_engine_share_a_name_or_a_number(world: World) -> None:
    versions = [await world.push(), await world.push()]
    server = await world.start_server()
    for turn in range(4):
        await world.calls.set_alias(versions[turn % 2])
        name = f"bot:{turn % 2 + 1}"
        await server.comes_to("bot@production", name)
    await server.ask("bot:1")
    loads = set(server.engine.loaded)
    assert {name for name, _, _ in loads} == {"bot:1", "bot:2", "bot:1#2"}
    assert len({number for _, number, _ in loads}) == 3
    # The old version may have requests in flight: vLLM itself drops it when it needs the room.
    assert server.engine.removed == []


async def test_many_who_ask_for_one_version_at_once_fetch_it_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = await world.push()
    await world.calls.set_alias(version)
    server = await world.start_server()
    fetched: list[str] = []
    fetch = RemoteRegistry.fetch

    async def counted(registry: RemoteRegistry, file: AdapterFile, target: Path) -> None:
        fetched.append(file.path)
        await fetch(registry, file, target)

    monkeypatch.setattr(RemoteRegistry, "fetch", counted)
    names = ("bot", "bot:1", "bot@production", "default/bot")
    loads = await asyncio.gather(*(server.ask(name) for name in names for _ in range(5)))
    assert "" not in loads
    assert sorted(fetched) == ["adapter_config.json", "adapter_model.safetensors"]
    assert len(server.engine.loaded) == len(names)


async def test_a_name_that_vllm_unloaded_is_resolved_anew_under_another_name(world: World) -> None:
    await world.push()
    server = await world.start_server()
    assert await server.ask("bot:1") == "bot:1"
    del server.models.lora_requests["bot:1"]
    assert await server.ask("bot:1") == "bot:1#2"


async def test_a_name_as_the_list_of_models_has_it_can_be_asked_for(world: World) -> None:
    await world.push()
    server = await world.start_server()
    assert await server.ask("bot") == "bot:1"
    assert await server.ask("bot:1") == "bot:1#2"
    assert await server.ask("bot:1#2") == "bot:1#3"


async def test_a_name_that_means_nothing_any_more_is_not_served_any_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = [await world.push(), await world.push()]
    await world.calls.set_alias(versions[0])
    server = await world.start_server()
    assert await server.ask("bot@production") == "bot:1"

    async def deleted(_: RemoteRegistry, reference: ModelReference) -> pb.Version:
        raise GraftError(Reason.ALIAS_NOT_FOUND, f"{reference} is deleted", next_step="Set it.")

    monkeypatch.setattr(RemoteRegistry, "find_message", deleted)
    await world.calls.set_alias(versions[1])
    await server.comes_to("bot@production", "")
