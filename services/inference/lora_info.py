"""vllm:lora_requests_info as the Gateway API's endpoint pickers read it, with one series at a time.

vLLM's own grows without bound and is left out (vllm_stat_logger.py). This one has a single sample, which
says what is so now; its value is the time, by which a picker knows the newest. Adapters are named as
clients ask for them: "bot", "bot@canary", "bot:7".
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from graft.names import DEFAULT_ALIAS
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from services.inference.domain import AdapterVersion
from services.inference.engines.base import Engine
from services.inference.residency import Residency
from services.inference.residents import State
from services.inference.swaps import NEWEST, RouteKey, Swaps

NAME = "vllm:lora_requests_info"


class LoraInfo(Collector):
    """Which adapters the engine computes, and which are on their way to it; asked at every scrape."""

    def __init__(self, engine: Engine, residency: Residency, swaps: Swaps) -> None:
        self._engine, self._residency, self._swaps = engine, residency, swaps

    def show_in(self, registry: CollectorRegistry) -> None:
        """Shows it there from now on."""
        registry.register(self)

    def describe(self) -> Iterable[Metric]:
        """Only what it is called."""
        return [_family()]

    def collect(self) -> Iterable[Metric]:
        """One sample; none for an engine that takes no adapters."""
        family, slots = _family(), self._engine.limits.max_adapters
        if slots:
            names = _names(self._swaps.routes())
            residents = self._residency.current()
            ready = [each for each in residents if each.state is State.READY]
            # What takes no slot is no LoRA to a picker that counts slots.
            takes_slot = self._engine.limits.takes_slot
            ready = [each for each in ready if takes_slot(each.version.peft_type)]
            running = self._residency.wishes.by_use(ready)
            running = running[: self._engine.limits.computed(each.version.rank for each in running)]
            waiting = (
                each
                for each in residents
                if each.state is State.LOADING and takes_slot(each.version.peft_type)
            )
            family.add_metric(
                [
                    str(slots),
                    ",".join(sorted(_name(each.version, names) for each in waiting)),
                    ",".join(sorted(_name(each.version, names) for each in running)),
                ],
                time.time(),
            )
        return [family]


def _family() -> GaugeMetricFamily:
    return GaugeMetricFamily(
        NAME,
        "Adapters on the engine's slots and on their way there; the value is the time in seconds",
        labels=("max_lora", "waiting_lora_adapters", "running_lora_adapters"),
    )


def _names(routes: Mapping[RouteKey, AdapterVersion]) -> dict[str, str]:
    """For each routed version the shortest of its names."""
    found: dict[str, str] = {}
    for (_, alias), version in routes.items():
        bare = alias in (DEFAULT_ALIAS, NEWEST)
        name = version.adapter_id if bare else f"{version.adapter_id}@{alias}"
        found[version.name] = min(found.get(version.name, name), name, key=len)
    return found


def _name(version: AdapterVersion, names: Mapping[str, str]) -> str:
    return names.get(version.name, version.reference)
