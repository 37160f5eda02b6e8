"""The changes of a running service's base, one at a time: begun, told of, cancelled. How one is done: change.py."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from graft.errors import GraftError, Reason

from services.common.logs import get_logger
from services.inference.bases.change import Change, forbidden
from services.inference.bases.house import House
from services.inference.bases.switch import Stage, Switch, Wanted


class Switcher:
    """The changes of one service.

    Args:
        house: what serves.
        change: does it.
        allowed: what may be switched to; see SwitchOptions.
        count: told of each that is over: by what strategy, and how it ended.
    """

    def __init__(
        self,
        house: House,
        change: Change,
        allowed: str,
        count: Callable[[str, str], None] = lambda _strategy, _outcome: None,
    ) -> None:
        self._house, self._change, self._allowed = house, change, allowed
        self._tell_end = count
        self._last: Switch | None = None
        self._count = 0

    @property
    def last(self) -> Switch | None:
        """The one under way, or the last that was."""
        return self._last

    def begin(self, wanted: Wanted) -> Switch:
        """Starts a switch; asked for the same one again while it is under way, that is answered.

        Raises:
            GraftError: IN_USE while another is under way, UNAVAILABLE before the start is over,
                PERMISSION_DENIED.
        """
        if self._last is not None and not self._last.over:
            if self._last.wanted == wanted:
                return self._last
            raise _busy(self._last)
        if self._allowed == "off":
            raise forbidden("This service is not to change its base")
        current = self._house.current
        if (
            current is None
            or current.base is None
            or not self._house.is_open
            or self._change.stopping
        ):
            raise GraftError(
                Reason.UNAVAILABLE,
                "The service starts or ends, and changes no base meanwhile",
                next_step="Try again when it is ready.",
                retry_after_s=5,
            )
        self._count += 1
        switch = self._last = Switch(self._count, wanted, current.base.reference)
        switch.task = asyncio.create_task(self._run(switch))
        return switch

    async def cancel(self, number: int = 0) -> Switch:
        """Ends the switch under way; returns when the old base serves again.

        Args:
            number: only this one; 0 for any.

        Raises:
            GraftError: INVALID_REQUEST where none is under way, IN_USE where the new base serves already.
        """
        switch = self._last
        if switch is None or switch.over or number not in (0, switch.told.number):
            raise GraftError(
                Reason.INVALID_REQUEST,
                "No such switch of the base is under way",
                next_step="`graft bases served` says how the last one went.",
            )
        if not switch.can_be_cancelled:
            raise GraftError(
                Reason.IN_USE,
                f"Switch {switch.told.number} is past the point where it can be cancelled: "
                f"it is {switch.told.stage.name.lower()}",
                next_step="Wait for its end; then switch back.",
            )
        assert switch.task is not None
        switch.task.cancel()
        await asyncio.wait([switch.task])
        return switch

    async def stop(self) -> None:
        """The service ends: a switch ends, too, and brings nothing back. A retiring engine keeps its requests."""
        self._change.stopping = True
        switch = self._last
        if switch is None or switch.task is None or switch.told.stage is Stage.RETIRING:
            return
        switch.task.cancel()
        await asyncio.wait([switch.task])

    async def close(self) -> None:
        """Returns when nothing is under way; no call may be in flight."""
        await self.stop()
        if self._last is not None and self._last.task is not None:
            await asyncio.wait([self._last.task])

    async def _run(self, switch: Switch) -> None:
        try:
            await self._change.make(switch)
        except asyncio.CancelledError:
            switch.tell(Stage.CANCELLED, "Cancelled; the base is what it was before")
        except GraftError as error:
            switch.tell(Stage.FAILED, error.message, error=error)
        except Exception as error:
            get_logger().error("the base is not switched", exc_info=error)
            inside = GraftError(
                Reason.INTERNAL,
                f"Switching failed inside the service ({error!r})",
                next_step="Its log has the traceback.",
            )
            switch.tell(Stage.FAILED, inside.message, error=inside)
        told = switch.told
        self._tell_end(told.strategy.name.lower(), told.stage.name.lower())
        get_logger().info(
            "base switch", stage=told.stage.name, base=told.to_base, message=told.message
        )


def _busy(switch: Switch) -> GraftError:
    told = switch.told
    return GraftError(
        Reason.IN_USE,
        f"The base is being switched to {told.to_base} already ({told.stage.name.lower()})",
        next_step="Wait for its end, or cancel it with `graft bases cancel`.",
        number=str(told.number),
    )
