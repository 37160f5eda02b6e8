"""vLLM's LoRA on a CPU, by groups of tokens instead of a copy of the weights for every token.

In place of vLLM's PunicaWrapperCPU, which also gives requests for the base the adapter of the last slot.
Imported by vLLM alone, by name; cpu_lora_entry.py sees to that. docs/cpu-lora.md says more.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

import torch
from vllm.config import CompilationMode, get_current_vllm_config
from vllm.lora.model_manager import LoRAModelManager
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from services.inference.vllm_plugin import cpu_lora_norm
from services.inference.vllm_plugin.cpu_lora_groups import TokenGroups
from services.inference.vllm_plugin.cpu_lora_math import (
    Weights,
    add_adapters,
    add_in_float32,
    added,
    expand,
    shrink,
)
from services.inference.vllm_plugin.cpu_lora_paged_weights import PagedWeights
from services.inference.vllm_plugin.cpu_lora_weights import LayerWeights, SlotChanges


class GroupedPunicaWrapper(PunicaWrapperCPU):  # type: ignore[misc]
    """The methods that layers call; vLLM makes one object per model."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _watch_slots()
        if get_current_vllm_config().compilation_config.mode == CompilationMode.NONE:
            cpu_lora_norm.use_kernels()
        self.changes = SlotChanges()
        self._layers: dict[int, Weights] = {}
        self._embedding_total, self._embeds = -1, False
        self._tokens = self._samples = TokenGroups((), 0)

    def update_metadata(
        self, mapping: Any, lora_index_to_id: list[int | None], *args: Any, **kwargs: Any
    ) -> None:
        """Called when another step has other tokens or slots than the one before."""
        super().update_metadata(mapping, lora_index_to_id, *args, **kwargs)
        slots = len(lora_index_to_id)
        self._tokens = TokenGroups(self.token_lora_indices.tolist(), slots)
        self._samples = TokenGroups(self.sampler_indices.tolist(), slots)

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        *,
        buffer: tuple[torch.Tensor, ...] | None = None,
        **kwargs: Any,
    ) -> None:
        """y += x @ A @ B * scale for all slices."""
        groups = (
            self._tokens if self._tokens.tokens == x.shape[0] else self._tokens.first(x.shape[0])
        )
        if not groups.active:
            return
        weights = self._weights(lora_a_stacked, lora_b_stacked)
        if x.dtype == y.dtype == lora_a_stacked[0].dtype:
            add_adapters(y, x, weights, groups, scale)
            return
        if isinstance(weights, PagedWeights):
            add_in_float32(y, x, weights, groups, scale)
            return
        low = _buffers(x, lora_b_stacked) if buffer is None else buffer
        self.add_shrink(low, x, lora_a_stacked, scale)
        self.add_expand(y, low, lora_b_stacked, output_slices)

    def added(
        self,
        x: torch.Tensor,
        columns: int,
        a: tuple[torch.Tensor, ...],
        b: tuple[torch.Tensor, ...],
        output_slices: tuple[int, ...],
    ) -> torch.Tensor:
        """x @ A @ B for all slices, [tokens, columns]; zero for a token without an adapter."""
        groups = (
            self._tokens if self._tokens.tokens == x.shape[0] else self._tokens.first(x.shape[0])
        )
        if groups.active and x.dtype == a[0].dtype:
            return added(x, columns, self._weights(a, b), groups)
        y = x.new_zeros(x.shape[0], columns)
        self.add_lora_linear(y, x, a, b, 1.0, output_slices)
        return y

    def add_shrink(
        self,
        y: tuple[torch.Tensor, ...] | torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        scale: float,
        **kwargs: Any,
    ) -> None:
        """y[i] = x @ A[i] * scale."""
        x = x.view(-1, x.shape[-1])
        flat = [each.view(-1, each.shape[-1]) for each in y]
        shrink(flat, x, lora_a_stacked, self.tokens_of(x), scale)

    def add_expand(
        self,
        y: torch.Tensor,
        x: tuple[torch.Tensor, ...] | torch.Tensor,
        lora_b_stacked: tuple[torch.Tensor, ...],
        output_slices: tuple[int, ...],
        offset_start: int = 0,
        add_inputs: bool = True,
        **kwargs: Any,
    ) -> None:
        """y[:, slice i] += x[i] @ B[i]."""
        y = y.view(-1, y.shape[-1])
        start = offset_start
        for low, weight, size in zip(x, lora_b_stacked, output_slices, strict=True):
            expand(y[:, start : start + size], low, weight, self.tokens_of(y), add=add_inputs)
            start += size

    def embeds(self, b: torch.Tensor) -> bool:
        """Whether an adapter in a slot, for which there are tokens in this step, trains the embedding."""
        if not self._tokens.active:
            return False
        if self._embedding_total != self.changes.total:
            self._embedding_total = self.changes.total
            self._embeds = bool(b.any())
        return self._embeds

    def add_lora_embedding(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        add_inputs: bool = True,
        **kwargs: Any,
    ) -> None:
        """y += x @ B, where x was looked up in A."""
        # Few adapters train the embedding; every other one has zeros.
        if add_inputs and not x.any():
            return
        expand(y, x, lora_b_stacked, self.tokens_of(y), add=add_inputs)

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        *,
        buffer: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        """y += x @ A @ B * scale, a row for each token that is sampled."""
        y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        groups = (
            self._samples if self._samples.tokens == x.shape[0] else self._samples.first(x.shape[0])
        )
        if not groups.active:
            return
        weights = self._weights((lora_a_stacked,), (lora_b_stacked,))
        if x.dtype == y.dtype == lora_a_stacked.dtype:
            add_adapters(y, x, weights, groups, scale)
            return
        if isinstance(weights, PagedWeights):
            add_in_float32(y, x, weights, groups, scale)
            return
        (low,) = _buffers(x, (lora_b_stacked,)) if buffer is None else (buffer,)
        shrink([low], x, [lora_a_stacked], groups, scale)
        expand(y, low, lora_b_stacked, groups)

    def tokens_of(self, rows: torch.Tensor) -> TokenGroups:
        """The step's tokens by slot, as many as there are rows."""
        count = rows.shape[:-1].numel()
        return self._tokens if self._tokens.tokens == count else self._tokens.first(count)

    def _weights(self, a: tuple[torch.Tensor, ...], b: tuple[torch.Tensor, ...]) -> Weights:
        found = self._layers.get(id(a[0]))
        if found is None:
            # Where memory is in pages, whoever divided it has left them there.
            found = getattr(a[0], "graft_pages", None) or LayerWeights(a, b, self.changes)
            self._layers[id(a[0])] = found
        return found


def _buffers(x: torch.Tensor, b: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """In float32, as vLLM's own."""
    return tuple(torch.zeros(x.shape[0], each.shape[-1], dtype=torch.float32) for each in b)


def _watch_slots() -> None:
    """Has activate_adapter, where vLLM writes weights into slots, say so; any number of times."""
    activate = LoRAModelManager.activate_adapter
    if hasattr(activate, "__wrapped__"):
        return

    @wraps(activate)
    def watched(manager: LoRAModelManager, lora_id: int) -> bool:
        written = True  # Also where writing fails half way.
        try:
            # Called for every adapter of every step; False where nothing was to be written.
            written = bool(activate(manager, lora_id))
        finally:
            if written and lora_id in manager.lora_index_to_id:
                slot = manager.lora_index_to_id.index(lora_id)
                for wrapper in manager.punica_wrapper_mapping.values():
                    wrapper.changes.note(slot)
        return written

    LoRAModelManager.activate_adapter = watched
