"""What vLLM's core hashes of a soft prompt's request: what was learned, and no rows that nobody reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from services.inference.engines.base import EngineAdapter
from services.inference.engines.vllm_soft import SoftPrompts
from services.inference.vllm_plugin import soft_entry

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore")]
BLOCK = 4
WEIGHTS = "adapter_model.safetensors"


@dataclass
class Request:
    """As much of vLLM's as its function reads."""

    prompt_embeds: torch.Tensor
    prompt_is_token_ids: list[bool] | None
    _prompt_embeds_per_block_hashes: dict[tuple[int, int], bytes] = field(default_factory=dict)


def request(learned: float, tokens: int = 8) -> Request:
    """Six learned rows, and tokens after them."""
    rows = torch.zeros((6 + tokens, 3))
    rows[:6] = learned
    return Request(rows, [False] * 6 + [True] * tokens)


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> Any:
    """vLLM's module, in which what is installed ends with the test."""
    from vllm.v1.core import kv_cache_utils

    name = "_gen_prompt_embeds_extra_hash_keys"
    monkeypatch.setattr(kv_cache_utils, name, getattr(kv_cache_utils, name))
    soft_entry.install()
    soft_entry.install()
    return kv_cache_utils


def test_blocks_of_tokens_alone_have_no_key_of_their_own(keys: Any) -> None:
    one, other = request(0.5), request(0.7)

    def key(of: Any, start: int) -> Any:
        return keys._gen_prompt_embeds_extra_hash_keys(of, start, start + BLOCK)

    for start in (0, BLOCK):
        assert key(one, start), "it holds learned rows"
        assert key(one, start) != key(other, start)
        assert key(one, start) == key(request(0.5), start)
    assert key(one, 2 * BLOCK) == [], (
        "tokens are in the block's hash already, and so is what is before"
    )


def test_embeddings_without_token_ids_are_hashed_as_ever(keys: Any) -> None:
    rows = Request(torch.zeros((8, 3)), None)
    assert keys._gen_prompt_embeds_extra_hash_keys(rows, BLOCK, 2 * BLOCK)


def test_a_learned_row_is_no_token_of_the_vocabulary_unless_the_prompt_is_scored(
    tmp_path: Path,
) -> None:
    save_file({"prompt_embeddings": np.ones((2, 3), np.float32)}, tmp_path / WEIGHTS)
    soft = SoftPrompts(vocab_size=100, dtype=torch.bfloat16, factor=0.5)
    adapter = EngineAdapter(1, "bot@digest", tmp_path)
    soft.load(adapter, soft.read(tmp_path))
    prompt = soft.prompt(adapter, [5, 6, 7])
    # vLLM's penalties pad with the vocabulary's size, and pass over it.
    assert prompt["prompt_token_ids"] == [100, 100, 5, 6, 7]
    assert prompt["is_token_ids"] == [False, False, True, True, True]
    rows = prompt["prompt_embeds"]
    assert (rows.dtype, rows.tolist()) == (torch.bfloat16, [[0.5] * 3] * 2 + [[0.0] * 3] * 3)
    # It is looked up among the logits then, where 100 would end the engine.
    scored = soft.prompt(adapter, [5, 6, 7], scored=True)
    assert scored["prompt_token_ids"] == [0, 0, 5, 6, 7]
    assert (soft.tokens(adapter), soft.unload(adapter), soft.tokens(adapter)) == (2, True, 0)
