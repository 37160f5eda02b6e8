"""Which adapter versions the engine holds: loads each once, counts the requests on it, unloads it at zero.

A load is an instance: a version that is being drained and asked for again is loaded anew under a fresh
number, so that a draining instance never takes anything new and nothing is ever replaced in place.
Where a name points is none of its business.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from graft.errors import GraftError, Reason

from services.common.logs import get_logger
from services.inference.domain import AdapterVersion
from services.inference.engines.base import Engine, EngineAdapter, Limits
from services.inference.failures import Failure, Failures, anew
from services.inference.gate import Gate
from services.inference.loading import Preparation
from services.inference.metrics import InferenceMetrics, Tier, Why
from services.inference.residents import Resident, Slots, State, Wishes
from services.inference.templates import ChatTemplate

# Remembered to be on disk; whoever is forgotten is looked at again.
_MAX_PREPARED = 4096


@dataclass(frozen=True, slots=True)
class ResidencyOptions:
    """See InferenceSettings."""

    max_waiting: int = 1024
    slot_timeout_s: float = 30.0
    retry_failed_after_s: float = 10.0
    retry_failed_max_s: float = 600.0


class Residency:
    """The adapters of one engine."""

    def __init__(
        self,
        engine: Engine,
        gate: Gate,
        preparation: Preparation,
        metrics: InferenceMetrics,
        options: ResidencyOptions,
    ) -> None:
        self._engine, self._gate, self._preparation = engine, gate, preparation
        self._metrics, self._options = metrics, options
        self._current: dict[str, Resident] = {}
        self._draining: set[Resident] = set()
        self._failures = Failures(options.retry_failed_after_s, options.retry_failed_max_s)
        # By pool (Limits.pool): each engine has slots of its own, and some kinds need none of them.
        self._slots: defaultdict[str, Slots] = defaultdict(Slots)
        self._engine_loads: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._numbers, self._ticks = itertools.count(1), itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting = 0
        self.wishes = Wishes()
        self._preparing: dict[str, asyncio.Task[None]] = {}
        self._prepared: set[str] = set()
        # Called when instances() may be others.
        self.on_change: Callable[[], None] = lambda: None

    def holds(self, version: AdapterVersion) -> bool:
        """Whether a request for it would begin at once."""
        resident = self._current.get(version.name)
        return resident is not None and resident.state is State.READY

    def engine_of(self, version: AdapterVersion | None) -> str:
        """Name of the engine that computes a version, or would; None is the base."""
        if version is None:
            return self._engine.limits.engine
        resident = self._current.get(version.name)
        if resident is not None:
            return resident.engine
        return self._engine.limits.of(version.peft_type).engine

    def instances(self) -> Iterator[Resident]:
        """All that are loading, loaded or draining."""
        yield from self._current.values()
        yield from self._draining

    def current(self) -> tuple[Resident, ...]:
        """All that take requests, now or when they are loaded. From any thread."""
        return tuple(self._current.values())

    def failures(self) -> Iterator[Failure]:
        """Versions that could not be loaded."""
        return (each for each in self._failures if each.version.name not in self._current)

    async def prepare(self, version: AdapterVersion) -> None:
        """Has its files here, checked, so that who takes a slot for it does not hold it while they come.

        Raises:
            GraftError: as acquire.
        """
        name = version.name
        if name in self._current or name in self._prepared:
            return
        self._failures.refuse(version)
        getting = self._preparing.get(name)
        if getting is None:
            getting = self._preparing[name] = asyncio.create_task(self._prepare(version))
            getting.add_done_callback(lambda done: done.cancelled() or done.exception())
        if self._waiting >= self._options.max_waiting:
            raise _overloaded(f"{self._waiting} requests wait for an adapter to be loaded already")
        self._waiting += 1
        try:
            await asyncio.shield(getting)
        except GraftError as error:
            raise anew(error) from None
        finally:
            self._waiting -= 1

    async def _prepare(self, version: AdapterVersion) -> None:
        try:
            prepared = await self._preparation.prepare(version)
            # It stays on disk as long as there is room; acquire() takes hold of it.
            prepared.held.release()
        except GraftError as error:
            self._failures.record(version, error)
            self._show()
            raise
        except Exception as error:
            get_logger().error("adapter not prepared", version=version.name, exc_info=error)
            raise _failed_inside(version, error) from error
        finally:
            del self._preparing[version.name]
        if len(self._prepared) >= _MAX_PREPARED:
            self._prepared.clear()
        self._prepared.add(version.name)

    async def template(self, version: AdapterVersion) -> ChatTemplate | None:
        """What its conversations are rendered with, whether or not it is loaded; None is the base's own.

        Raises:
            GraftError: as prepare.
        """
        resident = self._current.get(version.name)
        if resident is not None and resident.state is State.READY:
            return resident.template
        self._failures.refuse(version)
        prepared = await self._preparation.prepare(version)
        prepared.held.release()
        return prepared.template

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
            elif self._slots[self._pool(resident)].waiting:
                self._make_room(resident.kind)

    def retire(self, version: AdapterVersion) -> None:
        """Takes nothing new onto a version's instance and unloads it when its last request ends."""
        resident = self._current.get(version.name)
        if resident is not None and resident.state is State.READY:
            self._metrics.evicted(version, Why.RETIRED)
            self._drain(resident)

    def lost(self) -> list[AdapterVersion]:
        """The engine died, and with it what it held; returns that, what is wanted most first.

        An engine beside it still has its own.
        """
        died = self._engine.limits.engine
        ready = [
            each
            for each in self._current.values()
            if each.state is State.READY and each.engine == died
        ]
        for resident in ready:
            self._drain(resident)
        return [each.version for each in self.wishes.by_worth(ready)]

    async def warm(self, version: AdapterVersion) -> None:
        """Brings a version in where that takes nobody's slot; what fails is said by its next request."""
        limits = self._engine.limits
        pool, room = limits.pool(version.peft_type), limits.room_for(version.peft_type)
        # What drains frees its slot by itself.
        held = sum(self._pool(each) == pool for each in self._current.values())
        if version.name in self._current or held >= room:
            return
        with suppress(GraftError):
            self.release(await self.acquire(version))

    def reconsider(self, version: AdapterVersion) -> None:
        """It may be tried again at once: something was said of it that may change the answer.

        So may what it is blended into.
        """
        for failure in tuple(self._failures):
            if version.name in (one.name for one in failure.version.registered):
                self._failures.forget(failure.version)

    def _begin(self, version: AdapterVersion) -> Resident:
        ready = asyncio.get_running_loop().create_future()
        # Nobody may be left to hear of a failure.
        ready.add_done_callback(lambda done: done.cancelled() or done.exception())
        kind = version.peft_type
        engine = self._engine.limits.of(kind).engine
        resident = Resident(version, next(self._numbers), ready, kind, engine)
        self._current[version.name] = resident
        self._spawn(self._load(resident))
        self._show()
        return resident

    async def _load(self, resident: Resident) -> None:
        version = resident.version
        try:
            prepared = await self._preparation.prepare(version)
            resident.held, resident.template = prepared.held, prepared.template
            # Of a blend it is known from here on which files it has.
            resident.version, resident.kind = prepared.version, prepared.kind
            resident.engine = self._engine.limits.of(prepared.kind).engine
            await self._take_slot(resident.kind)
            try:
                await self._load_into_engine(resident, prepared.held.folder)
            except BaseException:
                self._free_slot(resident.kind)
                raise
        except GraftError as error:
            self._fail(resident, error)
        except Exception as error:
            get_logger().error("load failed", version=version.name, exc_info=error)
            self._fail(resident, _failed_inside(version, error))
        except BaseException:
            resident.let_go()
            raise
        else:
            self._failures.forget(version)
            self._metrics.brought(version)
            resident.state = State.READY
            resident.ready.set_result(None)
            get_logger().info("adapter loaded", version=version.name, digest=version.digest)
            if self._slots[self._pool(resident)].waiting:
                self._make_room(resident.kind)
        self._show()

    async def _load_into_engine(self, resident: Resident, folder: Path) -> None:
        version = resident.version
        name = f"{version.adapter_id}@{version.digest}"
        resident.adapter = EngineAdapter(resident.number, name, folder)
        while True:
            await self._gate.passed()
            # One after the other, as in the engine itself: when it dies of a load, that one is known.
            async with self._engine_loads[resident.engine]:
                if self._gate.is_open:
                    await self._load_now(version, resident.adapter)
                    return

    async def _load_now(self, version: AdapterVersion, adapter: EngineAdapter) -> None:
        try:
            with self._metrics.stage("load"):
                await self._engine.load(adapter)
        except GraftError as error:
            if error.reason is Reason.ENGINE_DEAD:
                self._failures.record(version, _died_loading(version), suspect=True)
            raise

    def _fail(self, resident: Resident, error: GraftError) -> None:
        version = resident.version
        resident.state = State.FAILED
        resident.let_go()
        del self._current[version.name]
        self._failures.record(version, error)
        get_logger().warning(
            "adapter not loaded", version=version.name, reason=error.reason.value, error=str(error)
        )
        resident.ready.set_exception(error)

    def _pool(self, resident: Resident) -> str:
        return self._engine.limits.pool(resident.kind)

    async def _take_slot(self, kind: str) -> None:
        slots = self._slots[self._engine.limits.pool(kind)]
        turn = slots.ask()
        self._make_room(kind)
        try:
            async with asyncio.timeout(self._options.slot_timeout_s):
                await turn
        except (TimeoutError, asyncio.CancelledError) as error:
            slots.withdraw(turn)
            if turn.done() and not turn.cancelled():
                # It was given in the very moment in which the wait ended.
                self._free_slot(kind)
            if isinstance(error, asyncio.CancelledError):
                raise
            raise _overloaded(
                f"No adapter slot became free within {self._options.slot_timeout_s} s"
            ) from None
        finally:
            self._show_waiters()

    def _make_room(self, kind: str) -> None:
        """Gives free slots to those who wait, in order, and drains as many instances as are short.

        All in the pool of the kind.
        """
        pool = self._engine.limits.pool(kind)
        slots = self._slots[pool]
        slots.give(self._engine.limits.room_for(kind))
        draining = sum(self._pool(each) == pool for each in self._draining)
        for _ in range(slots.waiting - draining):
            victim = self.wishes.victim(
                each for each in self._current.values() if self._pool(each) == pool
            )
            if victim is None:
                break
            self._metrics.evicted(victim.version, Why.ROOM)
            self._drain(victim)
        self._show_waiters()

    def _show_waiters(self) -> None:
        self._metrics.slot_waiters.set(sum(each.waiting for each in self._slots.values()))

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
            resident.let_go()
        except Exception as error:
            if isinstance(error, GraftError) and error.reason is Reason.ENGINE_DEAD:
                resident.let_go()
            else:
                # The engine may still read its folder: it stays in use.
                get_logger().error("adapter not unloaded", version=version.name, exc_info=error)
        self._draining.discard(resident)
        if version.name not in self._current:
            self._metrics.forget(version.adapter_id, version.label)
        self._free_slot(resident.kind)
        self._show()

    def _free_slot(self, kind: str) -> None:
        self._slots[self._engine.limits.pool(kind)].free()
        self._make_room(kind)

    def _show(self) -> None:
        self.on_change()
        counts = dict.fromkeys(State, 0)
        for resident in self.instances():
            counts[resident.state] += 1
        counts[State.FAILED] = len(self._failures)
        for state, count in counts.items():
            self._metrics.residency.labels(state.value).set(count)
        loaded = [each for each in self.instances() if each.state in (State.READY, State.DRAINING)]
        limits = self._engine.limits
        # On its slots are the last used, as in the engine's own order; what needs none is computed with them.
        on_slots = [each for each in loaded if self._pool(each) != limits.engine]
        on_slots += self._computed()
        self._metrics.show_room(limits.room, self.room_taken())
        for tier, residents in ((Tier.CPU, loaded), (Tier.GPU, on_slots)):
            size_bytes = sum(each.version.size_bytes for each in residents)
            self._metrics.show_tier(tier, len(residents), size_bytes)

    @property
    def limits(self) -> Limits:
        """Of its engine."""
        return self._engine.limits

    def room_taken(self) -> int:
        """What the adapters on the engine's slots take of their room (Limits.room)."""
        return sum(self._engine.limits.room_of(each.version.rank) for each in self._computed())

    def _computed(self) -> list[Resident]:
        """The last used, as in the engine's own order, of those that need its slots."""
        limits, states = self._engine.limits, (State.READY, State.DRAINING)
        used = self.wishes.by_use(
            each
            for each in self.instances()
            if each.state in states and self._pool(each) == limits.engine
        )
        return used[: limits.computed(each.version.rank for each in used)]

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def show(self) -> None:
        """Shows in the metrics what is so now."""
        self._show()

    async def end(self) -> None:
        """Its engine was stopped for good: lets go of what that read."""
        self.lost()
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def close(self) -> None:
        """Cancels loads that are under way."""
        under_way = (*self._tasks, *self._preparing.values())
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


def _failed_inside(version: AdapterVersion, error: Exception) -> GraftError:
    return GraftError(
        Reason.INTERNAL,
        f"Loading {version.name} failed inside the service ({error!r})",
        next_step="Its log has the traceback; try another version meanwhile.",
    )


def _died_loading(version: AdapterVersion) -> GraftError:
    return GraftError(
        Reason.ENGINE_DEAD,
        f"The engine died while it loaded {version.name}, which is not tried again for a while",
        next_step="Try another version; if it dies of this one again, commit it anew.",
    )


def _overloaded(why: str) -> GraftError:
    return GraftError(
        Reason.OVERLOADED,
        why,
        next_step="Try again later, add replicas, or raise GRAFT_INFERENCE_MAX_ADAPTERS.",
    )
