"""Moves routes to the version that an alias names, without a gap: load beside, switch, drain, unload.

A route is what a name means for new requests. It moves only when the new version serves; where that
fails, the old version goes on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

from graft.errors import GraftError
from graft.names import DEFAULT_ALIAS

from services.common.logs import get_logger
from services.inference.catalogue import Catalogue
from services.inference.domain import AdapterVersion
from services.inference.failures import TEMPORARY
from services.inference.metrics import InferenceMetrics
from services.inference.registry.base import Registry
from services.inference.residency import Residency

# (adapter's resource name, alias); the empty alias is the newest version.
RouteKey = tuple[str, str]
NEWEST = ""
_FIRST_RETRY_S = 0.2
_LAST_RETRY_S = 10.0


class Swaps:
    """The routes of one service, and one task for each that is on its way to another version."""

    def __init__(
        self,
        catalogue: Catalogue,
        registry: Registry,
        residency: Residency,
        metrics: InferenceMetrics,
    ) -> None:
        self._catalogue, self._registry = catalogue, registry
        self._residency, self._metrics = residency, metrics
        self._routes: dict[RouteKey, AdapterVersion] = {}
        self._wanted: dict[RouteKey, tuple[str, float]] = {}
        self._changed: dict[RouteKey, asyncio.Event] = {}
        self._tasks: dict[RouteKey, asyncio.Task[None]] = {}
        # Names of versions that others hold loaded though no route means them.
        self.held: Callable[[], frozenset[str]] = frozenset
        # Which versions are pinned, by the routes.
        self.pins: Callable[[Mapping[RouteKey, AdapterVersion]], frozenset[str]] = lambda _: (
            frozenset()
        )

    def route(self, key: RouteKey) -> AdapterVersion | None:
        """What serves under a name now."""
        return self._routes.get(key)

    def routes(self) -> dict[RouteKey, AdapterVersion]:
        """All routes as they are now. From any thread."""
        return dict(self._routes)

    def adopt(self, key: RouteKey, version: AdapterVersion) -> AdapterVersion:
        """Routes a name that had no route; answers what it is routed to."""
        adopted = self._routes.setdefault(key, version)
        self._note()
        return adopted

    def want(self, key: RouteKey, version: str) -> None:
        """A name shall mean this version from now on; a newer wish replaces an older one."""
        self._wanted[key] = version, time.perf_counter()
        if key in self._tasks:
            self._changed[key].set()
            return
        self._changed[key] = asyncio.Event()
        self._tasks[key] = asyncio.create_task(self._pursue(key))

    def reconsider(self, version: AdapterVersion) -> None:
        """Tries again what failed for a version of which something new is said: a signature, for example."""
        self._residency.reconsider(version)
        entry = self._catalogue.adapters.get(version.adapter)
        for alias, seen in () if entry is None else tuple(entry.aliases.items()):
            routed = self._routes.get((version.adapter, alias))
            wanted = alias == DEFAULT_ALIAS or routed is not None
            if seen.version == version.name and wanted and routed != version:
                self.want((version.adapter, alias), version.name)

    def forget(self, adapter: str, alias: str = "") -> None:
        """An adapter means nothing any more, or one of its aliases: what it routed to is unloaded."""

        def concerns(key: RouteKey) -> bool:
            return key[0] == adapter and (not alias or key[1] == alias)

        for key in [key for key in self._wanted if concerns(key)]:
            del self._wanted[key]
            self._changed[key].set()
        replaced = [self._routes.pop(key) for key in list(self._routes) if concerns(key)]
        self._retire(replaced)

    def let_go(self, versions: Sequence[AdapterVersion]) -> None:
        """Nobody holds them any more: what no name means, now or soon, is unloaded."""
        self._retire(versions)

    def held_changed(self) -> None:
        """Something else is held than before."""
        self._note()

    async def settled(self) -> None:
        """Waits until every wish so far was fulfilled or failed for good."""
        while self._tasks:
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def close(self) -> None:
        """Ends what is under way."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _pursue(self, key: RouteKey) -> None:
        delay_s = _FIRST_RETRY_S
        try:
            while key in self._wanted:
                wish = name, wanted_s = self._wanted[key]
                self._changed[key].clear()
                try:
                    outcome = "moved" if await self._move(key, name) else "unchanged"
                except GraftError as error:
                    if error.reason in TEMPORARY:
                        await self._pause(key, delay_s)
                        delay_s = min(2 * delay_s, _LAST_RETRY_S)
                        continue
                    outcome = "failed"
                    get_logger().error(
                        "route not moved", alias=key[1], version=name, error=str(error)
                    )
                except Exception as error:
                    # The old version goes on; a later wish is tried as ever.
                    outcome = "failed"
                    get_logger().error(
                        "route not moved", alias=key[1], version=name, exc_info=error
                    )
                if key in self._wanted:
                    self._count(outcome, time.perf_counter() - wanted_s)
                if self._wanted.get(key) == wish:
                    del self._wanted[key]
        finally:
            del self._tasks[key], self._changed[key]

    async def _pause(self, key: RouteKey, seconds: float) -> None:
        """Waits before the next try, or until something else is wanted."""
        try:
            async with asyncio.timeout(seconds):
                await self._changed[key].wait()
        except TimeoutError:
            return

    def _count(self, outcome: str, seconds: float) -> None:
        self._metrics.swaps.labels(outcome).inc()
        if outcome != "unchanged":
            self._metrics.swap_seconds.labels(outcome).observe(seconds)

    async def _move(self, key: RouteKey, name: str) -> bool:
        """Returns whether the name means another version than before."""
        with self._metrics.stage("resolve"):
            version = await self.describe(name)
        _, alias = key
        old = self._routes.get(key)
        if old == version and (alias != DEFAULT_ALIAS or self._residency.holds(version)):
            return False
        in_use = old is not None and self._residency.holds(old)
        if alias != DEFAULT_ALIAS and not in_use:
            # Nobody waits for it: the first request will load it.
            self._switch(key, version)
            return old != version
        resident = await self._residency.acquire(version)
        try:
            if key not in self._wanted:
                # It was deleted meanwhile.
                return False
            with self._metrics.stage("switch"):
                self._switch(key, version)
        finally:
            self._residency.release(resident)
        return old != version

    def _switch(self, key: RouteKey, version: AdapterVersion) -> None:
        adapter, alias = key
        replaced = [self._routes.get(key)]
        self._routes[key] = version
        if alias == DEFAULT_ALIAS:
            # From now on the adapter's bare name means this one.
            replaced.append(self._routes.pop((adapter, NEWEST), None))
        self._retire([old for old in replaced if old is not None])
        get_logger().info("route moved", adapter=adapter, alias=alias, version=version.name)

    def _retire(self, replaced: Sequence[AdapterVersion]) -> None:
        """Unloads what no name means any more."""
        self._note()
        wanted = {each.name for each in self._routes.values()} | self.held()
        wanted |= {name for name, _ in self._wanted.values()}
        for old in replaced:
            if old.name not in wanted:
                self._residency.retire(old)

    def _note(self) -> None:
        """Tells the residency what is wanted more than other versions."""
        self._residency.wishes.preferred = (
            frozenset(
                each.name for (_, name), each in self._routes.items() if name == DEFAULT_ALIAS
            )
            | self.held()
        )
        self._residency.wishes.pinned = self.pins(self._routes)

    async def describe(self, name: str) -> AdapterVersion:
        """A version by its resource name, from what is known or from the registry."""
        adapter, _, number = name.partition("/versions/")
        entry = self._catalogue.adapters.get(adapter)
        known = None if entry is None else entry.versions.get(int(number))
        if known is not None:
            return known
        version = await self._registry.version(name)
        self._catalogue.apply(version)
        return version
