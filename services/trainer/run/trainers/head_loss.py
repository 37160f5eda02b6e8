"""Cross-entropy of the learned tokens only: the vocabulary projection skips every other position.

Prompts and padding are often more than half of a batch, and for a small model the projection is most of
the work. TRL's fused head does so on CUDA only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from services.trainer.tokens import IGNORED

_MOST_LOGITS = 64 * 1024 * 1024
# Settings with which a model does more with its logits than project them.
_LOGIT_SETTINGS = (
    "final_logit_softcapping",
    "logit_scale",
    "output_multiplier",
    "lm_head_multiplier",
    "logits_scaling",
)


def has_plain_head(model: Any) -> bool:
    """Whether the logits are the projection of the last hidden states and nothing more."""
    config = model.config.get_text_config()
    changed = any(getattr(config, name, None) is not None for name in _LOGIT_SETTINGS)
    return not changed and not hasattr(config, "output_router_logits")


def summed_loss(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Sum of the cross-entropies, in nats, of every label but IGNORED.

    Args:
        model: a causal language model, adapted or not.
        inputs: input_ids, position_ids and labels, each (sequences, tokens).
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = causal.base_model(
        input_ids=inputs["input_ids"], position_ids=inputs["position_ids"], use_cache=False
    ).last_hidden_state
    # Position i predicts token i + 1; the last position predicts nothing.
    targets = inputs["labels"].roll(-1, dims=1)
    targets[:, -1] = IGNORED
    learned = targets != IGNORED
    hidden, targets = hidden[learned], targets[learned]
    head = causal.get_output_embeddings()
    at_once = max(1, _MOST_LOGITS // head.weight.shape[0])
    if len(targets) <= at_once:
        return _chunk_loss(hidden, targets, head)
    total: torch.Tensor = hidden.new_zeros((), dtype=torch.float32)
    for start in range(0, len(targets), at_once):
        part = slice(start, start + at_once)
        total = total + checkpoint(
            _chunk_loss, hidden[part], targets[part], head, use_reentrant=False
        )
    return total


def _chunk_loss(hidden: torch.Tensor, targets: torch.Tensor, head: Any) -> torch.Tensor:
    loss: torch.Tensor = cross_entropy(head(hidden).float(), targets, reduction="sum")
    return loss
