"""Rollouts on one endpoint: follows what aliases say of their canaries, and decides which part a request gets.

A canary gets its part when it is loaded, and while the keeper has not taken it out.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Iterable

from graft.errors import GraftError
from graft.names import DEFAULT_ALIAS, ModelReference

from services.inference.domain import AdapterVersion, AliasSeen
from services.inference.registry.base import Registry
from services.inference.rollout.keeper import Keeper
from services.inference.rollout.loading import CanaryLoading
from services.inference.rollout.log import RolloutLog
from services.inference.rollout.metrics import RolloutMetrics, Step
from services.inference.rollout.observe import Observation
from services.inference.rollout.refusals import RefusalPatterns
from services.inference.rollout.shadow import Copy, Shadows
from services.inference.rollout.split import choose
from services.inference.rollout.state import CanaryHere, CanaryState, Here, Part, Routed
from services.inference.rollout.watch import Watch
from services.inference.swaps import RouteKey


class Rollouts:
    """The aliases of one endpoint that have canaries or a shadow.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        registry: Registry,
        loading: CanaryLoading,
        shadows: Shadows,
        metrics: RolloutMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loading, self._shadows = loading, shadows
        self._metrics, self._clock = metrics, clock
        self._here: dict[RouteKey, Here] = {}
        self._log = RolloutLog(metrics, self._here)
        self._keeper = Keeper(registry, self._here, self._log, clock)
        loading.loaded = self._keeper.loaded
        loading.failed = self._keeper.unloadable

    # What the registry says.

    def see(self, alias: AliasSeen, *, begin: bool) -> None:
        """An alias is so from now on; begin loads its canaries before anybody asks for it."""
        key = alias.adapter, alias.alias
        here = self._here.get(key)
        if here is None and not alias.canaries and alias.shadow is None:
            return
        if here is None:
            here = self._here[key] = Here(alias, self._clock())
        self._update(here, alias)
        if begin or here.begun:
            self._begin(here)
        if not alias.canaries and alias.shadow is None:
            del self._here[key]
            self._metrics.forget(key[0].rpartition("/")[2], key[1])
        self._log.show()

    def forget(self, adapter: str, alias: str = "") -> None:
        """An adapter means nothing any more, or one of its aliases."""
        for key in [one for one in self._here if one[0] == adapter and alias in ("", one[1])]:
            here = self._here.pop(key)
            self._loading.drop(here, here.canaries.values())
            self._metrics.forget(adapter.rpartition("/")[2], key[1])
        self._log.show()

    def reconsider(self, version: AdapterVersion) -> None:
        """Something new is said of a version that could not be loaded: it is tried again."""
        for here in self._here.values():
            canary = here.canaries.get(version.number)
            if canary is None or here.alias.adapter != version.adapter:
                continue
            if canary.state is CanaryState.FAILED:
                canary.state, canary.why = CanaryState.LOADING, ""
                self._loading.bring(here, canary)

    def _update(self, here: Here, alias: AliasSeen) -> None:
        before, here.alias, here.since_s = dict(here.canaries), alias, self._clock()
        here.canaries = {}
        for number, percent in alias.canaries:
            canary = before.pop(number, None)
            if canary is None:
                canary = CanaryHere(number, percent)
                # Whatever it did as a canary some other time is forgotten.
                here.windows.pop(number, None)
                self._log.tell(Step.SEEN, here, number, percent=percent)
            canary.percent = percent
            here.canaries[number] = canary
        limits = here.limits
        here.patterns = RefusalPatterns(() if limits is None else limits.refusal_patterns)
        for number in before:
            self._log.tell(Step.ENDED, here, number, reason=alias.reason)
        self._loading.drop(here, before.values())
        kept = {alias.number, *here.canaries}
        here.windows = {number: one for number, one in here.windows.items() if number in kept}
        self._loading.set_shadow(here)

    def _begin(self, here: Here) -> None:
        here.begun = True
        for canary in here.canaries.values():
            if canary.state is CanaryState.LOADING:
                self._loading.bring(here, canary)
        self._loading.bring_shadow(here)
        self._keeper.begin()

    # What a request asks.

    def key_for(self, session_key: str) -> str:
        """A request's own key where it brought none, so that it is decided once."""
        return session_key or (uuid.uuid4().hex if self._here else "")

    def route(self, model: str, namespace: str, stable: AdapterVersion, session_key: str) -> Routed:
        """Which part a request gets of what its reference means, which is stable without canaries."""
        here = self._named(model, namespace, stable) if self._here else None
        if here is None or not here.canaries:
            return Routed(stable)
        if not here.begun:
            self._begin(here)
        # Without a key: it came before the rollout did.
        number = choose(here.name, here.weights(), session_key) if session_key else None
        canary = None if number is None else here.canaries[number]
        if canary is None or canary.version is None or canary.state is not CanaryState.SERVING:
            return Routed(stable, here.name, Part.STABLE)
        return Routed(canary.version, here.name, Part.CANARY)

    def gives_up(self, routed: Routed, error: GraftError) -> bool:
        """A canary could not be loaded for a request; whether the stable version is to answer instead."""
        found = self._canary_of(routed)
        if found is None or self._loading.is_temporary(error):
            return False
        here, canary = found
        self._keeper.unloadable(here, canary, error)
        return True

    def begin(self, routed: Routed, model: str, namespace: str) -> Watch | None:
        """What watches a request that has got its part; None where nothing is to be seen."""
        if not self._here or routed.version is None:
            return None
        version = routed.version
        here = self._of(routed) if routed.alias else self._named(model, namespace, version)
        if here is None:
            return None
        adapter = here.alias.adapter.rpartition("/")[2]
        if routed.alias:
            canary = routed.part is Part.CANARY
            self._metrics.decided(adapter, here.alias.alias, canary=canary)
        observation, window = None, None
        if here.limits is not None and here.canaries:
            window = here.window(version.number)
            observation = Observation(0, here.patterns, self._clock)
            window.enter(observation)
        copy = None if routed.part is Part.CANARY else _copy(here)
        if observation is None and copy is None:
            return None
        return Watch(observation, window, copy, self._shadows.offer)

    def _named(self, model: str, namespace: str, version: AdapterVersion) -> Here | None:
        """The alias that a reference goes by, where something goes on with it."""
        # Not every reference is of one adapter; those are that mean a version of one that is here.
        if not any(adapter == version.adapter for adapter, _ in self._here):
            return None
        reference = ModelReference.parse(model, namespace)
        if reference.version is not None:
            return None
        return self._here.get((version.adapter, reference.alias or DEFAULT_ALIAS))

    def _of(self, routed: Routed) -> Here | None:
        adapter, _, alias = routed.alias.partition("/aliases/")
        return self._here.get((adapter, alias))

    def _canary_of(self, routed: Routed) -> tuple[Here, CanaryHere] | None:
        here = self._of(routed) if routed.part is Part.CANARY else None
        canary = (
            None if here is None or routed.version is None
            else here.canaries.get(routed.version.number)
        )  # fmt: skip
        return None if here is None or canary is None else (here, canary)

    # What it does by itself.

    def statuses(self) -> Iterable[Here]:
        """All that goes on."""
        return tuple(self._here.values())

    def now_s(self) -> float:
        """On the clock of the windows."""
        return self._clock()

    def held(self) -> frozenset[str]:
        """Versions that stay loaded though no route means them, by name."""
        return frozenset(self._loading.held(self._here.values()))

    async def close(self) -> None:
        """Ends what is under way."""
        await self._keeper.close()
        await self._loading.close()
        await self._shadows.close()


def _copy(here: Here) -> Copy | None:
    shadow = here.rollout.shadow
    # Not by the key: a copy of some requests of everybody.
    if shadow is None or here.shadow is None or random.uniform(0, 100) >= shadow.percent:
        return None
    return Copy(here.shadow)
