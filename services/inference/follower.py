"""Follows the registry: a snapshot, then every event after it, resumed where a connection broke.

While the registry is away the service goes on with what it has; no event is missed, none applied twice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from graft.errors import GraftError, Reason
from graft.names import DEFAULT_ALIAS, version_name

from services.common.logs import get_logger
from services.inference.catalogue import AdapterEntry, Catalogue
from services.inference.domain import AdapterVersion, AliasSeen, Base, Event, Gone, Returned
from services.inference.metrics import InferenceMetrics
from services.inference.registry.base import Registry
from services.inference.rollout.controller import Rollouts
from services.inference.swaps import NEWEST, Swaps

_FIRST_RETRY_S = 0.1
_LAST_RETRY_S = 5.0


class Follower:
    """Keeps the catalogue current and tells the swaps what is wanted.

    Args:
        warm_limit: production versions that are made resident at start, those moved last first.
        prefetch: told of versions, by name, that an alias names and that nobody has asked for yet.
    """

    def __init__(
        self,
        registry: Registry,
        base: Base,
        catalogue: Catalogue,
        swaps: Swaps,
        metrics: InferenceMetrics,
        warm_limit: int,
        prefetch: Callable[[str], None] = lambda _: None,
        rollouts: Rollouts | None = None,
    ) -> None:
        self._registry, self._base = registry, base
        self._catalogue, self._swaps = catalogue, swaps
        self._metrics, self._warm_limit = metrics, warm_limit
        self._prefetch, self._rollouts = prefetch, rollouts
        self._task: asyncio.Task[None] | None = None
        self._connected, self._event_lag_s, self._heard_s = False, 0.0, time.monotonic()
        metrics.watch_lag.set_function(lambda: self.lag_s)
        self.revision = 0

    @property
    def lag_s(self) -> float:
        """Age of the last event when it was acted upon; while disconnected, time since the last word."""
        if self._connected:
            return self._event_lag_s
        return time.monotonic() - self._heard_s

    async def start(self) -> None:
        """Returns after the first snapshot, once its production versions were loaded or refused."""
        delay_s = _FIRST_RETRY_S
        while True:
            try:
                await self._synchronize()
                break
            except GraftError as error:
                if error.reason is not Reason.UNAVAILABLE:
                    raise
                get_logger().warning("waiting for the registry", error=error.message)
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, _LAST_RETRY_S)
        self._task = asyncio.create_task(self._follow())
        await self._swaps.settled()

    def show(self) -> None:
        """Shows in the metrics what is so now."""
        self._metrics.watch_lag.set_function(lambda: self.lag_s)
        self._metrics.watch_connected.set(self._connected)
        self._metrics.revision.set(self.revision)

    async def stop(self) -> None:
        """Ends following."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _synchronize(self) -> None:
        snapshot = await self._registry.snapshot()
        for gone in self._catalogue.missing(snapshot):
            self._act_on_end(gone)
        for entry in self._catalogue.rewind(snapshot):
            self._act_on_loss(entry)
        moved = sorted(
            self._catalogue.load(snapshot), key=lambda alias: alias.revision, reverse=True
        )
        warmed = 0
        for alias in moved:
            first = self._swaps.route((alias.adapter, alias.alias)) is None
            if first and alias.alias == DEFAULT_ALIAS and self._is_ours(alias.adapter):
                warmed += 1
                if warmed > self._warm_limit:
                    self._prefetch(alias.version)
                    self._see(alias, begin=False)
                    continue
            self._act_on_alias(alias)
        # Also back, where a registry was restored: the events from there on are other ones.
        self.revision = snapshot.revision
        self._seen(snapshot.revision)

    async def _follow(self) -> None:
        delay_s = _FIRST_RETRY_S
        while True:
            try:
                async for event in self._registry.watch(self.revision):
                    if isinstance(event.change, Returned):
                        await self._synchronize()
                    self._act(event)
                    self._set_connected(True)
                    delay_s = _FIRST_RETRY_S
            except GraftError as error:
                get_logger().warning("watch broken", after=self.revision, error=error.message)
                if error.reason is Reason.REVISION_COMPACTED:
                    with suppress(GraftError):
                        await self._synchronize()
            except Exception as error:
                # Serving goes on; the growing lag shows that something is wrong.
                get_logger().error("watch failed", after=self.revision, exc_info=error)
            self._set_connected(False)
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, _LAST_RETRY_S)

    def _act(self, event: Event) -> None:
        change = event.change
        if isinstance(change, Gone):
            self._act_on_end(change)
        elif change is not None and self._catalogue.apply(change):
            match change:
                case AliasSeen():
                    self._act_on_alias(change)
                case AdapterVersion():
                    self._act_on_version(change)
        elif isinstance(change, AdapterVersion) and self._is_ours(change.adapter):
            self._swaps.reconsider(change)
            if self._rollouts is not None:
                self._rollouts.reconsider(change)
        self._event_lag_s = max(0.0, time.time() - event.time_s)
        self._seen(event.revision)

    def _act_on_alias(self, alias: AliasSeen) -> None:
        key = alias.adapter, alias.alias
        if not self._is_ours(alias.adapter):
            return
        if alias.alias == DEFAULT_ALIAS or self._swaps.route(key) is not None:
            self._swaps.want(key, alias.version)
            self._see(alias, begin=True)
        else:
            self._prefetch(alias.version)
            self._see(alias, begin=False)

    def _see(self, alias: AliasSeen, *, begin: bool) -> None:
        if self._rollouts is not None:
            self._rollouts.see(alias, begin=begin)

    def _act_on_end(self, gone: Gone) -> None:
        self._catalogue.apply(gone)
        self._swaps.forget(gone.adapter, gone.alias)
        if self._rollouts is not None:
            self._rollouts.forget(gone.adapter, gone.alias)

    def _act_on_loss(self, entry: AdapterEntry) -> None:
        """The registry was restored to a time before the newest versions of an adapter."""
        get_logger().warning("the registry lost versions", adapter=entry.name, newest=entry.latest)
        if not entry.latest:
            self._swaps.forget(entry.name)
        elif self._swaps.route((entry.name, NEWEST)) is not None:
            self._swaps.want((entry.name, NEWEST), version_name(entry.name, entry.latest))

    def _act_on_version(self, version: AdapterVersion) -> None:
        key = version.adapter, NEWEST
        if self._swaps.route(key) is not None:
            self._swaps.want(key, version.name)

    def _is_ours(self, adapter: str) -> bool:
        entry = self._catalogue.adapters.get(adapter)
        return entry is not None and entry.base in ("", self._base.name)

    def _set_connected(self, connected: bool) -> None:
        self._connected = connected
        self._metrics.watch_connected.set(connected)

    def _seen(self, revision: int) -> None:
        self._heard_s = time.monotonic()
        self.revision = max(self.revision, revision)
        self._metrics.revision.set(self.revision)
