"""The whole service on the real engine: answers, swaps under load, and bad adapters among good ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio
from graft.channel import rpc_errors
from graft.errors import GraftError, Reason
from graft.inference.v1 import inference_service_pb2 as pb

from services.inference.engines.base import EngineAdapter
from services.inference.registry.memory import MemoryRegistry
from tests.contracts.inference.test_engines import bad_adapters
from tests.support.engines import SharedEngine
from tests.support.inference import (
    BASE,
    FINGERPRINT,
    RunningInference,
    adapter_resource,
    question,
    start_inference,
)
from tests.support.models import make_adapter
from tests.support.waiting import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.engine]
BOT = adapter_resource("bot")


@pytest_asyncio.fixture(loop_scope="session")
async def service(
    vllm_engine: SharedEngine, tiny_base: Path, tmp_path: Path
) -> AsyncIterator[RunningInference]:
    """No adapters yet; two slots."""
    registry = MemoryRegistry(FINGERPRINT)
    await registry.add_adapter(BOT, BASE)
    async with start_inference(
        tmp_path, engine=vllm_engine, registry=registry, base=tiny_base, retry_failed_after_s=60
    ) as running:
        yield running


@pytest.fixture
def fresh(tiny_base: Path, tmp_path: Path) -> Callable[[int], Path]:
    """Makes an adapter of random weights from a seed."""
    return lambda seed: make_adapter(tmp_path / f"adapter-{seed}", tiny_base, seed=seed)


async def test_stream_and_unary_agree_for_base_and_adapter(
    service: RunningInference, fresh: Callable[[int], Path]
) -> None:
    await service.memory.add_version(BOT, fresh(1))
    texts = []
    for model in ("tiny", "bot:1"):
        request = question(model, "The cat sees", max_tokens=24, logprobs=1)
        parts = [part async for part in service.stub.StreamGenerate(request)]
        whole = await service.stub.Generate(request)
        assert "".join(part.text for part in parts) == whole.text
        assert parts[-1].usage == whole.usage
        assert len(whole.logprobs) == whole.usage.completion_tokens
        texts.append(whole.text)
    assert texts[0] != texts[1]


async def test_a_chat_is_answered_with_tools_in_its_prompt(service: RunningInference) -> None:
    request = pb.ChatRequest(
        model="tiny",
        messages=[
            pb.ChatMessage(role="user", content="How warm is it?"),
            pb.ChatMessage(role="assistant", tool_calls=[pb.ToolCall(name="weather")]),
            pb.ChatMessage(role="tool", content="12"),
        ],
        sampling=pb.SamplingParams(max_tokens=4),
    )
    without = (await service.stub.Chat(request)).usage.prompt_tokens
    request.tools.add().update({"type": "function", "function": {"name": "weather"}})
    assert (await service.stub.Chat(request)).usage.prompt_tokens > without


async def test_a_version_with_a_template_of_its_own_is_asked_through_it(
    service: RunningInference, fresh: Callable[[int], Path], tiny_base: Path
) -> None:
    folder = fresh(1)
    text = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(text)
    await service.memory.add_version(BOT, folder)
    request = pb.ChatRequest(
        model="bot:1",
        messages=[pb.ChatMessage(role="user", content="How warm is it?")],
        sampling=pb.SamplingParams(max_tokens=8, temperature=0),
    )
    tokens = service.engine.special_tokens
    prompt = f"{tokens.get('bos_token', '')}[user] How warm is it?{tokens['eos_token']}"
    asked = question("bot:1", max_tokens=8)
    asked.prompt_token_ids.ids.extend(service.engine.tokenize(prompt, special_tokens=False))
    expected, answer = await service.stub.Generate(asked), await service.stub.Chat(request)
    assert (answer.text, answer.usage) == (expected.text, expected.usage)


async def test_a_disconnected_client_leaves_no_request_in_the_engine(
    service: RunningInference, fresh: Callable[[int], Path]
) -> None:
    await service.memory.add_version(BOT, fresh(1))
    calls = [
        service.stub.StreamGenerate(question("bot:1", max_tokens=200, ignore_eos=True))
        for _ in range(4)
    ]
    for call in calls:
        await call.read()
        call.cancel()
    await eventually(lambda: service.engine.unfinished() == 0, "the abort")
    assert (await service.ask("bot:1")).text


async def test_bad_adapters_fail_by_name_and_harm_nobody(
    service: RunningInference,
    fresh: Callable[[int], Path],
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await service.memory.add_version(BOT, fresh(1))
    await service.promote("bot", 1)
    expected = {model: (await service.ask(model)).text for model in ("tiny", "bot")}
    # This registry admits everything, so that what no real one would admit comes here, too.
    bad = bad_adapters(tmp_path / "bad", tiny_base)
    versions: dict[str, str] = {}
    tried: set[str] = set()
    load = service.engine.load

    async def watched(adapter: EngineAdapter) -> None:
        tried.add(adapter.name)
        await load(adapter)

    monkeypatch.setattr(service.engine, "load", watched)
    stop = asyncio.Event()

    async def innocent(model: str) -> None:
        while not stop.is_set():
            assert (await service.ask(model)).text == expected[model]

    innocents = [
        asyncio.create_task(innocent(model)) for model in ("tiny", "bot", "bot@production")
    ]
    expected["bot@production"] = expected["bot"]
    try:
        for number, folder in enumerate(bad, start=2):
            version = await service.memory.add_version(BOT, folder)
            versions[f"bot@{version.digest}"] = folder.name
            await service.promote("bot", number)
            with pytest.raises(GraftError) as caught, rpc_errors("the service"):
                await service.ask(f"bot:{number}")
            rank = folder.name == "rank"
            assert caught.value.reason is (
                Reason.RANK_TOO_LARGE if rank else Reason.ADAPTER_UNUSABLE
            )
            assert caught.value.next_step
    finally:
        stop.set()
        await asyncio.gather(*innocents)
    assert service.engine.healthy
    # None of them came as far as the engine.
    assert not tried


async def test_swaps_under_load_fail_nothing_and_mix_nothing(
    service: RunningInference, fresh: Callable[[int], Path], vllm_engine: SharedEngine
) -> None:
    versions = 6
    expected = {"": (await service.ask("tiny", max_tokens=40)).text}
    for number in range(1, versions + 1):
        version = await service.memory.add_version(BOT, fresh(number))
        expected[version.name] = (await service.ask(f"bot:{number}", max_tokens=40)).text
    assert len(set(expected.values())) == versions + 1
    await service.promote("bot", 1)
    await service.ask("bot@production")
    seen: list[str] = []
    done = asyncio.Event()

    async def client(model: str) -> None:
        while not done.is_set():
            request = question(model, max_tokens=40)
            parts = [part async for part in service.stub.StreamGenerate(request)]
            (name,) = {part.provenance.version for part in (parts[0], parts[-1])}
            assert "".join(part.text for part in parts) == expected[name]
            seen.append(name)

    models = ["bot@production"] * 6 + ["tiny"] * 2
    clients = [asyncio.create_task(client(model)) for model in models]
    try:
        await eventually(partial(seen.__contains__, f"{BOT}/versions/1"), "an answer")
        for number in range(2, versions + 1):
            await service.promote("bot", number)
            name = f"{BOT}/versions/{number}"
            await eventually(partial(seen.__contains__, name), name)
    finally:
        done.set()
        await asyncio.gather(*clients)
    assert [name for name in dict.fromkeys(seen) if name] == [
        f"{BOT}/versions/{number}" for number in range(1, versions + 1)
    ]
    await eventually(lambda: len(vllm_engine.loaded) == 1, "the unloads")
