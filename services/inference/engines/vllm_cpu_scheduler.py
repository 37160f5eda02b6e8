"""vLLM's scheduler on a CPU, which cleans each block of the KV cache when it is taken, and knows pages of LoRA.

The CPU's attention multiplies what lies behind a request's last token by 0, and 0 times NaN is NaN: a
block that an overflowing request has left makes the answer of the next one wrong, whoever's it is. vLLM
cleans blocks by itself for models whose layers read before they write; the worker does what it is told.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.request import Request

from services.inference.vllm_plugin import soft_entry
from services.inference.vllm_plugin.lora_pages import Paging, rank_of_files

# Adapters whose pages are remembered; their files are read again beyond.
_KNOWN = 4096


class CleanedKVCacheConfig(KVCacheConfig):  # type: ignore[misc]
    """As of the base class, whatever the model's layers."""

    @property
    def needs_kv_cache_zeroing(self) -> bool:
        """Always."""
        return True


class GraftCpuScheduler(Scheduler):  # type: ignore[misc]
    """Named to the engine as scheduler_cls; made by vLLM in its core's process.

    vLLM warns that a scheduler of one's own ends asynchronous scheduling; a CPU has none anyway.
    """

    def __init__(self, *args: Any, kv_cache_config: KVCacheConfig, **kwargs: Any) -> None:
        soft_entry.install()
        cleaned = copy.copy(kv_cache_config)
        cleaned.__class__ = CleanedKVCacheConfig
        super().__init__(*args, kv_cache_config=cleaned, **kwargs)
        self._paging = Paging.of(self.vllm_config.additional_config)
        # Pages by an adapter's number, which never means another one.
        self._needed: dict[int, int] = {}

    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        return super()._handle_blocked_waiting_request(request) and self._has_room(request)

    def _has_room(self, request: Request) -> bool:
        """Whether the adapters of a step are few and small enough with this one; vLLM counts them alone."""
        paging = self._paging
        if paging is None or request.lora_request is None:
            return True
        computed = {
            each.lora_request.lora_int_id: each.lora_request
            for each in self.running
            if each.lora_request is not None
        }
        lora = request.lora_request
        if lora.lora_int_id in computed:
            return True
        return self._pages(lora) + sum(map(self._pages, computed.values())) <= paging.pages

    def _pages(self, lora: Any) -> int:
        assert self._paging is not None
        found = self._needed.get(lora.lora_int_id)
        if found is None:
            if len(self._needed) >= _KNOWN:
                self._needed.clear()
            try:
                rank = rank_of_files(Path(lora.lora_path))
            except (OSError, ValueError):
                rank = self._paging.slot_rank
            found = self._needed[lora.lora_int_id] = self._paging.needed(rank)
        return found
