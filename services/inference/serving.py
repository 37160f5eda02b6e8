"""One base as it is served: its engine with all that stands on it, from the gate to the servicer.

Part of the composition root. A service has one of these, and while it changes its base, two.
"""

from __future__ import annotations

import asyncio

from graft.errors import UnavailableError
from graft.leases import LeaseKeeper
from graft.names import base_name, default_base_id

from services.common.logs import get_logger
from services.inference.assembly import Assembly, Site
from services.inference.bases.place import Place
from services.inference.config import InferenceSettings
from services.inference.domain import Base
from services.inference.engines.base import Engine
from services.inference.gate import Gate
from services.inference.residency import Residency
from services.inference.shared import Shared

_RETRY_S = 0.5


class Serving:
    """A base, its engine, and everything that is made for the two."""

    def __init__(
        self,
        settings: InferenceSettings,
        engine: Engine,
        shared: Shared,
        place: Place | None = None,
    ) -> None:
        self._settings, self._shared = settings, shared
        self.engine, self.place = engine, place
        self.gate = Gate(engine, settings.engine_wait_s, settings.max_waiting)
        self.base: Base | None = None
        self.assembly: Assembly | None = None
        self._lease: LeaseKeeper | None = None

    @property
    def residency(self) -> Residency | None:
        """What is on the engine; None before the start."""
        return None if self.assembly is None else self.assembly.residency

    async def start(self) -> None:
        """Engine and the registry's state. Calls can be answered from now on; see settle().

        Raises:
            GraftError: NOT_A_MODEL, ALREADY_EXISTS when the registry knows another base by this name.
        """
        await self.engine.start()
        self.base = await self._known_base()
        site = Site(self._settings, self.engine, self.gate, self._shared, self.base)
        made = self.assembly = Assembly(site)
        made.supervisor.start()
        await self._hold_residents(self.base, made.residency)
        await made.follower.start()

    async def settle(self) -> None:
        """Returns when what readiness waits for is there."""
        await self._made.required.settle()

    def show(self) -> None:
        """It is the one that answers: the metrics tell of it."""
        metrics, scheduler = self._shared.metrics, self._made.scheduler
        metrics.watch_queue(lambda: scheduler.waiting)
        metrics.queue_age.set_function(lambda: scheduler.oldest_s)
        metrics.in_flight_tokens.set_function(lambda: scheduler.in_flight_tokens)
        self._made.follower.show()
        self._made.residency.show()

    async def leave(self) -> None:
        """Another takes its place: it ends what it has begun, and follows nothing any more."""
        await self.refuse()
        if self.assembly is not None:
            await self.assembly.follower.stop()

    async def refuse(self) -> None:
        """Its engine is not started anew any more."""
        if self.assembly is not None:
            await self.assembly.supervisor.stop()

    async def close(self) -> None:
        """Ends what follows the registry; no call may be in flight. Its engine is stopped by stop()."""
        if self.assembly is not None:
            await self.assembly.follower.stop()
            for each in self.assembly.closing:
                await each.close()
        if self._lease is not None:
            await self._lease.close()

    async def stop(self) -> None:
        """Ends its engine, which may read adapters' folders until then."""
        await self.engine.stop()

    async def end(self) -> None:
        """All of it, and lets go of what its engine read: another one answers, or the start has failed."""
        await self.refuse()
        await self.close()
        await self.stop()
        if self.residency is not None:
            await self.residency.end()

    async def _known_base(self) -> Base:
        if self.place is not None and self.place.base is not None:
            return self.place.base
        settings = self._settings
        base_id = settings.base_name or default_base_id(str(settings.base.absolute()))
        name = base_name(settings.namespace, base_id)
        fingerprint = await self._record_base(name)
        quantization = "" if self.place is None else self.place.quantization.kind
        return Base(name, fingerprint, str(settings.base.absolute()), quantization=quantization)

    async def _record_base(self, name: str) -> str:
        while True:
            try:
                return await self._shared.registry.record_base(self._settings.base, name)
            except UnavailableError as error:
                get_logger().warning("waiting for the registry", error=error.message)
                await asyncio.sleep(_RETRY_S)

    async def _hold_residents(self, base: Base, residency: Residency) -> None:
        """What is resident, or on its way, is not collected; serving never waits for that."""
        of_base = {base.version} if base.version else set()
        self._lease = self._shared.registry.lease(
            lambda: (
                of_base
                | {one.name for each in residency.instances() for one in each.version.registered}
            )
        )
        if self._lease is not None:
            residency.on_change = self._lease.changed
            await self._lease.start()

    @property
    def _made(self) -> Assembly:
        assert self.assembly is not None, "it has not started"
        return self.assembly
