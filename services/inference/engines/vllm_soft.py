"""Soft prompts on vLLM: what prompt tuning and P-tuning learned comes before a request's own tokens.

vLLM takes embeddings for some positions of a prompt and token ids for the others (prompt_embeds with a
mask), and embeds the ids itself: the base's embedding matrix, its scale and its type stay vLLM's affair.
Knows nothing of files; vllm_soft_inspection.py has looked into them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.inference.engines.base import EngineAdapter

if TYPE_CHECKING:
    import torch

KINDS = frozenset({"PROMPT_TUNING", "P_TUNING"})
# As many as are loaded at once: each is a table of a few MB at most, and takes no slot.
MAX_LOADED = 256
_TENSOR = "prompt_embeddings"
_WEIGHTS = "adapter_model.safetensors"
# vLLM multiplies embeddings that it is given by this field of the base's config.json; transformers, and so
# the training, multiplies only those that it looks up itself.
_SCALED_BY = {"falcon_h1": "embedding_multiplier"}


class SoftPrompts:
    """The soft prompts that are loaded, each as a table of embeddings in the engine's type.

    Args:
        vocab_size: of the base; the first id that no token has.
        dtype: of torch, in which the engine computes.
        factor: what a learned embedding is multiplied by before vLLM gets it; see factor_of().
    """

    def __init__(self, vocab_size: int, dtype: torch.dtype, factor: float = 1.0) -> None:
        self._nothing, self._dtype, self._factor = vocab_size, dtype, factor
        self._tables: dict[EngineAdapter, torch.Tensor] = {}

    @property
    def loaded(self) -> Collection[EngineAdapter]:
        """Those that can be asked."""
        return self._tables.keys()

    def read(self, folder: Path) -> torch.Tensor:
        """A version's table, of (virtual tokens, hidden size); reads a file: call it in a thread."""
        from safetensors.torch import load_file

        table: torch.Tensor = load_file(folder / _WEIGHTS)[_TENSOR]
        if self._factor != 1.0:
            table = table.float() * self._factor
        return table.to(self._dtype).contiguous()

    def load(self, adapter: EngineAdapter, table: torch.Tensor) -> None:
        """From now on it can be asked."""
        assert len(self._tables) < MAX_LOADED, "more soft prompts than are let in"
        self._tables[adapter] = table

    def unload(self, adapter: EngineAdapter) -> bool:
        """Forgets it; whether it was one of these."""
        return self._tables.pop(adapter, None) is not None

    def clear(self) -> None:
        """Forgets all."""
        self._tables.clear()

    def tokens(self, adapter: EngineAdapter) -> int:
        """How many positions of the context it takes; 0 for what is none of these."""
        table = self._tables.get(adapter)
        return 0 if table is None else len(table)

    def prompt(
        self, adapter: EngineAdapter, token_ids: Sequence[int], *, scored: bool = False
    ) -> dict[str, Any]:
        """What vLLM's generate() takes: the table, then the request's tokens.

        vLLM wants one row for every position and one id, too. Rows of tokens are never read; the id of a
        learned row is none of the vocabulary's, so that no penalty takes it for a token of the prompt.

        Args:
            scored: log probabilities of the prompt are asked for. vLLM then looks every id up among the
                logits, and has to find one; penalties take a learned row for token 0.
        """
        import torch

        table = self._tables[adapter]
        count, given = len(table), len(token_ids)
        rows = torch.zeros((count + given, table.shape[1]), dtype=table.dtype)
        rows[:count] = table
        return {
            "type": "embeds",
            "prompt_embeds": rows,
            "prompt_token_ids": [0 if scored else self._nothing] * count + list(token_ids),
            "is_token_ids": [False] * count + [True] * given,
        }


def is_soft(folder: Path) -> bool:
    """Whether an adapter's files are a soft prompt's, by its configuration; reads a file."""
    try:
        config = json.loads((folder / "adapter_config.json").read_bytes())
    except (OSError, ValueError):
        # Said by whoever looks into it as a LoRA.
        return False
    return isinstance(config, dict) and config.get("peft_type") in KINDS


def factor_of(config: Any) -> float:
    """What learned embeddings of a base are multiplied by for vLLM.

    Args:
        config: of transformers.
    """
    field = _SCALED_BY.get(getattr(config, "model_type", ""))
    scale = 1.0 if field is None else float(getattr(config, field, 1.0))
    return 1.0 / scale if scale and math.isfinite(scale) else 1.0
