"""Loss and token accuracy of a causal language model on rows of tokens, in batches that always fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from services.trainer.run.batches import padded_batch
from services.trainer.run.trainers.common import without_dropout
from services.trainer.tokens import IGNORED, TokenRow

# Logits that are held at once, as numbers: 256 MiB in float32.
_MOST_LOGITS = 64 * 1024 * 1024
_LARGEST_EXPONENT = 700


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found: mean loss per learned token in nats, the share of them that is predicted, and of how much."""

    loss: float
    token_accuracy: float
    learned_tokens: int
    rows: int

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return perplexity(self.loss)


def perplexity(loss: float) -> float:
    """exp(loss); infinite where that is no number any more."""
    return math.exp(loss) if loss < _LARGEST_EXPONENT else math.inf


def measure_rows(
    model: Any,
    rows: Sequence[TokenRow],
    pad_id: int,
    batch_size: int,
    check: Callable[[], None] = lambda: None,
) -> Measured:
    """Measures without training anything: no dropout, no gradients, and no trace in a quantized base.

    Args:
        model: a causal language model, adapted or not.
        rows: at least one.
        pad_id: fills batches.
        batch_size: sequences per forward pass at most; fewer where their logits would not fit.
        check: called before each batch; may raise.
    """
    ordered = sorted(rows, key=len, reverse=True)
    nats, learned, correct, start = 0.0, 0, 0, 0
    with torch.no_grad(), without_dropout(model):
        while start < len(ordered):
            check()
            part = ordered[start : start + _fitting(model, len(ordered[start]), batch_size)]
            start += len(part)
            loss, right, count = _measure_batch(model, part, pad_id)
            nats, correct, learned = nats + loss, correct + right, learned + count
    count = max(learned, 1)
    return Measured(nats / count, correct / count, learned, len(ordered))


def _fitting(model: Any, tokens: int, batch_size: int) -> int:
    vocabulary: int = model.config.get_text_config().vocab_size
    return max(1, min(batch_size, _MOST_LOGITS // (tokens * vocabulary)))


def _measure_batch(model: Any, rows: Sequence[TokenRow], pad_id: int) -> tuple[float, int, int]:
    """Summed loss in nats, right predictions and learned tokens of a batch."""
    batch = padded_batch(rows, pad_id)
    ids, labels = batch["input_ids"], batch["labels"][:, 1:].to(model.device)
    lengths = torch.tensor([len(row) for row in rows])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    logits = model(
        input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False
    ).logits
    # Learned embeddings stand before the tokens.
    logits = logits[:, -ids.shape[1] :][:, :-1].float()
    nats = cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="sum")
    learned = labels != IGNORED
    right = (logits.argmax(-1) == labels) & learned
    return float(nats), int(right.sum()), int(learned.sum())
