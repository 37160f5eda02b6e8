"""What a step's adapters cost vLLM's worker when they are where they are wanted: no look at all the others."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from services.inference.vllm_plugin import lora_lookup

pytestmark = pytest.mark.engine


class Adapters:
    """As vLLM's own manager, with two slots; says what was written into one."""

    def __init__(self) -> None:
        from vllm.utils.cache import LRUCache

        self._registered_adapters: Any = LRUCache(10)
        self._active_adapters: Any = LRUCache(2)
        self.lists = 0
        for number in range(4):
            self._registered_adapters[number] = object()

    def list_adapters(self) -> dict[int, object]:
        self.lists += 1
        return dict(self._registered_adapters.cache)

    def get_adapter(self, number: int) -> object:
        return self._registered_adapters.get(number)

    def activate_adapter(self, number: int) -> bool:
        written = number not in self._active_adapters
        self._active_adapters[number] = None
        self._active_adapters.touch(number)
        return written


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Any:
    with warnings.catch_warnings():
        # As of the engine's fixture.
        warnings.simplefilter("ignore")
        from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
    stock = LRUCacheWorkerLoRAManager.add_adapter
    monkeypatch.setattr(LRUCacheWorkerLoRAManager, "add_adapter", stock)
    lora_lookup.install()
    lora_lookup.install()
    made = LRUCacheWorkerLoRAManager.__new__(LRUCacheWorkerLoRAManager)
    made._adapter_manager = Adapters()
    return made


def wanted(number: int) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest(f"adapter-{number}", number, "/nowhere")


def test_one_in_its_slot_is_found_without_a_list_and_counts_as_used(worker: Any) -> None:
    adapters = worker._adapter_manager
    for number in (1, 2):
        assert worker.add_adapter(wanted(number))
    lists = adapters.lists
    assert lists
    assert worker.add_adapter(wanted(1))
    assert adapters.lists == lists
    # 2 is the one that was used least recently, on the slots and in main memory.
    worker.add_adapter(wanted(3))
    assert set(adapters._active_adapters) == {1, 3}
    assert list(adapters._registered_adapters.order)[-2:] == [1, 3]


def test_one_that_is_loaded_anew_in_place_takes_vllms_own_way(
    worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.add_adapter(wanted(1))
    monkeypatch.setattr(worker, "_load_adapter", lambda request: 1 / 0)
    request = wanted(1)
    request.load_inplace = True
    with pytest.raises(ZeroDivisionError):
        worker.add_adapter(request)
