"""vLLM's scheduler on a CPU, which has each block of the KV cache cleaned when it is taken.

The CPU's attention multiplies what lies behind a request's last token by 0, and 0 times NaN is NaN: a
block that an overflowing request has left makes the answer of the next one wrong, whoever's it is. vLLM
cleans blocks by itself for models whose layers read before they write; the worker does what it is told.
"""

from __future__ import annotations

import copy
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import KVCacheConfig


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
        cleaned = copy.copy(kv_cache_config)
        cleaned.__class__ = CleanedKVCacheConfig
        super().__init__(*args, kv_cache_config=cleaned, **kwargs)
