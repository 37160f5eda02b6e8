"""Which adapter versions the engine holds: loads each once, counts the requests on it, unloads it at zero.

A load is an instance: a version that is being drained and asked for again is loaded anew under a fresh
number, so that a draining instance never takes anything new and nothing is ever replaced in place.
Where a name points is none of its business.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass

from graft.errors import GraftError, Reason

from services.common.logs import get_logger
from services.inference.cache import AdapterCache, read_config, read_template
from services.inference.domain import AdapterVersion, Base
from services.inference.engines.base import Engine, EngineAdapter
from services.inference.failures import Failure, Failures, anew
from services.inference.fitness import check_config, check_version
from services.inference.metrics import InferenceMetrics
from services.inference.residents import Resident, Slots, State
from services.inference.trust import Trust


@dataclass(frozen=True, slots=True)
class ResidencyOptions:
    """See InferenceSettings."""

    max_waiting: int = 1024
    slot_timeout_s: float = 30.0
    retry_failed_after_s: float = 10.0


class Residency:
    """The adapters of one engine."""

    def __init__(
        self,
        engine: Engine,
        cache: AdapterCache,
        base: Base,
        metrics: InferenceMetrics,
        options: ResidencyOptions,
        trust: Trust | None = None,
    ) -> None:
        self._engine, self._cache, self._base = engine, cache, base
        self._trust = trust
        self._metrics, self._options = metrics, options
        self._current: dict[str, Resident] = {}
        self._draining: set[Resident] = set()
        self._failures, self._slots = Failures(options.retry_failed_after_s), Slots()
        self._numbers, self._ticks = itertools.count(1), itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting = 0
        self.preferred: frozenset[str] = frozenset()
        # Called when instances() may be others.
        self.on_change: Callable[[], None] = lambda: None

    def holds(self, version: AdapterVersion) -> bool:
        """Whether a request for it would begin at once."""
        resident = self._current.get(version.name)
        return resident is not None and resident.state is State.READY

    def instances(self) -> Iterator[Resident]:
        """All that are loading, loaded or draining."""
        yield from self._current.values()
        yield from self._draining

    def failures(self) -> Iterator[Failure]:
        """Versions that could not be loaded."""
        return iter(self._failures)

    async def acquire(self, version: AdapterVersion) -> Resident:
        """Counts a request onto a version, which is loaded for it if need be; release() it in any case.

        Raises:
            GraftError: WRONG_BASE, RANK_TOO_LARGE, ADAPTER_UNUSABLE and others of the load; OVERLOADED.
        """
        resident = self._current.get(version.name)
        if resident is None:
            self._failures.refuse(version)
            resident = self._begin(version)
        resident.used = next(self._ticks)
        resident.in_flight += 1
        if resident.state is State.READY:
            return resident
        try:
            await self._wait(resident)
        except BaseException:
            self.release(resident)
            raise
        return resident

    async def _wait(self, resident: Resident) -> None:
        if self._waiting >= self._options.max_waiting:
            raise _overloaded(f"{self._waiting} requests wait for an adapter to be loaded already")
        self._waiting += 1
        try:
            # Shielded: others wait for the same load. Raised anew: each caller gets its own error.
            await asyncio.shield(resident.ready)
        except GraftError as error:
            raise anew(error) from None
        finally:
            self._waiting -= 1

    def release(self, resident: Resident) -> None:
        """A request on it has ended."""
        resident.in_flight -= 1
        assert resident.in_flight >= 0
        if resident.in_flight == 0:
            if resident.state is State.DRAINING:
                self._spawn(self._unload(resident))
            elif self._slots.waiting:
                self._make_room()

    def retire(self, version: AdapterVersion) -> None:
        """Takes nothing new onto a version's instance and unloads it when its last request ends."""
        resident = self._current.get(version.name)
        if resident is not None and resident.state is State.READY:
            self._drain(resident)

    def reconsider(self, version: AdapterVersion) -> None:
        """It may be tried again at once: something was said of it that may change the answer."""
        self._failures.forget(version)

    def _begin(self, version: AdapterVersion) -> Resident:
        ready = asyncio.get_running_loop().create_future()
        # Nobody may be left to hear of a failure.
        ready.add_done_callback(lambda done: done.cancelled() or done.exception())
        resident = Resident(version, next(self._numbers), ready)
        self._current[version.name] = resident
        self._failures.forget(version)
        self._spawn(self._load(resident))
        self._show()
        return resident

    async def _load(self, resident: Resident) -> None:
        version = resident.version
        try:
            limits = self._engine.limits
            check_version(version, self._base, limits)
            if self._trust is not None:
                await self._trust.check(version)
            folder = await self._cache.take(version)
            check_config(version, read_config(version, folder), limits)
            await self._engine.inspect(version.name, folder)
            resident.template = await asyncio.to_thread(read_template, version, folder)
            await self._take_slot()
            name = f"{version.adapter_id}@{version.digest}"
            resident.adapter = EngineAdapter(resident.number, name, folder)
            try:
                with self._metrics.stage("load"):
                    await self._engine.load(resident.adapter)
            except BaseException:
                self._free_slot()
                raise
        except GraftError as error:
            self._fail(resident, error)
        except Exception as error:
            get_logger().error("load failed", version=version.name, exc_info=error)
            self._fail(resident, _failed_inside(version, error))
        else:
            resident.state = State.READY
            resident.ready.set_result(None)
            get_logger().info("adapter loaded", version=version.name, digest=version.digest)
            if self._slots.waiting:
                self._make_room()
        self._show()

    def _fail(self, resident: Resident, error: GraftError) -> None:
        version = resident.version
        resident.state = State.FAILED
        del self._current[version.name]
        self._failures.record(version, error)
        get_logger().warning(
            "adapter not loaded", version=version.name, reason=error.reason.value, error=str(error)
        )
        resident.ready.set_exception(error)

    async def _take_slot(self) -> None:
        turn = self._slots.ask()
        self._make_room()
        try:
            async with asyncio.timeout(self._options.slot_timeout_s):
                await turn
        except (TimeoutError, asyncio.CancelledError) as error:
            self._slots.withdraw(turn)
            if turn.done() and not turn.cancelled():
                # It was given in the very moment in which the wait ended.
                self._free_slot()
            if isinstance(error, asyncio.CancelledError):
                raise
            raise _overloaded(
                f"No adapter slot became free within {self._options.slot_timeout_s} s"
            ) from None
        finally:
            self._metrics.slot_waiters.set(self._slots.waiting)

    def _make_room(self) -> None:
        """Gives free slots to those who wait, in order, and drains as many instances as are short."""
        self._slots.give(self._engine.limits.max_adapters)
        for _ in range(self._slots.waiting - len(self._draining)):
            victim = self._victim()
            if victim is None:
                break
            self._drain(victim)
        self._metrics.slot_waiters.set(self._slots.waiting)

    def _victim(self) -> Resident | None:
        """Idle before busy, on demand before preferred; then the one least recently used or loaded.

        A busy one takes nothing new from here on, so that a flood on it cannot keep others out.
        """
        ready = [each for each in self._current.values() if each.state is State.READY]

        def order(each: Resident) -> tuple[bool, bool, int]:
            busy = each.in_flight > 0
            return busy, each.version.name in self.preferred, each.number if busy else each.used

        return min(ready, key=order, default=None)

    def _drain(self, resident: Resident) -> None:
        resident.state = State.DRAINING
        resident.drain_began_s = time.perf_counter()
        del self._current[resident.version.name]
        self._draining.add(resident)
        if resident.in_flight == 0:
            self._spawn(self._unload(resident))
        self._show()

    async def _unload(self, resident: Resident) -> None:
        version = resident.version
        assert resident.adapter is not None
        self._metrics.observe_stage("drain", time.perf_counter() - resident.drain_began_s)
        try:
            with self._metrics.stage("unload"):
                await self._engine.unload(resident.adapter)
            get_logger().info("adapter unloaded", version=version.name)
        except Exception as error:
            # The engine has died, or is about to: it says so itself.
            get_logger().error("adapter not unloaded", version=version.name, exc_info=error)
        self._draining.discard(resident)
        if version.name not in self._current:
            self._metrics.forget(version.adapter_id, str(version.number))
        self._free_slot()
        self._show()

    def _free_slot(self) -> None:
        self._slots.free()
        self._make_room()

    def _show(self) -> None:
        self.on_change()
        counts = dict.fromkeys(State, 0)
        for resident in self.instances():
            counts[resident.state] += 1
        counts[State.FAILED] = len(self._failures)
        for state, count in counts.items():
            self._metrics.residency.labels(state.value).set(count)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Cancels loads that are under way."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _failed_inside(version: AdapterVersion, error: Exception) -> GraftError:
    return GraftError(
        Reason.INTERNAL,
        f"Loading {version.name} failed inside the service ({error!r})",
        next_step="Its log has the traceback; try another version meanwhile.",
    )


def _overloaded(why: str) -> GraftError:
    return GraftError(
        Reason.OVERLOADED,
        why,
        next_step="Try again later, add replicas, or raise GRAFT_INFERENCE_MAX_ADAPTERS.",
    )
