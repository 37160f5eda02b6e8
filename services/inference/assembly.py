"""Makes what stands on one base's engine, group by group: its versions, its requests, its upkeep, its answers.

Part of the composition root. Nothing is started here; serving.py does that, and ends it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from services.inference.admission import Admission
from services.inference.answers import Answers
from services.inference.blends.recipes import Recipes
from services.inference.blends.store import BlendStore
from services.inference.catalogue import Catalogue
from services.inference.config import InferenceSettings
from services.inference.domain import Base
from services.inference.engines.base import Engine
from services.inference.follower import Follower
from services.inference.gate import Gate
from services.inference.loading import Preparation
from services.inference.lora_info import LoraInfo
from services.inference.models import Models
from services.inference.pace import Pace
from services.inference.prefetch import Prefetch
from services.inference.production import Production
from services.inference.prompts import Prompts
from services.inference.required import Pins, Required
from services.inference.residency import Residency, ResidencyOptions
from services.inference.rollout.controller import Rollouts
from services.inference.rollout.loading import CanaryLoading
from services.inference.rollout.shadow import Shadows
from services.inference.router import Router
from services.inference.scheduling.by_engine import Schedulers
from services.inference.scheduling.scheduler import Scheduler, SchedulingOptions
from services.inference.servicer import InferenceServicer
from services.inference.shared import Shared
from services.inference.supervisor import Probes, RestartOptions, Supervisor
from services.inference.swaps import Swaps


@dataclass(frozen=True, slots=True)
class Site:
    """What all of it stands on."""

    settings: InferenceSettings
    engine: Engine
    gate: Gate
    shared: Shared
    base: Base


class Versions:
    """What brings versions onto the engine, and knows which one a name means."""

    def __init__(self, site: Site) -> None:
        settings, shared = site.settings, site.shared
        blends = BlendStore(shared.cache, shared.blender, shared.metrics)
        preparation = Preparation(site.engine, shared.cache, site.base, shared.trust, blends)
        options = ResidencyOptions(
            settings.max_waiting,
            settings.slot_timeout_s,
            settings.retry_failed_after_s,
            settings.retry_failed_max_s,
        )
        self.residency = Residency(site.engine, site.gate, preparation, shared.metrics, options)
        self.catalogue = Catalogue()
        self.swaps = Swaps(self.catalogue, shared.registry, self.residency, shared.metrics)
        pins = Pins([*settings.required, *settings.pinned], settings.namespace)
        self.swaps.pins = pins.versions
        self.prefetch = Prefetch(preparation, self.swaps.describe)


class Requests:
    """What finds out what a request means, and when it has its turn."""

    def __init__(self, site: Site, versions: Versions) -> None:
        settings, shared, engine = site.settings, site.shared, site.engine
        self.prompts = Prompts(engine, site.base)
        self.scheduler = _schedulers(settings, engine)
        self.rollouts = self._roll_out(site, versions)
        recipes = Recipes(site.base, lambda: engine.limits, shared.blender.code)
        self.router = Router(
            site.base,
            versions.catalogue,
            shared.registry,
            versions.swaps,
            recipes if settings.blends else None,
            self.rollouts,
        )

    def _roll_out(self, site: Site, versions: Versions) -> Rollouts:
        engine, scheduler, metrics = site.engine, self.scheduler, site.shared.metrics.rollouts
        swaps, residency = versions.swaps, versions.residency
        most = site.settings.max_in_flight or site.settings.max_num_seqs

        def busy() -> bool:
            return scheduler.waiting > 0 or 2 * scheduler.in_flight > most

        shadows = Shadows(engine, residency, self.prompts, metrics, busy)
        loading = CanaryLoading(swaps, residency, lambda: engine.limits.max_loaded)
        rollouts = Rollouts(site.shared.registry, loading, shadows, metrics)
        swaps.held = rollouts.held
        return rollouts


class Upkeep:
    """What keeps it as the registry and the operator want it."""

    def __init__(self, site: Site, versions: Versions, requests: Requests) -> None:
        settings, metrics = site.settings, site.shared.metrics
        prefetch, limit = versions.prefetch, site.engine.limits.max_loaded
        room = limit - len(settings.required)
        self.required = Required(
            settings.required,
            requests.router,
            versions.residency,
            Production(site.base, versions.catalogue, room, prefetch.is_coming)
            if settings.require_production
            else None,
            metrics.required_missing.set,
        )
        self.follower = Follower(
            site.shared.registry,
            site.base,
            versions.catalogue,
            versions.swaps,
            metrics,
            limit,
            prefetch.want if settings.prefetch else lambda _: None,
            requests.rollouts,
        )
        self.supervisor = self._supervise(site, versions.residency)

    def _supervise(self, site: Site, residency: Residency) -> Supervisor:
        settings, shared = site.settings, site.shared
        return Supervisor(
            site.engine,
            site.gate,
            residency,
            self.required,
            shared.metrics,
            Probes(shared.set_ready, shared.set_alive),
            RestartOptions(
                settings.engine_restart_delay_s,
                settings.engine_restart_max_s,
                settings.engine_restart_limit,
            ),
        )


class Assembly:
    """All that is made for one base and its engine.

    Attributes:
        closing: what is closed at the end, in this order.
    """

    def __init__(self, site: Site) -> None:
        versions = Versions(site)
        requests = Requests(site, versions)
        upkeep = Upkeep(site, versions, requests)
        self.engine = site.engine
        self.residency, self.scheduler = versions.residency, requests.scheduler
        self.required, self.supervisor = upkeep.required, upkeep.supervisor
        self.follower = upkeep.follower
        self.lora_info = LoraInfo(site.engine, versions.residency, versions.swaps)
        self.answers = _answers(site, versions, requests)
        self.models = Models(site.base, versions.catalogue, versions.swaps, versions.residency)
        self.servicer = InferenceServicer(
            self.answers,
            requests.prompts,
            self.models,
            versions.residency,
            upkeep.follower,
            site.base,
            site.settings.stalled_after_s,
            requests.rollouts,
        )
        self.closing: Sequence[Swaps | Residency | Prefetch | Rollouts] = (
            versions.prefetch,
            requests.rollouts,
            versions.swaps,
            versions.residency,
        )


def _answers(site: Site, versions: Versions, requests: Requests) -> Answers:
    shared = site.shared
    admission = Admission(
        site.engine,
        site.gate,
        requests.router,
        versions.residency,
        requests.prompts,
        site.base,
        shared.metrics,
        requests.scheduler,
        requests.rollouts,
    )
    return Answers(
        site.engine,
        site.base,
        site.gate,
        admission,
        shared.attestor,
        shared.metrics,
        Pace(site.settings.max_flush_interval_s),
    )


def _schedulers(settings: InferenceSettings, engine: Engine) -> Schedulers:
    options, second = _scheduling(settings), engine.limits.second
    first = Scheduler(options, lambda: engine.limits.room)
    if second is None:
        return Schedulers(first, {})
    most = replace(options, max_in_flight=settings.second_engine_max_seqs)
    return Schedulers(first, {second.engine: Scheduler(most, lambda: second.room)})


def _scheduling(settings: InferenceSettings) -> SchedulingOptions:
    return SchedulingOptions(
        max_in_flight=settings.max_in_flight or settings.max_num_seqs,
        max_waiting=settings.max_waiting,
        slot_turn_s=settings.slot_turn_s,
        slot_timeout_s=settings.slot_timeout_s,
        rate_limit_wait_s=settings.rate_limit_wait_s,
        adapter_limits=settings.adapter_limits,
        namespace_limits=settings.namespace_limits,
    )
