"""Soft prompts on bases that do something to their embeddings, and in bfloat16; each takes an engine of its own."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from services.inference.engines.base import EngineAdapter, Sampling
from services.inference.engines.vllm_arguments import VllmOptions
from tests.support.engines import SharedEngine
from tests.support.models import REPOSITORY, TOKENIZER_FILES
from tests.unit.inference.test_served_soft import (
    PROMPTS,
    TOKENS,
    Drawn,
    peft_answer,
    soft_prompt,
    table,
)

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.engine,
    pytest.mark.soak,
    pytest.mark.filterwarnings("default"),
]
SMALL = {
    "vocab_size": 1024,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"vocab_size": 1024, "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 512}
# What is multiplied when, in vLLM and in transformers, differs between them.
BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "Gemma": ("GemmaConfig", SMALL),
    "Gemma2": ("Gemma2Config", SMALL | {"query_pre_attn_scalar": 32}),
    "Granite": ("GraniteConfig", SMALL | {"embedding_multiplier": 12.0}),
    "Qwen2": ("Qwen2Config", {key: SMALL[key] for key in SMALL if key != "head_dim"}),
    "GPT2": ("GPT2Config", GPT2 | {"bos_token_id": 1, "eos_token_id": 2}),
}
# vLLM's own order of computing, which differs most for Gemma2's soft caps; the base alone differs as much.
FLOAT32_LOGPROBS = 5e-3
# Of bfloat16's 8 binary digits after a few layers, in nats.
BF16_LOGPROBS = 0.1
_numbers = itertools.count(1)


def make_base(folder: Path, name: str) -> Path:
    """A base of an architecture, with random weights and the example base's tokenizer."""
    import torch
    import transformers

    torch.manual_seed(1)
    kind, settings = BASES[name]
    config = getattr(transformers, kind)(**settings)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    model.save_pretrained(folder)
    for file in TOKENIZER_FILES:
        shutil.copy(REPOSITORY / "examples/base" / file, folder / file)
    return folder


@asynccontextmanager
async def engine_on(base: Path, dtype: str = "float32") -> AsyncIterator[SharedEngine]:
    """Without LoRA, so that only soft prompts are looked at."""
    engine = SharedEngine(
        VllmOptions(
            base=base,
            max_adapters=0,
            max_lora_rank=8,
            max_model_len=256,
            max_num_seqs=8,
            dtype=dtype,
            quantization=None,
            gpu_memory_utilization=0.5,
            cpu_kv_cache_gib=1,
            enforce_eager=True,
            enable_prefix_caching=True,
            seed=0,
            trust_remote_code=False,
        )
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        await engine.start()
    try:
        yield engine
    finally:
        await engine.really_stop()
        await asyncio.sleep(0)


async def ask(engine: SharedEngine, adapter: EngineAdapter | None, ids: list[int]) -> Drawn:
    """A greedy answer."""
    sampling = Sampling(max_tokens=TOKENS, temperature=0.0, ignore_eos=True, logprobs=0)
    found = Drawn([], [])
    async for delta in engine.generate(f"q{next(_numbers)}", ids, sampling, adapter, stream=False):
        found.tokens += delta.token_ids
        found.logprobs += [each.drawn.logprob for each in delta.logprobs]
    return found


@pytest.mark.parametrize("name", BASES)
async def test_a_soft_prompt_is_pefts_on_a_base_that_scales(name: str, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", name)
    heads = {"num_attention_heads": 2, "num_layers": 2}
    folder = soft_prompt(tmp_path / "soft", table(5), **heads)
    async with engine_on(base) as engine:
        adapter = EngineAdapter(next(_numbers), "soft", folder)
        await engine.inspect("soft", folder)
        await engine.load(adapter)
        for ids in PROMPTS:
            for asked, files in ((adapter, folder), (None, None)):
                found, expected = await ask(engine, asked, ids), peft_answer(base, files, ids, 1.0)
                assert found.tokens == expected.tokens
                assert found.logprobs == pytest.approx(expected.logprobs, abs=FLOAT32_LOGPROBS)


async def test_in_bfloat16_log_probabilities_are_near_float32s(
    tiny_base: Path, tmp_path: Path
) -> None:
    folder = soft_prompt(tmp_path / "soft", table(20))
    async with engine_on(tiny_base, "bfloat16") as engine:
        adapter = EngineAdapter(next(_numbers), "soft", folder)
        await engine.load(adapter)
        for ids in PROMPTS:
            expected = peft_answer(tiny_base, folder, ids, 1.0)
            found = await ask(engine, adapter, ids)
            # Once a token is another, so is all that follows it.
            same = sum(1 for _ in itertools.takewhile(lambda two: two[0] == two[1], zip(found.tokens, expected.tokens, strict=True)))  # fmt: skip
            assert same > 0
            near = pytest.approx(expected.logprobs[:same], abs=BF16_LOGPROBS)
            assert found.logprobs[:same] == near
