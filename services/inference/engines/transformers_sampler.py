"""Draws the next token of each row: penalties, temperature, min_p, top_k, top_p, in vLLM's order.

A row's draws come from a generator of its own, so that a seed gives the same whoever else is in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from services.inference.engines.base import Position, Sampling, TokenLogprob

_GREEDY_BELOW = 1e-5


@dataclass(slots=True)
class Draws:
    """What drawing for one request needs.

    Attributes:
        ends: tokens that must not come before min_tokens.
        generated: so far; the sampler only reads it.
    """

    sampling: Sampling
    prompt: Sequence[int]
    ends: Sequence[int]
    generated: list[int] = field(default_factory=list)
    _generator: torch.Generator | None = None

    def generator(self, device: torch.device) -> torch.Generator:
        """The request's own, from its seed."""
        if self._generator is None:
            self._generator = torch.Generator(device)
            if self.sampling.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(self.sampling.seed)
        return self._generator


def draw(
    logits: Tensor, rows: Sequence[Draws], text_of: Callable[[int], str]
) -> list[tuple[int, Position | None]]:
    """The next token of each row, with its place among the likeliest where it is asked for.

    Args:
        logits: (rows, vocabulary).
        text_of: a token's text.
    """
    logits = logits.float()
    best = logits.argmax(-1).tolist()
    found: list[tuple[int, Position | None]] = []
    for index, row in enumerate(rows):
        token = best[index] if _is_plain(row) else _draw(logits[index], row)
        position = None
        if row.sampling.logprobs is not None:
            position = _position(logits[index], token, row.sampling.logprobs, text_of)
        found.append((token, position))
    return found


def _is_plain(row: Draws) -> bool:
    """Greedy, and nothing is taken from any token."""
    sampling = row.sampling
    return (
        sampling.temperature < _GREEDY_BELOW
        and sampling.repetition_penalty == 1.0
        and not sampling.presence_penalty
        and not sampling.frequency_penalty
        and len(row.generated) >= sampling.min_tokens
    )


def _draw(given: Tensor, row: Draws) -> int:
    sampling = row.sampling
    logits = _penalized(given.clone(), row)
    if len(row.generated) < sampling.min_tokens and row.ends:
        logits[list(row.ends)] = -torch.inf
    if sampling.temperature < _GREEDY_BELOW:
        return int(logits.argmax())
    probabilities = _kept(logits / sampling.temperature, sampling).softmax(-1)
    # The largest of p / q with q exponential is a draw from p, and never one of probability 0.
    noise = torch.empty_like(probabilities).exponential_(generator=row.generator(logits.device))
    return int((probabilities / noise.clamp_min(torch.finfo(noise.dtype).tiny)).argmax())


def _penalized(logits: Tensor, row: Draws) -> Tensor:
    sampling, device = row.sampling, logits.device
    new = torch.tensor(row.generated, dtype=torch.long, device=device)
    if sampling.repetition_penalty != 1.0:
        prompt = torch.tensor(row.prompt, dtype=torch.long, device=device)
        # Twice the same changes nothing: each is computed from what was before.
        seen = torch.cat([prompt, new])
        at = logits[seen]
        factor = sampling.repetition_penalty
        logits[seen] = torch.where(at > 0, at / factor, at * factor)
    if len(new) and (sampling.presence_penalty or sampling.frequency_penalty):
        counts = torch.bincount(new, minlength=len(logits))
        logits -= sampling.frequency_penalty * counts + sampling.presence_penalty * (counts > 0)
    return logits


def _kept(logits: Tensor, sampling: Sampling) -> Tensor:
    """Only those tokens that min_p, top_k and top_p leave."""
    if sampling.min_p:
        probabilities = logits.softmax(-1)
        logits = logits.masked_fill(
            probabilities < sampling.min_p * probabilities.max(), -torch.inf
        )
    if 0 < sampling.top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(sampling.top_k).values[-1], -torch.inf)
    if sampling.top_p < 1.0:
        ordered, order = logits.sort(descending=True)
        probabilities = ordered.softmax(-1)
        # Those before which the sum has reached top_p; the likeliest always stays.
        beyond = probabilities.cumsum(-1) - probabilities >= sampling.top_p
        beyond[0] = False
        logits = logits.index_fill(0, order[beyond], -torch.inf)
    return logits


def _position(logits: Tensor, token: int, top: int, text_of: Callable[[int], str]) -> Position:
    """Of the model's own probabilities, before penalties and temperature."""
    values = logits.log_softmax(-1)
    found = values.topk(top) if top else None
    likeliest = (
        ()
        if found is None
        else tuple(
            TokenLogprob(other, value, text_of(other))
            for other, value in zip(found.indices.tolist(), found.values.tolist(), strict=True)
        )
    )
    return Position(TokenLogprob(token, float(values[token]), text_of(token)), likeliest)
