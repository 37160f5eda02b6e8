"""A stock vLLM server with the installed plugin: it answers for names of the registry and follows them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.support.models import make_adapter, make_base
from tests.support.peft import peft_greedy
from tests.support.registry import RegistryCalls, registry_calls, running_registry
from tests.support.scaled_folders import make_dora, make_ia3
from tests.support.vllm_server import vllm_server
from tests.support.waiting import eventually

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]
# Longer than a block of the prefix cache (128 tokens on a CPU), so that a stale one would show.
PROMPT = [3 + (7 * place) % 500 for place in range(150)]


@dataclass(frozen=True, slots=True)
class Serving:
    """A server, its registry, and the base of both."""

    http: httpx.AsyncClient
    registry: RegistryCalls
    base: Path
    fingerprint: str
    folder: Path

    async def push(self, adapter: str, seed: int, **changes: Any) -> tuple[str, Path]:
        """Commits another version; returns its name and its files."""
        files = make_adapter(self.folder / f"{adapter}-{seed}", self.base, seed=seed, **changes)
        version = await self.registry.commit(files, self.fingerprint, adapter)
        return version.name, files

    async def ask(self, model: str, count: int = 12) -> httpx.Response:
        """A greedy completion of PROMPT."""
        return await self.http.post(
            "/v1/completions",
            json={
                "model": model,
                "prompt": PROMPT,
                "max_tokens": count,
                "temperature": 0,
                "ignore_eos": True,
                "return_token_ids": True,
            },
        )

    async def answer(self, model: str, count: int = 12) -> tuple[str, list[int]]:
        """Who answered, and the tokens."""
        body = (await self.ask(model, count)).raise_for_status().json()
        return body["model"], body["choices"][0]["token_ids"]

    async def reference(self, files: Path | None, count: int = 12) -> list[int]:
        """What PEFT answers with an adapter's files."""
        return await asyncio.to_thread(peft_greedy, self.base, files, PROMPT, count)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def serving(
    tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Serving]:
    """One server for all tests here: each uses adapters of its own."""
    folder = tmp_path_factory.mktemp("vllm-plugin")
    async with (
        running_registry(folder / "registry") as server,
        registry_calls(server.address) as registry,
    ):
        base = await registry.create_base(tiny_base)
        environment = {
            "VLLM_PLUGINS": "graft",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "GRAFT_REGISTRY": server.address,
            "GRAFT_VLLM_CACHE_DIR": str(folder / "cache"),
            "GRAFT_VLLM_RETRY_S": "0",
        }
        async with vllm_server(tiny_base, folder / "log", environment) as http:
            yield Serving(http, registry, tiny_base, base.fingerprint.digest, folder)


async def test_an_alias_is_answered_as_peft_would_and_the_answer_names_the_version(
    serving: Serving,
) -> None:
    await serving.registry.create_adapter("bot")
    version, files = await serving.push("bot", 1)
    await serving.registry.set_alias(version)
    expected = await serving.reference(files)
    assert await serving.answer("bot@production") == ("bot:1", expected)
    _, by_the_base = await serving.answer(str(serving.base))
    assert by_the_base == await serving.reference(None) != expected


async def test_dora_and_ia3_are_answered_as_peft_would_beside_the_base(serving: Serving) -> None:
    for kind, make in (("dora", make_dora), ("ia3", make_ia3)):
        await serving.registry.create_adapter(kind)
        files = make(serving.folder / kind, serving.base)
        await serving.registry.commit(files, serving.fingerprint, kind)
        expected = await serving.reference(files)
        found, (_, by_the_base) = await asyncio.gather(
            serving.answer(f"{kind}:1"), serving.answer(str(serving.base))
        )
        assert found == (f"{kind}:1", expected)
        assert by_the_base == await serving.reference(None) != expected


async def test_an_alias_that_moves_is_followed_and_what_has_begun_ends_on_its_version(
    serving: Serving,
) -> None:
    await serving.registry.create_adapter("mover")
    first, old_files = await serving.push("mover", 1)
    second, new_files = await serving.push("mover", 2)
    await serving.registry.set_alias(first)
    assert (await serving.answer("mover@production"))[0] == "mover:1"

    long = asyncio.create_task(serving.answer("mover@production", 300))
    await serving.registry.set_alias(second)
    await eventually(lambda: serves(serving, "mover@production", "mover:2"), "the move")

    assert (await serving.answer("mover@production"))[1] == await serving.reference(new_files)
    assert (await long) == ("mover:1", await serving.reference(old_files, 300))

    await serving.registry.set_alias(first)
    await eventually(lambda: serves(serving, "mover@production", "mover:1"), "the way back")
    assert (await serving.answer("mover@production"))[1] == await serving.reference(old_files)


async def serves(serving: Serving, asked: str, version: str) -> bool:
    return (await serving.answer(asked, 1))[0] == version


async def test_what_cannot_be_served_is_vllms_own_404_and_the_server_goes_on(
    serving: Serving, tmp_path: Path
) -> None:
    await serving.registry.create_adapter("wide")
    wide, _ = await serving.push("wide", 1, rank=64)
    await serving.registry.set_alias(wide)
    other_folder = make_base(tmp_path / "other", seed=5)
    other = await serving.registry.create_base(other_folder, "other")
    await serving.registry.create_adapter("stranger", "other")
    stranger = make_adapter(tmp_path / "stranger", other_folder)
    await serving.registry.commit(stranger, other.fingerprint.digest, "stranger")

    for name in ("nobody@production", "not a name!", "wide", "stranger:1"):
        refused = await serving.ask(name)
        assert refused.status_code == 404, name
        assert refused.json()["error"]["type"] == "NotFoundError"

    for said in (
        "wide/versions/1 has rank 64, and this engine takes up to 16",
        "stranger/versions/1 was trained on another base",
    ):
        # Another process writes it, when it comes to it.
        await eventually(partial(_logged, serving, said), said)
    assert (await serving.ask(str(serving.base))).status_code == 200


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/v1/load_lora_adapter", {"lora_name": "mine", "lora_path": "{files}"}),
        ("/adapters", {"name": "mine", "src": "{files}"}),
    ],
)
async def test_nobody_brings_an_adapter_past_the_registry(
    serving: Serving, tmp_path: Path, route: str, body: dict[str, str]
) -> None:
    files = str(make_adapter(tmp_path / "mine", serving.base))
    filled = {key: value.format(files=files) for key, value in body.items()}
    refused = await serving.http.post(route, json=filled)
    assert refused.status_code == 403
    assert "Adapters come from the Graft registry" in refused.text
    assert (await serving.ask("mine")).status_code == 404


async def test_the_server_tells_which_version_a_name_serves(serving: Serving) -> None:
    await serving.registry.create_adapter("known")
    name, _ = await serving.push("known", 1)
    await serving.answer("known")
    told = (await serving.http.get("/graft/adapters")).raise_for_status().json()
    (entry,) = [model for model in told["models"] if model["model"] == "known"]
    version = await serving.registry.get_version(name)
    assert (entry["version"], entry["digest"]) == (name, version.digest)
    assert (entry["serves"], told["connected"]) == ("known:1", {"default": True})


def _logged(serving: Serving, said: str) -> bool:
    return said in (serving.folder / "log").read_text("utf-8", "replace")
