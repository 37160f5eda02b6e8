"""Requests that are computed together: their keys and values side by side, padded on the left.

A request comes in with a cache of its own, after its prompt; it leaves at any step. Every row is counted in
positions of its own, so that padding changes nothing but the last bits.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache

from services.inference.engines.transformers_adapters import KeysValues, LoadedAdapter
from services.inference.engines.transformers_effects import Effects, Rows

_NOTHING = LoadedAdapter()
_NO_EFFECTS: Effects = {}


class Forward:
    """The base's forward pass with the effects of adapters.

    Args:
        model: of transformers, in evaluation mode.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.rows = model, Rows(model)
        takes = inspect.signature(model.forward).parameters
        self._positions = "position_ids" in takes
        self._last_alone = "logits_to_keep" in takes

    def __call__(
        self,
        cache: DynamicCache,
        mask: Tensor,
        positions: Tensor,
        effects: Sequence[Effects],
        **inputs: Tensor,
    ) -> Tensor:
        """Logits of the last position, (rows, vocabulary); the cache has the new tokens then.

        Args:
            mask: (rows, all tokens), 1 where there is one.
            positions: (rows, new tokens).
        """
        self.rows.set(effects)
        if self._positions:
            inputs["position_ids"] = positions
        if self._last_alone:
            inputs["logits_to_keep"] = 1  # type: ignore[assignment]
        output = self.model(attention_mask=mask, past_key_values=cache, use_cache=True, **inputs)
        logits: Tensor = output.logits[:, -1]
        return logits

    def past_of(self, embeddings: Tensor) -> KeysValues:
        """What the base itself keeps of embeddings of shape (tokens, features)."""
        cache, count = DynamicCache(), len(embeddings)
        mask = torch.ones((1, count), dtype=torch.long, device=self.model.device)
        positions = torch.arange(count, device=self.model.device)[None]
        self(cache, mask, positions, [_NO_EFFECTS], inputs_embeds=embeddings[None])
        return [(layer.keys, layer.values) for layer in cache.layers]


class Prefill:
    """A prompt on its way into a cache of its own, in pieces.

    Args:
        adapter: None for the base alone.
        ids: at least one token.
    """

    def __init__(self, forward: Forward, adapter: LoadedAdapter | None, ids: Sequence[int]) -> None:
        self._forward, self._adapter, self._ids = forward, adapter or _NOTHING, ids
        self.cache, self.done = DynamicCache(), 0
        for index, (keys, values) in enumerate(self._adapter.past):
            self.cache.update(keys, values, index)

    @property
    def tokens(self) -> int:
        """In the cache."""
        return self._adapter.past_tokens + self.done

    @property
    def effects(self) -> Effects:
        """Of its adapter."""
        return self._adapter.effects

    def step(self, most: int) -> Tensor | None:
        """So many tokens more; the logits after the last one, (1, vocabulary)."""
        piece = self._ids[self.done : self.done + most]
        device = self._forward.model.device
        begin, end = self.tokens, self.tokens + len(piece)
        logits = self._forward(
            self.cache,
            torch.ones((1, end), dtype=torch.long, device=device),
            torch.arange(begin, end, device=device)[None],
            [self.effects],
            input_ids=torch.tensor([piece], dtype=torch.long, device=device),
        )
        self.done += len(piece)
        return logits if self.done == len(self._ids) else None


class Batch:
    """Requests after their prompts; rows are numbered in the order in which they came."""

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._cache = DynamicCache()
        self._mask = torch.empty((0, 0))
        self._effects: list[Effects] = []

    def __len__(self) -> int:
        return len(self._effects)

    @property
    def width(self) -> int:
        """Tokens of the longest row."""
        return int(self._mask.shape[1]) if self._effects else 0

    def join(self, one: Prefill) -> None:
        """A request whose prompt is done."""
        mask = torch.ones((1, one.tokens), dtype=torch.long, device=self._forward.model.device)
        if not self._effects:
            self._cache, self._mask = one.cache, mask
        else:
            width = max(self.width, one.tokens)
            for layer, new in zip(self._cache.layers, one.cache.layers, strict=True):
                layer.keys = torch.cat([_widen(layer.keys, width), _widen(new.keys, width)])
                layer.values = torch.cat([_widen(layer.values, width), _widen(new.values, width)])
            self._mask = torch.cat(
                [pad(each, (width - each.shape[1], 0)) for each in (self._mask, mask)]
            )
        self._effects.append(one.effects)

    def step(self, tokens: Sequence[int]) -> Tensor:
        """The next logits of every row, (rows, vocabulary), after one token each."""
        device = self._forward.model.device
        self._mask = pad(self._mask, (0, 1), value=1)
        return self._forward(
            self._cache,
            self._mask,
            self._mask.sum(-1, keepdim=True) - 1,
            self._effects,
            input_ids=torch.tensor(tokens, dtype=torch.long, device=device)[:, None],
        )

    def keep(self, rows: Sequence[int]) -> None:
        """All others leave; padding that nobody needs goes with them."""
        if len(rows) == len(self._effects):
            return
        self._effects = [self._effects[row] for row in rows]
        if not rows:
            self._cache, self._mask = DynamicCache(), torch.empty((0, 0))
            return
        index = torch.tensor(rows, device=self._mask.device)
        mask = self._mask[index]
        cut = mask.shape[1] - int(mask.sum(-1).max())
        self._mask = mask[:, cut:]
        for layer in self._cache.layers:
            layer.keys = layer.keys[index, :, cut:]
            layer.values = layer.values[index, :, cut:]


def _widen(tensor: Tensor, width: int) -> Tensor:
    return pad(tensor, (0, 0, width - tensor.shape[2], 0))
