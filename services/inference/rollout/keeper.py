"""Judges canaries by what is seen of them here, takes out at once what passes a limit, and tells the registry.

A canary that is out gets nothing more from this endpoint, whether the registry hears of it or not; it is told
for as long as that takes. Other endpoints follow by its event.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping

from graft.errors import GraftError, Reason
from graft.rollout_policy import RolloutReport

from services.common.logs import get_logger
from services.inference.registry.base import Registry
from services.inference.rollout.judge import Passed, judge
from services.inference.rollout.log import RolloutLog
from services.inference.rollout.metrics import Step
from services.inference.rollout.state import CanaryHere, CanaryState, Here
from services.inference.swaps import RouteKey

_TICK_S = 0.25
_FIRST_RETRY_S = 0.1
_LAST_RETRY_S = 5.0


class Keeper:
    """Looks at all aliases with canaries, four times a second.

    Args:
        here: the aliases; their owner changes them.
        clock: seconds, monotonic; that of the observations.
    """

    def __init__(
        self,
        registry: Registry,
        here: Mapping[RouteKey, Here],
        log: RolloutLog,
        clock: Callable[[], float],
    ) -> None:
        self._registry, self._here, self._log, self._clock = registry, here, log, clock
        self._tasks: dict[tuple[RouteKey, str], asyncio.Task[None]] = {}
        self._timer: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Looks from now on, for as long as there is an alias to look at."""
        if self._timer is None:
            self._timer = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Ends what is under way."""
        tasks = [*self._tasks.values(), *((self._timer,) if self._timer else ())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self) -> None:
        try:
            while self._here:
                await asyncio.sleep(_TICK_S)
                for key, here in tuple(self._here.items()):
                    try:
                        self.look(key, here)
                    except Exception as error:
                        # One alias must not blind the service to the others.
                        get_logger().error("rollout not judged", alias=here.name, exc_info=error)
        finally:
            self._timer = None

    def look(self, key: RouteKey, here: Here) -> None:
        """Judges an alias' canaries as they are now."""
        limits, now_s = here.limits, self._clock()
        if limits is None:
            return
        for canary in tuple(here.canaries.values()):
            if canary.state is not CanaryState.SERVING:
                continue
            passed = judge(
                limits, here.window(canary.number), here.window(here.alias.number), now_s
            )
            if passed is not None:
                self._take_out(here, canary, _report(canary.number, passed, limits.window_s))
            elif now_s - here.since_s >= limits.window_s:
                self._advance(key, here, canary, now_s)

    def _take_out(self, here: Here, canary: CanaryHere, report: RolloutReport) -> None:
        canary.state, canary.why = CanaryState.TAKEN_OUT, report.detail
        self._log.tell(Step.TAKEN_OUT, here, canary.number, why=report.detail)
        self._log.show()
        self._take_back(here, canary, report)

    def _take_back(self, here: Here, canary: CanaryHere, report: RolloutReport) -> None:
        key = here.alias.adapter, here.alias.alias
        self._spawn(key, f"back {canary.number}", self._tell_registry(key, canary, report))

    def loaded(self, here: Here, canary: CanaryHere) -> None:
        """A canary gets its part from now on."""
        # Only now can anybody see how it does.
        canary.state, here.since_s = CanaryState.SERVING, self._clock()
        self._log.tell(Step.LOADED, here, canary.number, percent=canary.percent)
        self._log.show()

    def unloadable(self, here: Here, canary: CanaryHere, error: GraftError) -> None:
        """A canary gets nothing: it cannot be loaded. With limits, it is taken back."""
        if canary.state in (CanaryState.FAILED, CanaryState.TAKEN_OUT):
            return
        canary.state, canary.why = CanaryState.FAILED, str(error)
        self._log.tell(Step.NOT_LOADED, here, canary.number, why=str(error))
        self._log.show()
        if here.limits is not None:
            detail = f"it could not be loaded: {error.message}"
            report = RolloutReport(
                canary.number, "load", 1.0, 0.0, None, 0, here.limits.window_s, detail
            )
            self._take_back(here, canary, report)

    async def _tell_registry(
        self, key: RouteKey, canary: CanaryHere, report: RolloutReport
    ) -> None:
        """Until the alias has that canary no more, whoever took it out."""
        delay_s, number = _FIRST_RETRY_S, canary.number
        while True:
            here = self._here.get(key)
            # The same version, begun once more, is another canary.
            if here is None or here.canaries.get(number) is not canary:
                return
            try:
                await self._registry.take_back(here.name, here.alias.etag, report)
                self._log.tell(Step.TAKEN_BACK, here, number, why=report.detail)
                return
            except GraftError as error:
                if error.reason is Reason.NO_ROLLOUT:
                    return
                self._log.tell(Step.RETRIED, here, number, error=str(error))
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, _LAST_RETRY_S)

    def _advance(self, key: RouteKey, here: Here, canary: CanaryHere, now_s: float) -> None:
        rollout, limits = here.rollout, here.limits
        if limits is None or rollout.paused or len(here.canaries) != 1:
            return
        percent = rollout.next_percent(canary.percent)
        figures = here.window(canary.number).figures(now_s, limits.window_s)
        if percent is None or figures.answered < limits.min_requests:
            return
        reason = (
            f"{canary.percent:g} % to {percent:g} %: {figures.answered} answers in "
            f"{limits.window_s:g} s within the limits"
        )
        self._spawn(key, "advance", self._ask_step(here, canary.number, reason))

    async def _ask_step(self, here: Here, number: int, reason: str) -> None:
        try:
            await self._registry.advance(here.name, here.alias.etag, reason)
        except GraftError as error:
            # Another endpoint was first, or the registry is away: the next look decides anew.
            get_logger().info("step not taken", alias=here.name, error=str(error))
            await asyncio.sleep(1.0)
            return
        self._log.tell(Step.ADVANCED, here, number, reason=reason)

    def _spawn(self, key: RouteKey, what: str, work: Coroutine[None, None, None]) -> None:
        name = key, what
        if name in self._tasks:
            work.close()
            return
        task = self._tasks[name] = asyncio.create_task(work)
        task.add_done_callback(lambda _: self._tasks.pop(name, None))


_WORDS = {
    "max_error_rate": "of its requests failed",
    "max_refusal_rate": "of its requests were refused",
    "max_babble_rate": "of its answers had no end of their own",
    "max_first_token_s": "s to the first token",
    "max_first_token_ratio": "s to the first token",
    "max_token_s": "s between tokens",
    "max_token_ratio": "s between tokens",
    "max_length_ratio": "tokens in an answer",
}


def _report(number: int, passed: Passed, window_s: float) -> RolloutReport:
    share = passed.limit in ("max_error_rate", "max_refusal_rate", "max_babble_rate")

    def said(value: float) -> str:
        return f"{100 * value:.3g} %" if share else f"{value:.3g}"

    usual = "" if passed.stable is None else f", the stable version has {said(passed.stable)}"
    detail = (
        f"{said(passed.observed)} {_WORDS[passed.limit]} in {window_s:g} s over {passed.requests} "
        f"requests; allowed are {said(passed.allowed)}{usual}"
    )
    return RolloutReport(
        version=number,
        limit=passed.limit,
        observed=passed.observed,
        allowed=passed.allowed,
        stable=passed.stable,
        requests=passed.requests,
        window_s=window_s,
        detail=detail,
    )
