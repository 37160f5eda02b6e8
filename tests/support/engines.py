"""A real engine that outlives the services that use it."""

from __future__ import annotations

from typing import Any, cast

import psutil

from services.inference.engines.base import EngineAdapter
from services.inference.engines.vllm import VllmEngine
from services.inference.engines.vllm_arguments import VllmOptions


class SharedEngine(VllmEngine):
    """Started once by its fixture; a service that stops it only loses the adapters that came since its start.

    So a test may have a service of its own inside of one that its module shares. LoRAs of both at once it
    cannot have: each service counts its loads by itself.
    """

    def __init__(self, options: VllmOptions) -> None:
        super().__init__(options)
        # At the start of each service that has not stopped it yet, the outermost first.
        self._there_before: list[frozenset[EngineAdapter]] = []

    @property
    def options(self) -> VllmOptions:
        """What it was made with."""
        return self._options

    async def start(self) -> None:
        if not self.healthy:
            await super().start()
        self._there_before.append(frozenset(self.loaded))

    async def stop(self) -> None:
        kept = self._there_before.pop() if self._there_before else frozenset()
        for adapter in set(self.loaded) - kept:
            await self.unload(adapter)

    @property
    def hugging_face(self) -> Any:
        """The tokenizer, as transformers has it."""
        assert self._tokenizer is not None
        return self._tokenizer.tokenizer

    @property
    def core(self) -> psutil.Process:
        """The process in which vLLM computes for it; other engines of the same run have theirs."""
        manager: Any = cast(Any, self._running().engine_core).resources.engine_manager
        (process,) = manager.processes
        return psutil.Process(process.pid)

    async def listed(self) -> set[int]:
        """Numbers of the adapters that vLLM itself says it holds."""
        return set(await self._running().list_loras())

    async def really_stop(self) -> None:
        """Ends its processes."""
        await super().stop()


def engine_cores(service_pid: int) -> list[psutil.Process]:
    """The processes in which vLLM computes for a service."""
    children = psutil.Process(service_pid).children(recursive=True)
    return [each for each in children if "EngineCore" in _command(each)]


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # Ended, and perhaps nobody has asked for its exit code yet.
        return ""
