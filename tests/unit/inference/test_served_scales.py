"""DoRA and IA3 on the real engine beside plain LoRA and the base: what PEFT itself answers, whoever had the slot before.

Trained by our trainer, registered in a registry, served by the service. The scales of a GPU, which are always
computed, are asked of a second engine here: in bfloat16, on a base whose layers have biases.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from graft.channel import open_channel
from graft.errors import GraftError, Reason
from graft.inference.v1 import inference_service_pb2 as pb
from safetensors.numpy import load_file, save_file

from services.inference.engines.base import EngineAdapter, Sampling
from services.inference.engines.vllm_arguments import VllmOptions
from services.inference.registry.memory import MemoryRegistry
from services.inference.registry.remote import RemoteRegistry
from services.inference.vllm_plugin import cpu_lora_entry
from tests.support.engines import SharedEngine
from tests.support.inference import (
    BASE,
    FINGERPRINT,
    RunningInference,
    adapter_resource,
    question,
    start_inference,
)
from tests.support.models import make_base
from tests.support.peft import peft_greedy
from tests.support.registry import running_registry
from tests.support.scaled import METHODS, next_token_logprobs, train, write_task
from tests.unit.inference.refusals import refusal

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.engine,
    pytest.mark.training,
    pytest.mark.filterwarnings("default"),
]
PROMPT = [1, *range(300, 316)]
TOKENS = 12
# Of bfloat16's 8 binary digits after a few layers; the largest difference seen was under a third of it.
LOGPROB_TOLERANCE = 0.1
_numbers = itertools.count(1)
Folders = dict[str, Path]


def make_lively(folder: Path) -> Path:
    """A base that does not just repeat its last token: its layers say more than its embedding."""
    base = make_base(folder)
    tensors = load_file(base / "model.safetensors")
    tensors["model.embed_tokens.weight"] *= 0.25
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    return base


def options(base: Path, **changes: Any) -> VllmOptions:
    values = {
        "base": base, "max_adapters": 3, "max_lora_rank": 16, "max_model_len": 256, "max_num_seqs": 16,
        "dtype": "float32", "quantization": None, "gpu_memory_utilization": 0.5, "cpu_kv_cache_gib": 1,
        # Compiled as a user's is, where minutes do not count: make chaos, make soak.
        "enforce_eager": "GRAFT_TEST_COMPILED" not in os.environ, "enable_prefix_caching": True,
        "seed": 0, "trust_remote_code": False, "max_cpu_adapters": 6,
    }  # fmt: skip
    return VllmOptions(**{**values, **changes})


@asynccontextmanager
async def running(chosen: VllmOptions) -> AsyncIterator[SharedEngine]:
    engine = SharedEngine(chosen)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        await engine.start()
    try:
        yield engine
    finally:
        await engine.really_stop()
        await asyncio.sleep(0)


@dataclass
class Trained:
    """One adapter of each kind."""

    base: Path
    folders: Folders
    registry: str

    def wanted(self, kind: str, prompt: list[int]) -> list[int]:
        """What PEFT itself answers."""
        return peft_greedy(self.base, self.folders.get(kind), prompt, TOKENS)


@pytest.fixture(scope="module")
def lively_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_lively(tmp_path_factory.mktemp("lively") / "tiny")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def trained(
    lively_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Trained]:
    folder = tmp_path_factory.mktemp("scaled")
    task = write_task(folder / "task.jsonl")
    async with running_registry(folder / "registry") as server:
        folders = {
            kind: await asyncio.to_thread(
                train, kind, lively_base, task, folder / kind, server.address
            )
            for kind in METHODS
        }
        yield Trained(lively_base, folders, server.address)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(lively_base: Path) -> AsyncIterator[SharedEngine]:
    """Three slots, and room for three more in main memory."""
    async with running(options(lively_base)) as one:
        yield one


@pytest_asyncio.fixture(loop_scope="module")
async def service(
    engine: SharedEngine, trained: Trained, tmp_path: Path
) -> AsyncIterator[RunningInference]:
    """Of the registry that the trainer committed to."""
    registry = RemoteRegistry(open_channel(trained.registry), "default")
    async with start_inference(
        tmp_path, engine=engine, registry=registry, base=trained.base, max_cpu_adapters=6
    ) as one:
        yield one


@pytest_asyncio.fixture(loop_scope="module")
async def open_service(
    engine: SharedEngine, trained: Trained, tmp_path: Path
) -> AsyncIterator[RunningInference]:
    """Of a registry that takes everything; its good version is the DoRA."""
    registry = MemoryRegistry(FINGERPRINT)
    for name in ("good", "bad"):
        await registry.add_adapter(adapter_resource(name), BASE)
    await registry.add_version(adapter_resource("good"), trained.folders["dora"])
    async with start_inference(
        tmp_path, engine=engine, registry=registry, base=trained.base, retry_failed_after_s=60
    ) as one:
        yield one


def asked(model: str, prompt: list[int], tokens: int = TOKENS) -> pb.GenerateRequest:
    request = question(model, "", max_tokens=tokens, ignore_eos=True)
    request.prompt_token_ids.ids.extend(prompt)
    return request


async def answer(
    engine: SharedEngine, adapter: EngineAdapter | None, prompt: list[int]
) -> list[int]:
    sampling = Sampling(max_tokens=TOKENS, temperature=0.0, ignore_eos=True)
    deltas = engine.generate(f"s{next(_numbers)}", prompt, sampling, adapter, stream=False)
    return [token async for delta in deltas for token in delta.token_ids]


def a_load(kind: str, folder: Path) -> EngineAdapter:
    number = next(_numbers)
    return EngineAdapter(number, f"{kind}#{number}", folder)


async def together(calls: dict[str, Awaitable[Any]]) -> dict[str, Any]:
    return dict(zip(calls, await asyncio.gather(*calls.values()), strict=True))


async def test_trained_adapters_of_each_kind_and_the_base_answer_in_one_batch_as_in_peft(
    service: RunningInference, trained: Trained
) -> None:
    models = {"tiny": "tiny", **{kind: f"{kind}:1" for kind in METHODS}}
    prompts = [PROMPT, PROMPT[:5], [1, *range(40, 80)]]
    calls: dict[str, Awaitable[Any]] = {
        f"{kind} {number}": service.stub.Generate(asked(model, prompt))
        for number, prompt in enumerate(prompts)
        for kind, model in models.items()
    }
    found = {name: list(one.token_ids) for name, one in (await together(calls)).items()}
    for number, prompt in enumerate(prompts):
        wanted = {kind: trained.wanted(kind, prompt) for kind in models}
        assert {kind: found[f"{kind} {number}"] for kind in models} == wanted
    # Or else that they are equal would say little.
    assert len({str(found[f"{kind} 0"]) for kind in models}) == len(models)


async def test_a_slot_keeps_nothing_of_the_adapter_before(
    engine: SharedEngine, trained: Trained
) -> None:
    wanted = {kind: trained.wanted(kind, PROMPT) for kind in ("base", *METHODS)}
    # Each follows each in the first slot, and the base beside them stays the base.
    for kind in ("dora", "lora", "ia3", "lora", "dora", "ia3", "dora"):
        adapter = a_load(kind, trained.folders[kind])
        await engine.load(adapter)
        assert await together(
            {kind: answer(engine, adapter, PROMPT), "base": answer(engine, None, PROMPT)}
        ) == {kind: wanted[kind], "base": wanted["base"]}
        await engine.unload(adapter)


async def test_adapters_that_come_back_from_main_memory_have_their_scales_again(
    engine: SharedEngine, trained: Trained
) -> None:
    wanted = {kind: trained.wanted(kind, PROMPT) for kind in METHODS}
    adapters = [a_load(kind, trained.folders[kind]) for kind in (*METHODS, *METHODS)]
    for adapter in adapters:
        await engine.load(adapter)
    for _ in range(3):
        found = await asyncio.gather(*(answer(engine, each, PROMPT) for each in adapters))
        assert dict(zip(METHODS, found[:3], strict=True)) == wanted
        assert dict(zip(METHODS, found[3:], strict=True)) == wanted
    for adapter in adapters:
        await engine.unload(adapter)


def changed(
    folder: Path, to: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]
) -> Path:
    """A copy with another configuration or other tensors."""
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    tensors = load_file(folder / "adapter_model.safetensors")
    change(config, tensors)
    to.mkdir()
    (to / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    save_file(tensors, to / "adapter_model.safetensors", metadata={"format": "pt"})
    return to


LAYER = "base_model.model.model.layers.0"


def nan_scale(config: dict[str, Any], tensors: dict[str, Any]) -> None:
    tensors[f"{LAYER}.self_attn.k_proj.ia3_l"][3] = np.nan


def narrow_scale(config: dict[str, Any], tensors: dict[str, Any]) -> None:
    tensors[f"{LAYER}.mlp.down_proj.ia3_l"] = np.ones((1, 64), np.float32)


def merged_input(config: dict[str, Any], tensors: dict[str, Any]) -> None:
    config["target_modules"].append("up_proj")
    config["feedforward_modules"].append("up_proj")
    for layer in ("0", "1"):
        name = f"{LAYER[:-1]}{layer}.mlp.up_proj.ia3_l"
        tensors[name] = np.full((1, 64), 1.5, np.float32)


def no_magnitude(config: dict[str, Any], tensors: dict[str, Any]) -> None:
    del tensors[f"{LAYER}.self_attn.q_proj.lora_magnitude_vector"]


def short_magnitude(config: dict[str, Any], tensors: dict[str, Any]) -> None:
    name = f"{LAYER}.self_attn.q_proj.lora_magnitude_vector"
    tensors[name] = tensors[name][:5].copy()


def infinite_magnitude(config: dict[str, Any], tensors: dict[str, Any]) -> None:
    tensors[f"{LAYER}.self_attn.q_proj.lora_magnitude_vector"][0] = np.inf


def an_embedding(config: dict[str, Any], tensors: dict[str, Any]) -> None:
    config["target_modules"].append("embed_tokens")
    name = "base_model.model.model.embed_tokens"
    tensors[f"{name}.lora_embedding_A"] = np.ones((8, 1024), np.float32)
    tensors[f"{name}.lora_embedding_B"] = np.ones((64, 8), np.float32)
    tensors[f"{name}.lora_magnitude_vector"] = np.ones(64, np.float32)


Q0 = f"{LAYER}.self_attn.q_proj.lora_magnitude_vector"
BAD = {
    "ia3, NaN": (nan_scale, f"{LAYER}.self_attn.k_proj.ia3_l"),
    "ia3, another width": (narrow_scale, f"{LAYER}.mlp.down_proj.ia3_l"),
    "ia3, the input of a merged layer": (merged_input, "up_proj.ia3_l: the input of"),
    "dora, a magnitude too few": (no_magnitude, Q0),
    "dora, a short magnitude": (short_magnitude, Q0),
    "dora, infinity": (infinite_magnitude, Q0),
    "dora, an embedding": (an_embedding, "embed_tokens"),
}


async def test_wrong_scales_are_refused_by_tensor_and_an_answer_in_flight_goes_on(
    open_service: RunningInference, engine: SharedEngine, trained: Trained, tmp_path: Path
) -> None:
    length = 120
    request = asked("good:1", PROMPT, length)
    wanted = list((await open_service.stub.Generate(request)).token_ids)
    in_flight = open_service.stub.StreamGenerate(request)
    parts = aiter(in_flight)
    tokens = list((await anext(parts)).token_ids)
    for number, (what, (change, words)) in enumerate(BAD.items(), start=1):
        kind = what.partition(",")[0]
        folder = changed(trained.folders[kind], tmp_path / str(number), change)
        await open_service.memory.add_version(
            adapter_resource("bad"), folder, peft_type="IA3" if kind == "ia3" else "LORA"
        )
        error = await refusal(open_service.stub.Generate(asked(f"bad:{number}", PROMPT)))
        assert error.reason is Reason.ADAPTER_UNUSABLE, what
        assert words in error.message, what
        assert error.next_step
    async for part in parts:
        tokens += part.token_ids
    assert tokens == wanted
    # Nothing of them is left in the engine.
    assert len(await engine.listed()) == 1


async def test_wrong_scales_that_nobody_inspected_are_refused_by_the_worker_too(
    engine: SharedEngine, trained: Trained, tmp_path: Path
) -> None:
    for number, (what, (change, words)) in enumerate(BAD.items(), start=1):
        folder = changed(trained.folders[what.partition(",")[0]], tmp_path / str(number), change)
        with pytest.raises(GraftError) as caught:
            await engine.load(a_load("bad", folder))
        assert caught.value.reason is Reason.ADAPTER_UNUSABLE, what
        # PEFT's name, or the model's own where a tensor is missing.
        assert words.rpartition("base_model.model.")[2] in caught.value.message, what
    good = a_load("ia3", trained.folders["ia3"])
    await engine.load(good)
    assert await answer(engine, good, PROMPT) == trained.wanted("ia3", PROMPT)
    await engine.unload(good)


def make_biased(folder: Path) -> Path:
    """A Qwen2, whose queries, keys and values have biases; half of what they are added to."""
    base = make_lively(folder)
    config = json.loads((base / "config.json").read_text("utf-8"))
    config |= {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "num_hidden_layers": 2}
    (base / "config.json").write_text(json.dumps(config), "utf-8")
    tensors = load_file(base / "model.safetensors")
    draw = np.random.default_rng(5)
    for name in list(tensors):
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            size = tensors[name].shape[0]
            bias = draw.normal(0, 0.5, size).astype(np.float32)
            tensors[name.replace("weight", "bias")] = bias
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    return base


@pytest.mark.parametrize(
    "lora", [cpu_lora_entry.STOCK, pytest.param("grouped", marks=pytest.mark.soak)]
)
async def test_in_bfloat16_and_with_biases_the_probabilities_are_those_of_peft(
    lora: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_biased(tmp_path / "biased")
    task = write_task(tmp_path / "task.jsonl")
    folders = {
        kind: await asyncio.to_thread(train, kind, base, task, tmp_path / kind) for kind in METHODS
    }
    monkeypatch.setenv(cpu_lora_entry.VARIABLE, lora)
    sampling = Sampling(max_tokens=TOKENS, temperature=0.0, ignore_eos=True, logprobs=8)
    async with running(options(base, dtype="bfloat16", enforce_eager=True)) as engine:
        adapters: dict[str, EngineAdapter | None] = {"base": None}
        for kind, folder in folders.items():
            adapters[kind] = adapter = a_load(kind, folder)
            await engine.load(adapter)

        async def ask(adapter: EngineAdapter | None) -> list[Any]:
            deltas = engine.generate(f"b{next(_numbers)}", PROMPT, sampling, adapter, stream=False)
            return [each async for delta in deltas for each in delta.logprobs]

        found = await together({kind: ask(adapter) for kind, adapter in adapters.items()})
    worst: dict[str, float] = {}
    for kind, positions in found.items():
        ids = [each.drawn.token_id for each in positions]
        wanted = next_token_logprobs(base, folders.get(kind), PROMPT + ids)
        for place, position in enumerate(positions, start=len(PROMPT) - 1):
            for each in position.top:
                difference = abs(each.logprob - float(wanted[place, each.token_id]))
                worst[kind] = max(worst.get(kind, 0.0), difference)
    assert max(worst.values()) <= LOGPROB_TOLERANCE, worst
