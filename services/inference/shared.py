"""What a process has one of, whichever base it serves."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from services.inference.attestation.attestor import Attestor
from services.inference.blends.base import Blender
from services.inference.cache import AdapterCache
from services.inference.metrics import InferenceMetrics
from services.inference.registry.base import Registry
from services.inference.trust import Trust


@dataclass(frozen=True, slots=True)
class Shared:
    """What outlives a base: the process has one of each.

    Attributes:
        set_ready: is told whether this base can answer, whenever that changes.
        set_alive: is told when there is no hope for its engine.
    """

    registry: Registry
    cache: AdapterCache
    metrics: InferenceMetrics
    trust: Trust
    attestor: Attestor
    blender: Blender
    set_ready: Callable[[bool], Awaitable[None]]
    set_alive: Callable[[bool], Awaitable[None]]
