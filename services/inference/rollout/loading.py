"""Has canaries and shadows loaded before they are asked, and lets go of those that no alias names."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator

from graft.errors import GraftError, Reason
from graft.names import version_name

from services.common.logs import get_logger
from services.inference.domain import AdapterVersion
from services.inference.failures import TEMPORARY
from services.inference.residency import Residency
from services.inference.rollout.shadow import ShadowTally
from services.inference.rollout.state import CanaryHere, CanaryState, Here
from services.inference.swaps import Swaps

_FIRST_RETRY_S = 0.2
_LAST_RETRY_S = 10.0


class CanaryLoading:
    """Brings versions in, one task for each.

    Args:
        room: how many adapters the engine holds at once; a canary needs one place beside the stable one.

    Attributes:
        loaded: told of a canary that may get requests.
        failed: told of one that cannot be loaded.
    """

    def __init__(self, swaps: Swaps, residency: Residency, room: Callable[[], int]) -> None:
        self._swaps, self._residency, self._room = swaps, residency, room
        self.loaded: Callable[[Here, CanaryHere], None] = lambda here, canary: None
        self.failed: Callable[[Here, CanaryHere, GraftError], None] = lambda here, canary, why: None
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def bring(self, here: Here, canary: CanaryHere) -> None:
        """Loads a canary, however often that has to be tried."""
        self._spawn(f"{here.name} {canary.number}", self._bring(here, canary))

    def set_shadow(self, here: Here) -> None:
        """Begins to count anew where the shadow is another version than before."""
        shadow = here.rollout.shadow
        before = here.shadow
        if before is not None and (shadow is None or before.version.number != shadow.version):
            here.shadow = None
            self._swaps.let_go([before.version])

    def bring_shadow(self, here: Here) -> None:
        """Loads the version that answers copies."""
        if here.rollout.shadow is not None and here.shadow is None:
            self._spawn(f"{here.name} shadow", self._bring_shadow(here))

    def drop(self, here: Here, canaries: Iterable[CanaryHere]) -> None:
        """They are no canaries any more; what no name means is unloaded."""
        gone: list[AdapterVersion] = []
        for canary in canaries:
            task = self._tasks.get(f"{here.name} {canary.number}")
            if task is not None:
                task.cancel()
                # It may come again before the task has ended.
                del self._tasks[f"{here.name} {canary.number}"]
            if canary.version is not None:
                gone.append(canary.version)
        self._swaps.let_go(gone)

    def held(self, all_here: Iterable[Here]) -> Iterator[str]:
        """Versions that stay loaded for the rollouts, by name."""
        for here in all_here:
            for canary in here.canaries.values():
                if canary.version is not None and canary.state is not CanaryState.FAILED:
                    yield canary.version.name
            if here.shadow is not None:
                yield here.shadow.version.name

    @staticmethod
    def is_temporary(error: GraftError) -> bool:
        """Whether trying again may help."""
        return error.reason in TEMPORARY

    async def close(self) -> None:
        """Ends what is under way."""
        tasks = tuple(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _spawn(self, name: str, work: Coroutine[None, None, None]) -> None:
        if name in self._tasks:
            work.close()
            return
        task = self._tasks[name] = asyncio.create_task(work)
        task.add_done_callback(lambda done: self._ended(name, done))

    def _ended(self, name: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(name) is task:
            del self._tasks[name]

    async def _bring(self, here: Here, canary: CanaryHere) -> None:
        try:
            canary.version = await self._load(version_name(here.alias.adapter, canary.number))
        except GraftError as error:
            self.failed(here, canary, error)
            return
        if canary.state is CanaryState.LOADING:
            self.loaded(here, canary)
        self._swaps.held_changed()

    async def _bring_shadow(self, here: Here) -> None:
        shadow = here.rollout.shadow
        if shadow is None:
            return
        try:
            version = await self._load(version_name(here.alias.adapter, shadow.version))
        except GraftError as error:
            get_logger().warning("shadow not loaded", alias=here.name, error=str(error))
            return
        if here.rollout.shadow is not None and here.rollout.shadow.version == version.number:
            here.shadow = ShadowTally(version)
            self._swaps.held_changed()

    async def _load(self, name: str) -> AdapterVersion:
        delay_s = _FIRST_RETRY_S
        while True:
            try:
                if self._room() < 2:
                    raise _no_room(name)
                version = await self._swaps.describe(name)
                self._residency.release(await self._residency.acquire(version))
                return version
            except GraftError as error:
                if not self.is_temporary(error):
                    raise
                get_logger().info("canary not loaded yet", version=name, error=str(error))
            except Exception as error:
                get_logger().error("canary not loaded", version=name, exc_info=error)
                raise GraftError(
                    Reason.INTERNAL,
                    f"{name} could not be loaded: {error!r}",
                    next_step="Read the service's log.",
                ) from error
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, _LAST_RETRY_S)


def _no_room(name: str) -> GraftError:
    return GraftError(
        Reason.NOT_SUPPORTED,
        f"{name} needs a place beside the version that it is compared with, and this engine holds "
        "one adapter",
        next_step="Set GRAFT_INFERENCE_MAX_ADAPTERS to 2 or more.",
    )
