"""Follows the registry for the names that are served: when one comes to mean another version, it is replaced.

vLLM asks a resolver once per name and never again; without this an alias would stay where it was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graft.errors import GraftError, Reason, UnavailableError
from graft.names import ModelReference, adapter_name

from services.inference.domain import AdapterSeen, AdapterVersion, Change
from services.inference.registry.base import Registry

if TYPE_CHECKING:
    import logging

_FIRST_PAUSE_S = 0.1
_LAST_PAUSE_S = 5.0


@dataclass(slots=True)
class Followed:
    """A name that is served, and its version; None while vLLM is still loading the first one."""

    reference: ModelReference
    version: AdapterVersion | None = None


class Follower:
    """Watches each namespace of which a name is served.

    Args:
        open_registry: the registry of a namespace.
        refresh: asked for every name that may have changed; raising UNAVAILABLE, it is asked again.
    """

    def __init__(
        self,
        open_registry: Callable[[str], Registry],
        refresh: Callable[[str], Awaitable[None]],
        log: logging.Logger,
    ) -> None:
        self._open_registry, self._refresh, self._log = open_registry, refresh, log
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._refreshes: dict[str, asyncio.Task[None]] = {}
        self._dirty: set[str] = set()
        self.followed: dict[str, Followed] = {}
        self.connected: dict[str, bool] = {}

    def follow(self, asked: str, reference: ModelReference) -> Followed:
        """From now on no change of it is missed. Comes before its version is looked up."""
        followed = self.followed[asked] = Followed(reference)
        namespace = reference.namespace
        if namespace not in self._watches:
            self._watches[namespace] = asyncio.create_task(self._watch(namespace))
        return followed

    def forget(self, asked: str) -> None:
        """It is not served any more."""
        self.followed.pop(asked, None)

    async def close(self) -> None:
        """Ends following."""
        tasks = [*self._watches.values(), *self._refreshes.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, namespace: str) -> None:
        registry = self._open_registry(namespace)
        revision: int | None = None
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                if revision is None:
                    revision = (await registry.snapshot()).revision
                    self._mark(namespace, None)
                async for event in registry.watch(revision):
                    revision, pause_s = event.revision, _FIRST_PAUSE_S
                    self.connected[namespace] = True
                    if event.change is not None:
                        self._mark(namespace, _adapter_of(event.change))
            except GraftError as error:
                self._log.warning(
                    "The watch of namespace %s is broken: %s. What is loaded is served.",
                    namespace,
                    error.message,
                )
                if error.reason is Reason.REVISION_COMPACTED:
                    revision = None
            except Exception:
                self._log.exception("The watch of namespace %s failed", namespace)
            self.connected[namespace] = False
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LAST_PAUSE_S)

    def _mark(self, namespace: str, adapter: str | None) -> None:
        """Has the names of an adapter looked up again; with None those of all of the namespace."""
        for asked, followed in self.followed.items():
            reference = followed.reference
            if reference.namespace == namespace and adapter in (
                None,
                adapter_name(namespace, reference.name),
            ):
                self._dirty.add(asked)
                if asked not in self._refreshes:
                    self._refreshes[asked] = asyncio.create_task(self._settle(asked))

    async def _settle(self, asked: str) -> None:
        """Refreshes a name until nothing new was heard of it meanwhile."""
        pause_s = _FIRST_PAUSE_S
        try:
            while asked in self._dirty:
                self._dirty.discard(asked)
                try:
                    await self._refresh(asked)
                except UnavailableError as error:
                    self._log.warning("%s stays as it is for now: %s", asked, error)
                    self._dirty.add(asked)
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, _LAST_PAUSE_S)
                except GraftError as error:
                    self._log.error("%s stays as it is: %s", asked, error)
                except Exception:
                    self._log.exception("%s stays as it is", asked)
        finally:
            del self._refreshes[asked]


def _adapter_of(change: Change) -> str:
    return change.name if isinstance(change, AdapterSeen) else change.adapter
