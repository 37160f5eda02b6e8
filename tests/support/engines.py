"""A real engine that outlives the services that use it."""

from __future__ import annotations

import psutil

from services.inference.engines.vllm import VllmEngine
from services.inference.engines.vllm_arguments import VllmOptions


class SharedEngine(VllmEngine):
    """Started once by its fixture; a service that stops it only loses its adapters."""

    @property
    def options(self) -> VllmOptions:
        """What it was made with."""
        return self._options

    async def start(self) -> None:
        if not self.healthy:
            await super().start()

    async def stop(self) -> None:
        for adapter in tuple(self.loaded):
            await self.unload(adapter)

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
