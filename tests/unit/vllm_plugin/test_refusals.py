"""What the plugin does not let into vLLM, and what it does while the registry is away."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from graft.errors import GraftError, Reason, UnavailableError

from services.inference.vllm_plugin.settings import PluginSettings
from tests.support.models import make_adapter, make_base
from tests.support.registry import registry_calls, start_registry
from tests.support.waiting import eventually
from tests.unit.vllm_plugin.conftest import World

pytestmark = pytest.mark.engine


async def test_an_unknown_adapter_is_404_and_found_once_it_is_there(world: World) -> None:
    server = await world.start_server()
    assert await server.ask("bot") == ""
    assert await server.ask("not a name!") == ""
    await world.push()
    assert await server.ask("bot") == "bot:1"


async def test_a_refused_name_is_not_looked_up_again_at_once(world: World) -> None:
    server = await world.start_server(GRAFT_VLLM_RETRY_S="3600")
    assert await server.ask("bot") == ""
    await world.push()
    assert await server.ask("bot") == ""
    assert await server.ask("bot:1") == "bot:1"


async def test_an_adapter_of_another_base_is_refused(
    world: World, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    await world.push()
    other = make_base(tmp_path / "other", seed=3)
    server = await world.start_server(model=other)
    assert await server.ask("bot") == ""
    assert "bot/versions/1 was trained on another base" in log.text
    assert server.engine.loaded == []


async def test_a_model_whose_files_are_nowhere_serves_no_adapter_and_says_what_to_set(
    world: World, log: pytest.LogCaptureFixture
) -> None:
    await world.push()
    away = Path("somebody/some-model")
    server = await world.start_server(model=away)
    assert await server.ask("bot") == ""
    assert "Set GRAFT_VLLM_BASE" in log.text
    told = await world.start_server(model=away, GRAFT_VLLM_BASE=str(world.base))
    assert await told.ask("bot") == "bot:1"


async def test_a_rank_above_the_servers_is_refused(
    world: World, log: pytest.LogCaptureFixture
) -> None:
    await world.push(rank=32)
    server = await world.start_server(max_rank=16)
    assert await server.ask("bot") == ""
    assert "has rank 32, and this engine takes up to 16" in log.text
    assert "--max-lora-rank" in log.text


async def test_damaged_bytes_are_fetched_again_and_never_served(world: World) -> None:
    await world.push()
    server = await world.start_server()
    await server.ask("bot")
    (_, _, path) = server.engine.loaded[0]
    weights = Path(path) / "adapter_model.safetensors"
    right = weights.read_bytes()
    weights.write_bytes(right[:-1] + b"x")
    again = await world.start_server()
    assert await again.ask("bot") == "bot:1"
    assert weights.read_bytes() == right


async def test_a_version_that_the_engine_refuses_leaves_the_alias_where_it_was(
    world: World, log: pytest.LogCaptureFixture
) -> None:
    versions = [await world.push(), await world.push()]
    await world.calls.set_alias(versions[0])
    server = await world.start_server()
    assert await server.ask("bot@production") == "bot:1"
    server.engine.broken = True
    await world.calls.set_alias(versions[1])
    await eventually(lambda: bool(server.engine.removed), "the failed load's removal")
    assert await server.ask("bot@production") == "bot:1"
    server.engine.broken = False
    await world.calls.set_alias(versions[0])
    await world.calls.set_alias(versions[1])
    await server.comes_to("bot@production", "bot:2#2")


async def test_while_the_registry_is_away_what_was_resolved_is_served(
    world: World, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    versions = [await world.push(), await world.push()]
    await world.calls.set_alias(versions[0])
    server = await world.start_server()
    assert await server.ask("bot@production") == "bot:1"
    address = world.registry.address
    await world.registry.stop()

    assert await server.ask("bot@production") == "bot:1"
    del server.models.lora_requests["bot@production"]
    assert await server.ask("bot@production") == "bot:1#2"
    assert "bot@production stays namespaces/default/adapters/bot/versions/1" in log.text
    assert await server.ask("bot:2") == ""

    back = await start_registry(tmp_path / "registry", listen=address)
    try:
        async with registry_calls(back.address) as calls:

            async def moved() -> bool:
                # gRPC shares connections of a process, and an old one may wait for its next attempt.
                with suppress(UnavailableError):
                    await calls.set_alias(versions[1])
                    return True
                return False

            await eventually(moved, "the registry's return", 60.0)
        await server.comes_to("bot@production", "bot:2")
    finally:
        await back.stop()


async def test_loading_from_a_path_is_left_open_only_when_it_is_asked_for(world: World) -> None:
    closed = await world.start_server()
    opened = await world.start_server(GRAFT_VLLM_ALLOW_LOAD="1")
    from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest

    files = make_adapter(world.folder / "mine", world.base)
    request = LoadLoRAAdapterRequest(lora_name="mine", lora_path=str(files))
    refused = await closed.models.load_lora_adapter(request)
    assert refused.error.code == 403
    assert "Success" in await opened.models.load_lora_adapter(request)


def test_the_plugin_does_nothing_where_vllm_plugins_does_not_name_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (register,) = entry_points(group="vllm.general_plugins", name="graft")
    monkeypatch.setenv("GRAFT_REGISTRY", "not an address")
    for value in ("", "lora_filesystem_resolver"):
        monkeypatch.setenv("VLLM_PLUGINS", value)
        register.load()()
    monkeypatch.delenv("VLLM_PLUGINS")
    register.load()()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("GRAFT_REGISTRY", "nowhere"),
        ("GRAFT_SIGNATURE_POLICY", "sometimes"),
        ("GRAFT_SIGNATURE_POLICY", "require"),
        ("GRAFT_VLLM_RETRY_S", "soon"),
        ("GRAFT_VLLM_TIMEOUT_S", "-1"),
        ("GRAFT_NAMESPACE", "Not One"),
    ],
)
def test_a_wrong_setting_is_named_at_start(variable: str, value: str) -> None:
    with pytest.raises(GraftError) as caught:
        PluginSettings.from_environment({variable: value})
    assert caught.value.reason in (Reason.INVALID_REQUEST, Reason.INVALID_NAME)
    assert caught.value.next_step
