"""Has vLLM's LoRA on a CPU give adapters pages of its memory instead of a slot each.

To vLLM there are as many slots as there are pages; a slot is then but a number in its mapping. Its tensors
stay those of a few large slots, and where it writes into one, it writes into its pages. Imported in the
engine's core alone, where cpu_lora.py computes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from vllm.lora import model_manager
from vllm.lora.layers import LogitsProcessorWithLoRA, VocabParallelEmbeddingWithLoRA
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.model_manager import LoRAModelManager, LRUCacheLoRAModelManager
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager

from services.inference.vllm_plugin.cpu_lora_paged_embedding import PagedEmbedding, forward
from services.inference.vllm_plugin.cpu_lora_paged_weights import PagedMemory, PagedWeights
from services.inference.vllm_plugin.cpu_lora_weights import TAME
from services.inference.vllm_plugin.lora_pages import PageTable, Paging


def install(paging: Paging) -> None:
    """Once in a process, before a model is loaded."""
    stock_create = LoRAModelManager._create_lora_modules
    stock_add = LoRAModelManager._add_adapter
    stock_activate = LoRAModelManager.activate_adapter
    stock_lru = LRUCacheLoRAModelManager.activate_adapter
    stock_deactivate = LoRAModelManager._deactivate_adapter
    stock_remove_all = LoRAModelManager.remove_all_adapters
    stock_apply = LRUCacheWorkerLoRAManager._apply_adapters

    # Not functools.wraps: its mark says elsewhere that something of ours is there already.
    def create(manager: Any) -> None:
        manager.graft_pages = PagedMemory(PageTable(paging))
        with _paged_layers(manager.graft_pages):
            stock_create(manager)

    def add(manager: Any, lora: Any) -> None:
        stock_add(manager, lora)
        lora.graft_rank, lora.graft_odd = _rank_and_oddness(lora)

    def activate(manager: Any, lora_id: int) -> bool:
        if lora_id not in manager._active_adapters and None in manager.lora_index_to_id:
            lora = manager._registered_adapters[lora_id]
            # The one that vLLM takes.
            slot = manager.lora_index_to_id.index(None)
            manager.graft_pages.take(slot, lora.graft_rank, odd=lora.graft_odd)
        return bool(stock_activate(manager, lora_id))

    def apply(workers: Any, requests: Any) -> None:
        # First what is there: or one that this step wants, too, would make room for another of it. And
        # there are dozens in each step, for which vLLM's way is long.
        stock_apply(workers, {each for each in requests if not _touch(workers, each)})

    def activate_lru(manager: Any, lora_id: int) -> bool:
        if lora_id not in manager._active_adapters:
            table = manager.graft_pages.table
            needed = table.paging.needed(manager._registered_adapters[lora_id].graft_rank)
            # What a step wants was used last, and all of it fits.
            while table.free < needed and len(manager._active_adapters):
                manager._active_adapters.remove_oldest()
        return bool(stock_lru(manager, lora_id))

    def deactivate(manager: Any, lora_id: int) -> None:
        if lora_id in manager.lora_index_to_id:
            manager.graft_pages.release(manager.lora_index_to_id.index(lora_id))
        stock_deactivate(manager, lora_id)

    def remove_all(manager: Any) -> None:
        for slot in range(manager.lora_slots):
            manager.graft_pages.release(slot)
        stock_remove_all(manager)

    VocabParallelEmbeddingWithLoRA.forward = forward
    LoRAModelManager._create_lora_modules = create
    LoRAModelManager._add_adapter = add
    LoRAModelManager.activate_adapter = activate
    LRUCacheLoRAModelManager.activate_adapter = activate_lru
    LoRAModelManager._deactivate_adapter = deactivate
    LoRAModelManager.remove_all_adapters = remove_all
    LRUCacheWorkerLoRAManager._apply_adapters = apply


@contextmanager
def _paged_layers(memory: PagedMemory) -> Iterator[None]:
    """Within it vLLM makes layers with memory for the large slots, divided in pages."""
    stock, stock_logits = model_manager.from_layer, model_manager.from_layer_logits_processor
    slots = memory.table.paging.slots

    def made(layer: Any, max_loras: int, config: Any, packed: Any, model_config: Any = None) -> Any:
        new = stock(layer, slots, config, packed, model_config)
        if new is layer or _divide(new, memory):
            return new
        # Of a kind that pages are not known for: a slot for each number.
        return stock(layer, max_loras, config, packed, model_config)

    def made_logits(
        layer: Any, head: Any, max_loras: int, config: Any, model_config: Any = None
    ) -> Any:
        new = stock_logits(layer, head, slots, config, model_config)
        _divide(new, memory)
        return new

    model_manager.from_layer, model_manager.from_layer_logits_processor = made, made_logits
    try:
        yield
    finally:
        model_manager.from_layer = stock
        model_manager.from_layer_logits_processor = stock_logits


def _divide(layer: Any, memory: PagedMemory) -> bool:
    """Has a layer write into pages; False where it cannot."""
    if isinstance(layer, VocabParallelEmbeddingWithLoRA):
        layer.graft_embedding = PagedEmbedding(layer, memory)
        return True
    if not isinstance(layer, LogitsProcessorWithLoRA | BaseLinearLayerWithLoRA):
        return False
    _Writer(layer, memory)
    return True


def _touch(workers: Any, request: Any) -> bool:
    """Counts an adapter that is computed already as used now, in both of vLLM's orders; False for others."""
    manager, number = workers._adapter_manager, request.lora_int_id
    if number not in manager._active_adapters or request.load_inplace:
        return False
    if number not in manager._registered_adapters:
        return False
    manager._registered_adapters.touch(number)
    manager._active_adapters.touch(number)
    return True


class _Writer:
    """In place of a layer's set_lora() and reset_lora()."""

    def __init__(self, layer: Any, memory: PagedMemory) -> None:
        self._layer, self._memory = layer, memory
        self._set, self._reset = layer.set_lora, layer.reset_lora
        self._plain = isinstance(layer.lora_a_stacked, torch.Tensor)
        a, b = layer.lora_a_stacked, layer.lora_b_stacked
        self._a: tuple[Any, ...] = (a,) if self._plain else a
        self._b: tuple[Any, ...] = (b,) if self._plain else b
        self._weights = self._a[0].graft_pages = PagedWeights(self._a, self._b, memory)
        layer.set_lora, layer.reset_lora = self.write, self._weights.clear

    def write(self, slot: int, lora_a: Any, lora_b: Any) -> None:
        """As vLLM's, run by run of the slot's pages."""
        start = 0
        try:
            for rows in self._memory.table.rows(slot):
                part = slice(start, start + rows.stop - rows.start)
                self._show(*self._weights.views(rows), self._reset)
                self._set(0, _cut(lora_a, part), _cut(lora_b, (slice(None), part)))
                start = part.stop
        finally:
            self._show(self._a, self._b, self._weights.clear)
        self._weights.wrote(slot, _given(lora_a, len(self._a)))

    def _show(self, a: tuple[torch.Tensor, ...], b: tuple[torch.Tensor, ...], reset: Any) -> None:
        """vLLM writes into these; its set_lora() calls reset_lora() itself."""
        layer = self._layer
        layer.lora_a_stacked, layer.lora_b_stacked = (a[0], b[0]) if self._plain else (a, b)
        layer.reset_lora = reset


def _cut(weights: Any, part: Any) -> Any:
    """Some ranks of a tensor, or of each in a list."""
    if isinstance(weights, torch.Tensor):
        return weights[part]
    return [None if each is None else each[part] for each in weights]


def _given(weights: Any, slices: int) -> Iterable[int]:
    """The slices that there are weights for; all where it is not plain which."""
    if isinstance(weights, torch.Tensor) or len(weights) != slices:
        return range(slices)
    return [number for number, each in enumerate(weights) if each is not None]


def _rank_and_oddness(lora: Any) -> tuple[int, bool]:
    """The largest rank of an adapter's layers, and whether a number of it could harm others by zero times it."""
    rank, odd = 1, False
    for weights in lora.loras.values():
        a, b = (
            each if isinstance(each, list) else [each] for each in (weights.lora_a, weights.lora_b)
        )
        rank = max([rank, *(each.shape[0] for each in a if each is not None)])
        for each in (*a, *b):
            if each is not None and each.numel():
                least, most = each.aminmax()
                # A NaN is not below anything.
                odd = odd or not (bool(most <= TAME) and bool(least >= -TAME))
    return rank, odd
