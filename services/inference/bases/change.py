"""Does one change of the base: the new engine beside the old one where memory allows, else in its place.

Everything is checked before anything is touched. Whatever fails, one base serves at the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from pathlib import Path

from graft.errors import GraftError, Reason

from services.common.logs import get_logger
from services.inference.bases.domain import BaseVersion
from services.inference.bases.house import House
from services.inference.bases.memory import Room
from services.inference.bases.place import Check, Measure, Place, Places
from services.inference.bases.state import SwitchedTo
from services.inference.bases.switch import Stage, Strategy, Switch
from services.inference.serving import Serving

_GIB = 1024**3


@dataclass(frozen=True, slots=True)
class SwitchOptions:
    """See InferenceSettings.

    Attributes:
        drain_timeout_s: for requests on the old base.
        start_timeout_s: for the new one's start.
        restore_delay_s: before the second try to bring the old base back; then doubles.
        restore_max_s: but no longer than this.
        restore_limit: tries after which liveness says that there is no hope.
        allowed: what may be switched to: "off" for nothing, "registry" or "anywhere".
    """

    drain_timeout_s: float = 600.0
    start_timeout_s: float = 1800.0
    restore_delay_s: float = 1.0
    restore_max_s: float = 60.0
    restore_limit: int = 5
    allowed: str = "anywhere"


class Change:
    """How the base of one service is changed.

    Args:
        house: what serves.
        places: finds and checks bases.
        state: is told what a restart shall serve.
        check: whether this machine's engine serves a base.
        measure: memory that a base's engine needs beside the one that runs.

    Attributes:
        stopping: the service ends, so nothing is brought back.
    """

    def __init__(
        self,
        house: House,
        places: Places,
        state: SwitchedTo,
        check: Check,
        measure: Measure,
        options: SwitchOptions,
    ) -> None:
        self._house, self._places, self._state = house, places, state
        self._check, self._measure, self._options = check, measure, options
        self.stopping = False

    async def make(self, switch: Switch) -> None:
        """Does it to its end, and tells the switch how it goes.

        Raises:
            GraftError: why the old base serves; PERMISSION_DENIED, OVERLOADED, UNAVAILABLE, and those of Places.
        """
        wanted, old = switch.wanted, self._house.current
        assert old is not None
        found = await self._places.find(wanted.base)
        self._check_allowed(found)
        switch.tell(Stage.FETCHING, "Its files are fetched and verified")
        place = await self._places.prepare(found, wanted.loading)
        try:
            if _is_same(place, old):
                reference = place.source.reference
                switch.tell(Stage.DONE, f"{reference} is served already", to_base=reference)
                return
            strategy = await self._decide(switch, place, old)
            if wanted.validate_only:
                switch.tell(
                    Stage.DONE, f"It can be served ({strategy.name.lower()}); nothing was changed"
                )
            elif strategy is Strategy.BESIDE:
                await self._beside(switch, place, old)
            else:
                await self._replace(switch, place, old)
        finally:
            current = self._house.current
            if current is None or current.place is not place:
                self._places.release(place)

    def _check_allowed(self, found: BaseVersion | Path) -> None:
        if isinstance(found, Path) and self._options.allowed != "anywhere":
            raise forbidden(
                f"This service serves bases of the registry alone, and {found} is a folder"
            )

    async def _decide(self, switch: Switch, place: Place, old: Serving) -> Strategy:
        switch.tell(
            Stage.CHECKING,
            "Its quantization is checked, and the memory",
            to_base=place.source.reference,
        )
        await asyncio.to_thread(self._check, place)
        room = await asyncio.to_thread(self._measure, place)
        asked = switch.wanted.strategy
        strategy = asked
        if asked is Strategy.AUTO:
            strategy = Strategy.BESIDE if room.fits else Strategy.REPLACE
        switch.tell(
            Stage.CHECKING,
            _memory(room),
            strategy=strategy,
            needed_bytes=room.needed_bytes,
            available_bytes=room.available_bytes,
        )
        if asked is Strategy.BESIDE and not room.fits:
            raise _no_room(room, "Switch with strategy replace, which ends the old engine first.")
        if asked is Strategy.AUTO and not room.fits and not await self._fits_alone(room, old):
            raise _no_room(
                room,
                "Lower GRAFT_INFERENCE_CPU_KV_CACHE_GIB or GRAFT_INFERENCE_MAX_ADAPTERS, give it more "
                "memory, or switch with strategy replace if the estimate is wrong.",
            )
        return strategy

    async def _fits_alone(self, room: Room, old: Serving) -> bool:
        """Whether it fits where the old engine has been."""
        if old.place is None:
            return True
        freed = (await asyncio.to_thread(self._measure, old.place)).needed_bytes
        return room.needed_bytes <= room.available_bytes + freed

    async def _beside(self, switch: Switch, place: Place, old: Serving) -> None:
        switch.tell(Stage.STARTING, "The new engine starts beside the old one, which goes on")
        new = self._house.build(place)
        await self._start(new)
        self._house.present(new)
        switch.tell(Stage.RETIRING, "It serves; requests on the old engine end there")
        await _whole(self._retire(old, new))
        switch.tell(Stage.DONE, f"{place.source.reference} is served")

    async def _replace(self, switch: Switch, place: Place, old: Serving) -> None:
        switch.tell(Stage.DRAINING, "Requests on the old engine end; new ones wait")
        try:
            await self._house.hold()
            await self._drained(old)
        except BaseException:
            # It has not been touched.
            await _whole(self._house.release())
            raise
        try:
            switch.tell(Stage.STARTING, "The old engine has ended; the new one starts")
            await _whole(old.end())
            new = self._house.build(place)
            await self._start(new)
        except BaseException as error:
            if self.stopping:
                self._house.abandon()
            else:
                switch.tell(Stage.RESTORING, f"The old base is started anew: {_said(error)}")
                await _whole(self._restore(old))
            raise
        self._house.present(new)
        await self._house.release()
        self._forget(old)
        switch.tell(Stage.DONE, f"{place.source.reference} is served")

    async def _start(self, new: Serving) -> None:
        """Returns when it can answer as readiness wants it; else nothing of it is left.

        Raises:
            GraftError: of Serving.start and SwitchedTo.save; UNAVAILABLE when it does not come in time.
        """
        try:
            async with asyncio.timeout(self._options.start_timeout_s):
                await new.start()
                await new.settle()
            if not new.gate.is_open:
                raise _not_up("its engine has died")
            assert new.place is not None
            # Before it answers: a restart in this moment serves what is known to start.
            self._state.save(new.place.chosen)
        except TimeoutError:
            await _whole(new.end())
            raise _not_up(f"it was not ready within {self._options.start_timeout_s:g} s") from None
        except BaseException:
            await _whole(new.end())
            raise

    async def _retire(self, old: Serving, new: Serving) -> None:
        await old.leave()
        await self._house.release()
        await self._drained(old)
        try:
            await old.end()
        except Exception as error:
            # Nobody is answered by it any more, and the switch is done.
            get_logger().error("the old base did not end as it should", exc_info=error)
        self._forget(old)
        # The old one's end was shown as if it were this one's.
        new.show()

    async def _drained(self, old: Serving) -> None:
        """Returns when no request is on it, or they have had their time: then they end with their engine."""
        assert old.assembly is not None
        succession = old.assembly.answers.succession
        try:
            async with asyncio.timeout(self._options.drain_timeout_s):
                await succession.empty()
        except TimeoutError:
            get_logger().warning("requests end with the old base", in_flight=succession.in_flight)

    async def _restore(self, old: Serving) -> None:
        """Brings the old base back, however many tries that takes. It was ready before: nothing is waited for."""
        assert old.place is not None
        # Known: the registry need not be asked again.
        place = replace(old.place, base=old.base)
        delay_s, tries = self._options.restore_delay_s, 0
        while True:
            serving = self._house.build(place)
            try:
                await serving.start()
                break
            except Exception as error:
                await serving.end()
                tries += 1
                get_logger().error("the old base does not start", tries=tries, exc_info=error)
                if tries >= self._options.restore_limit:
                    await self._house.no_hope()
            if self.stopping:
                self._house.abandon()
                return
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, self._options.restore_max_s)
        self._house.present(serving)
        await self._house.release()
        await self._house.hope()

    def _forget(self, old: Serving) -> None:
        if old.place is not None:
            self._places.release(old.place)


async def _whole(work: Awaitable[None]) -> None:
    """Does it to its end, whoever cancels meanwhile; the cancellation comes after it."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled():
                raise
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled


def _is_same(place: Place, old: Serving) -> bool:
    if old.place is None:
        return False
    was, now = old.place.source, place.source
    return (was.reference, was.loading) == (now.reference, now.loading)


def _memory(room: Room) -> str:
    return (
        f"Its engine takes about {room.needed_bytes / _GIB:.1f} GiB, and "
        f"{room.available_bytes / _GIB:.1f} GiB are free"
    )


def _said(error: BaseException) -> str:
    if isinstance(error, GraftError):
        return error.message
    return "cancelled" if isinstance(error, asyncio.CancelledError) else repr(error)


def _no_room(room: Room, next_step: str) -> GraftError:
    return GraftError(
        Reason.OVERLOADED,
        f"The memory does not suffice: {_memory(room)[0].lower()}{_memory(room)[1:]}",
        next_step=next_step,
        needed_bytes=str(room.needed_bytes),
        available_bytes=str(room.available_bytes),
    )


def _not_up(why: str) -> GraftError:
    return GraftError(
        Reason.UNAVAILABLE,
        f"The new base cannot answer: {why}",
        next_step="The service's log says what it waited for; check the base and what readiness requires.",
    )


def forbidden(why: str) -> GraftError:
    """PERMISSION_DENIED: whoever runs the service has said so."""
    return GraftError(
        Reason.PERMISSION_DENIED,
        why,
        next_step="Whoever runs it can set GRAFT_INFERENCE_BASE_SWITCH, or GRAFT_INFERENCE_BASE itself.",
    )
