"""vLLM's own table of models with the installed plugin, on a real registry and without an engine."""

from __future__ import annotations

import logging
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from services.registry.server import RegistryServer
from tests.support.models import make_adapter
from tests.support.registry import RegistryCalls, registry_calls, start_registry
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from services.inference.vllm_plugin.plugin import GraftPlugin


@dataclass
class EngineStandIn:
    """Takes loads as vLLM's engine client does, and remembers them; while broken it refuses them."""

    model_config: Any
    renderer: Any = None
    input_processor: Any = None
    loaded: list[tuple[str, int, str]] = field(default_factory=list)
    removed: list[int] = field(default_factory=list)
    broken: bool = False

    async def add_lora(self, load: Any) -> bool:
        if self.broken:
            raise RuntimeError("the engine cannot load it")
        self.loaded.append((load.lora_name, load.lora_int_id, load.lora_path))
        return True

    async def remove_lora(self, number: int) -> bool:
        self.removed.append(number)
        return True


class Server:
    """vLLM's OpenAIServingModels as an HTTP request meets it, and the registry that it follows."""

    def __init__(self, models: Any, engine: EngineStandIn, plugin: GraftPlugin) -> None:
        self.models, self.engine, self.plugin = models, engine, plugin

    async def ask(self, name: str) -> str:
        """The load that answers a request for name; "" where vLLM answers 404."""
        if name not in self.models.lora_requests:
            found = await self.models.resolve_lora(name)
            if not hasattr(found, "lora_name"):
                assert found.error.code == 404, found
                return ""
        return str(self.models.lora_requests[name].lora_name)

    async def comes_to(self, name: str, load: str) -> None:
        """Waits until requests for name are answered by a load."""

        async def arrived() -> bool:
            return await self.ask(name) == load

        await eventually(arrived, f"{name} being served as {load or '404'}")


@dataclass
class World:
    """A registry with the base "tiny" and the adapter "bot", and a way to start servers."""

    registry: RegistryServer
    calls: RegistryCalls
    base: Path
    fingerprint: str
    folder: Path
    start_server: Callable[..., Awaitable[Server]]

    async def push(
        self, adapter: str = "bot", ns: str = "default", rank: int = 8, template: str = ""
    ) -> str:
        """Commits another version, with random weights of its own and, where given, a chat template."""
        seed = len(list(self.folder.iterdir()))
        files = make_adapter(self.folder / str(seed), self.base, seed=seed, rank=rank)
        if template:
            (files / "chat_template.jinja").write_text(template)
        return (await self.calls.commit(files, self.fingerprint, adapter, ns)).name


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What the server's operator reads; vLLM keeps its own loggers from pytest's."""
    logger = logging.getLogger("vllm.graft")
    logger.setLevel(logging.INFO)
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.fixture
async def world(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    registry = await start_registry(tmp_path / "registry")
    (tmp_path / "adapters").mkdir()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(registry.stop)
        calls = await stack.enter_async_context(registry_calls(registry.address))
        base = await calls.create_base(tiny_base)
        await calls.create_adapter()

        async def start_server(
            model: Path = tiny_base, max_rank: int = 16, chat_template: str = "", **env: str
        ) -> Server:
            variables = {
                "VLLM_PLUGINS": "graft",
                "GRAFT_REGISTRY": registry.address,
                "GRAFT_VLLM_CACHE_DIR": str(tmp_path / "cache"),
                "GRAFT_VLLM_RETRY_S": "0",
            }
            for name, value in (variables | env).items():
                monkeypatch.setenv(name, value)
            server = make_server(model, max_rank, chat_template)
            stack.push_async_callback(server.plugin.close)
            return server

        yield World(
            registry, calls, tiny_base, base.fingerprint.digest, tmp_path / "adapters", start_server
        )


def make_server(model: Path, max_rank: int, chat_template: str) -> Server:
    """What vLLM does with the plugin at start: both entry points, in its order."""
    with warnings.catch_warnings():
        # Importing vLLM warns of its own and of its libraries' deprecations.
        warnings.simplefilter("ignore")
        from vllm.entrypoints.openai.models.protocol import BaseModelPath
        from vllm.entrypoints.openai.models.serving import OpenAIServingModels
        from vllm.lora.resolver import LoRAResolverRegistry
    LoRAResolverRegistry.resolvers.clear()
    (register,) = entry_points(group="vllm.general_plugins", name="graft")
    register.load()()
    plugin: Any = LoRAResolverRegistry.get_resolver("graft")
    engine = EngineStandIn(SimpleNamespace(model=str(model), max_model_len=256))
    models = OpenAIServingModels(engine, [BaseModelPath(name="base", model_path=str(model))])
    plugin.attach(models, str(model), None, max_rank, chat_template)
    return Server(models, engine, plugin)


@pytest.fixture(params=["together", "packed", "one by one", "as it decides"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All ways of LoRA have to give the same for every shape; a CPU without AMX has no packed one."""
    from services.inference.vllm_plugin import cpu_lora_math, cpu_lora_packed

    if request.param in ("together", "one by one"):
        monkeypatch.setattr(
            cpu_lora_packed.PackedLayer, "of", classmethod(lambda cls, slices: None)
        )
    if request.param != "as it decides":
        pays = request.param != "one by one"
        monkeypatch.setattr(
            cpu_lora_math, "together_pays", lambda x, content, groups: pays and content.tame
        )


@pytest.fixture(scope="session")
def kernels() -> None:
    """vLLM's own products; without the package there are none, and torch's are used."""
    import torch

    with warnings.catch_warnings(), suppress(ImportError):
        warnings.simplefilter("ignore")
        import vllm._C  # noqa: F401
    ask: Any = getattr(torch.cpu, "_init_amx", None)
    if ask is not None:
        ask()
