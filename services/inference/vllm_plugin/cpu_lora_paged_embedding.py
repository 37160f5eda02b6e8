"""The embedding's adapters in pages: each page is a table of its own, in which tokens are looked up.

One adapter after the other: few train the embedding, and every token is looked up once.
"""

from __future__ import annotations

from typing import Any

import torch

from services.inference.vllm_plugin.cpu_lora_groups import TokenGroups
from services.inference.vllm_plugin.cpu_lora_paged_weights import PagedMemory


class PagedEmbedding:
    """Takes the place of a layer's set_lora() and reset_lora().

    Args:
        layer: vLLM's, with tensors A [slots, vocabulary, rank] and B [slots, 1, out, rank].
    """

    def __init__(self, layer: Any, memory: PagedMemory) -> None:
        self._layer, self._memory = layer, memory
        self._set, self._reset = layer.set_lora, layer.reset_lora
        paging = memory.table.paging
        whole_a, whole_b = layer.lora_a_stacked, layer.lora_b_stacked
        # The same memory in other shapes.
        self._a = whole_a.view(paging.pages, whole_a.shape[1], paging.page_rank)
        self._b = whole_b.view(paging.pages, 1, whole_b.shape[2], paging.page_rank)
        self._here: set[int] = set()
        layer.set_lora, layer.reset_lora = self.write, self.clear
        memory.layers.append(self)

    def write(self, slot: int, lora_a: torch.Tensor, lora_b: torch.Tensor) -> None:
        """As vLLM's, page by page."""
        layer, size = self._layer, self._memory.table.paging.page_rank
        whole = layer.lora_a_stacked, layer.lora_b_stacked
        layer.reset_lora = self._reset
        try:
            for number, page in enumerate(self._memory.table.pages(slot)):
                ranks = slice(number * size, (number + 1) * size)
                layer.lora_a_stacked = self._a[page : page + 1]
                layer.lora_b_stacked = self._b[page : page + 1]
                self._set(0, lora_a[ranks], lora_b[:, ranks])
        finally:
            layer.lora_a_stacked, layer.lora_b_stacked = whole
            layer.reset_lora = self.clear
        self._here.add(slot)

    def clear(self, slot: int) -> None:
        """A slot's adapter has nothing here, or goes: what is in its pages is not looked at."""
        self._here.discard(slot)

    def add(self, y: torch.Tensor, tokens: torch.Tensor, groups: TokenGroups) -> None:
        """y += A[tokens] @ B, of each token's slot.

        Args:
            y: [tokens, out].
            tokens: their ids.
        """
        if self._here.isdisjoint(groups.active):
            return
        for slot, rows in groups.rows():
            if slot not in self._here:
                continue
            for page in self._memory.table.pages(slot):
                low = torch.nn.functional.embedding(tokens[rows], self._a[page])
                y[rows] += low.to(y.dtype) @ self._b[page, 0].to(y.dtype).t()


def forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """In place of VocabParallelEmbeddingWithLoRA.forward."""
    output: torch.Tensor = layer.base_layer.forward(x)
    wrapper, flat = layer.punica_wrapper, output.view(-1, output.shape[-1])
    layer.graft_embedding.add(flat, x.flatten(), wrapper.tokens_of(flat))
    return output
