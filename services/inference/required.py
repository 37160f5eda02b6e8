"""The models that readiness waits for, and those that never make room: named by the operator, by reference.

A reference means a version by way of the routes, so that a pin follows its alias.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from graft.errors import GraftError
from graft.names import DEFAULT_ALIAS, ModelReference, adapter_name, version_name

from services.common.logs import get_logger
from services.inference.domain import AdapterVersion
from services.inference.production import OF_THE_VERSION, Production
from services.inference.residency import Residency
from services.inference.router import Router
from services.inference.swaps import NEWEST, RouteKey

_FIRST_RETRY_S = 0.1
_LAST_RETRY_S = 5.0


class Pins:
    """Which versions some references mean now.

    Args:
        references: "bot", "bot@canary", "bot:3"; checked before.
    """

    def __init__(self, references: Sequence[str], namespace: str) -> None:
        self._references = [ModelReference.parse(each, namespace) for each in references]

    def versions(self, routes: Mapping[RouteKey, AdapterVersion]) -> frozenset[str]:
        """Their names; nothing for a reference that has no route yet."""
        found = (self._version(each, routes) for each in self._references)
        return frozenset(name for name in found if name is not None)

    @staticmethod
    def _version(
        reference: ModelReference, routes: Mapping[RouteKey, AdapterVersion]
    ) -> str | None:
        adapter = adapter_name(reference.namespace, reference.name)
        if reference.version is not None:
            return version_name(adapter, reference.version)
        for alias in (reference.alias,) if reference.alias else (DEFAULT_ALIAS, NEWEST):
            version = routes.get((adapter, alias))
            if version is not None:
                return version.name
        return None


class Required:
    """Brings the required models in, however long that takes.

    Args:
        references: as of Pins.
        production: what else is required; None for nothing.
        missing: told how many are not held yet.
    """

    def __init__(
        self,
        references: Sequence[str],
        router: Router,
        residency: Residency,
        production: Production | None = None,
        missing: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._references, self._router, self._residency = tuple(references), router, residency
        self._production, self._missing = production, missing
        self._told = self._told_lost = ""

    async def settle(self) -> None:
        """Returns once all of them are on the engine; the log says which are not yet, and why."""
        delay_s = _FIRST_RETRY_S
        while not await self.attempt():
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, _LAST_RETRY_S)

    async def attempt(self) -> bool:
        """Tries once for each; whether all of them are held."""
        missing = await self._bring_all(self._references)
        if self._production is not None:
            failed = await self._bring_all(self._production.references())
            lost = {name: error for name, error in failed.items() if error.reason in OF_THE_VERSION}
            self._tell_lost(lost)
            missing |= {name: error for name, error in failed.items() if name not in lost}
        coming = () if self._production is None else self._production.fetching()
        why = "; ".join(
            [f"{name}: {error}" for name, error in missing.items()]
            + [f"{name}: its files are being fetched" for name in coming]
        )
        if why and why != self._told:
            get_logger().warning("not ready: required models are missing", missing=why)
        self._told = why
        self._missing(len(missing) + len(coming))
        return not why

    async def _bring_all(self, references: Sequence[str]) -> dict[str, GraftError]:
        """What could not be brought, and why."""
        failed = await asyncio.gather(*(self._bring(each) for each in references))
        found = zip(references, failed, strict=True)
        return {reference: error for reference, error in found if error is not None}

    def _tell_lost(self, lost: Mapping[str, GraftError]) -> None:
        why = "; ".join(f"{name}: {error}" for name, error in lost.items())
        if why and why != self._told_lost:
            get_logger().error("production aliases name what no replica can serve", lost=why)
        self._told_lost = why

    async def _bring(self, reference: str) -> GraftError | None:
        try:
            version = await self._router.resolve(reference)
            if version is not None:
                self._residency.release(await self._residency.acquire(version))
        except GraftError as error:
            return error
        return None
