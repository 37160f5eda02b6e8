"""The last hidden states of a causal language model, and the head that makes logits of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

_MOST_LOGITS = 64 * 1024 * 1024
# Names under which configurations hold a factor of the logits.
_SCALES = ("logit_scale", "output_multiplier", "lm_head_multiplier")


@dataclass(frozen=True, slots=True)
class Head:
    """logits = softcap * tanh(scale * (weight @ hidden + bias) / softcap), the last where there is a softcap.

    Args:
        weight: (vocabulary, hidden).
        bias: (vocabulary,) or None.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    scale: float
    softcap: float | None

    def bias_of(self, rows: int) -> torch.Tensor | None:
        """The bias of the first tokens of the vocabulary."""
        return None if self.bias is None else self.bias[:rows]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (tokens, vocabulary) of hidden states (tokens, hidden)."""
        logits = torch.nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias)
        logits = logits.float() * self.scale
        if self.softcap is None:
            return logits
        return self.softcap * torch.tanh(logits / self.softcap)

    def cross_entropy(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Summed cross-entropy, in nats; never holds the logits of all tokens at once.

        Args:
            hidden: (tokens, hidden).
            targets: (tokens,).
        """
        total = hidden.new_zeros((), dtype=torch.float32)
        at_once = max(1, _MOST_LOGITS // self.weight.shape[0])
        for start in range(0, len(targets), at_once):
            part = slice(start, start + at_once)
            total = total + checkpoint(
                self._part_loss, hidden[part], targets[part], use_reentrant=False
            )
        return total

    def _part_loss(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return cross_entropy(self.logits(hidden), targets, reduction="sum")


def read_head(model: Any) -> Head:
    """The head of a causal language model, adapted or not."""
    layer = model.get_output_embeddings()
    config = model.config.get_text_config()
    return Head(
        weight=layer.weight,
        bias=getattr(layer, "bias", None),
        scale=_scale(config),
        softcap=getattr(config, "final_logit_softcapping", None),
    )


def _scale(config: Any) -> float:
    for name in _SCALES:
        if (factor := getattr(config, name, None)) is not None:
            return float(factor)
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        # HyperCLOVA X multiplies by what Granite divides by.
        return float(divisor if config.model_type == "hyperclovax" else 1 / divisor)
    return 1.0


def hidden_states(model: Any, inputs: dict[str, torch.Tensor], own_forward: bool) -> torch.Tensor:
    """The last hidden states, (sequences, tokens, hidden).

    Args:
        model: a causal language model, adapted or not.
        inputs: input_ids and, where they do not just count, position_ids; each (sequences, tokens).
        own_forward: whether tokens must go through the adapted model's own forward pass. It counts
            positions itself, because what comes before the input moves them.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    ids = inputs["input_ids"]
    if not own_forward:
        positions = inputs.get("position_ids")
        states: torch.Tensor = causal.base_model(
            input_ids=ids, position_ids=positions, use_cache=False
        ).last_hidden_state
        return states
    caught: list[torch.Tensor] = []
    handle = causal.base_model.register_forward_hook(
        lambda _module, _inputs, output: caught.append(output.last_hidden_state)
    )
    try:
        model(input_ids=ids, use_cache=False, logits_to_keep=1)
    finally:
        handle.remove()
    # Learned embeddings stand before the tokens.
    return caught[0][:, -ids.shape[1] :]
