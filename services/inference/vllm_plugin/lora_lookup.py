"""Has vLLM's worker see in a moment that a step's adapters are where they are wanted.

For each adapter of each step vLLM copies the list of all adapters in main memory, to look one up in it:
with 200 of them and 40 in a step that takes as long as a quarter of a toy model's step.
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager


def install() -> None:
    """In this process, any number of times."""
    from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager

    stock = LRUCacheWorkerLoRAManager.add_adapter
    if hasattr(stock, "__wrapped__"):
        return

    @wraps(stock)
    def add_adapter(workers: LRUCacheWorkerLoRAManager, lora_request: LoRARequest) -> bool:
        manager, number = workers._adapter_manager, lora_request.lora_int_id
        if (
            lora_request.load_inplace
            or number not in manager._active_adapters
            or manager.get_adapter(number) is None
        ):
            return bool(stock(workers, lora_request))
        # As vLLM does, which does it after the look-up: both of its orders of use are kept.
        manager.activate_adapter(number)
        return True

    LRUCacheWorkerLoRAManager.add_adapter = add_adapter
