"""Whether a version keeps within its limits: what was seen of it in the last seconds, beside the stable one.

Pure: times come in from outside.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from graft.rollout_policy import RolloutLimits

from services.inference.rollout.observe import End, Observation

# More than that is not looked at, however long the window is: the newest count.
_MOST = 2048
_QUANTILE = 0.9
# So few of the stable version's are enough to compare with.
_ENOUGH_STABLE = 10


@dataclass(frozen=True, slots=True)
class Sample:
    """A number with how many requests it is from; None where there are none."""

    value: float | None = None
    count: int = 0


@dataclass(frozen=True, slots=True)
class Figures:
    """How a version fared within the window."""

    requests: int = 0
    answered: int = 0
    errors: Sample = Sample()
    refusals: Sample = Sample()
    babble: Sample = Sample()
    first_token_s: Sample = Sample()
    token_s: Sample = Sample()
    mean_tokens: Sample = Sample()


@dataclass(frozen=True, slots=True)
class Passed:
    """A limit that was passed; stable is what the stable version had, where it counts."""

    limit: str
    observed: float
    allowed: float
    stable: float | None
    requests: int


class Window:
    """The requests of one version: those under way, and those that ended within the last seconds."""

    def __init__(self) -> None:
        self._running: set[Observation] = set()
        self._ended: deque[Observation] = deque(maxlen=_MOST)

    def enter(self, seen: Observation) -> None:
        """It is under way."""
        self._running.add(seen)

    def leave(self, seen: Observation, end: End) -> None:
        """It ended. Only the first time counts."""
        if seen in self._running:
            self._running.discard(seen)
            seen.finish(end)
            self._ended.append(seen)

    def clear(self) -> None:
        """What has ended counts no more."""
        self._ended.clear()

    def figures(self, now_s: float, window_s: float, longer_than: float | None = None) -> Figures:
        """What the last seconds show.

        Args:
            now_s: on the observations' clock.
            window_s: how far back.
            longer_than: answers under way that have more tokens than this count as they are.
        """
        while self._ended and self._ended[0].ended_s <= now_s - window_s:
            self._ended.popleft()
        ended = [seen for seen in self._ended if seen.end is not End.CANCELLED]
        answered = [seen for seen in ended if seen.end is End.ANSWERED]
        circling = [seen for seen in self._running if seen.repeats]
        everyone = (*self._ended, *self._running)
        lengths = [seen.tokens for seen in answered]
        if longer_than is not None:
            lengths += [seen.tokens for seen in self._running if seen.tokens > longer_than]
        # One that was refused or failed at once tells nothing about times.
        timed = [seen for seen in everyone if seen.end in (None, End.ANSWERED, End.CANCELLED)]
        return Figures(
            requests=len(everyone),
            answered=len(answered),
            errors=_share(ended, lambda seen: seen.end is End.FAILED),
            refusals=_share(ended, lambda seen: seen.end is End.REFUSED or seen.refused),
            babble=_share([*answered, *circling], lambda seen: seen.babbles),
            first_token_s=_high(seen.first_token_s(now_s) for seen in timed),
            token_s=_high(seen.token_s(now_s) for seen in timed),
            mean_tokens=Sample(sum(lengths) / len(lengths) if lengths else None, len(lengths)),
        )


def judge(limits: RolloutLimits, canary: Window, stable: Window, now_s: float) -> Passed | None:
    """The first limit that a canary passes now; None while it keeps within all."""
    usual = stable.figures(now_s, limits.window_s)
    mean = usual.mean_tokens.value
    longer = (
        None if limits.max_length_ratio is None or mean is None else limits.max_length_ratio * mean
    )
    return passed(limits, canary.figures(now_s, limits.window_s, longer), usual)


def passed(limits: RolloutLimits, canary: Figures, stable: Figures) -> Passed | None:
    """As judge(), on figures."""
    found = (
        *_rates(limits, canary, stable),
        *_times(limits, canary),
        *_ratios(limits, canary, stable),
    )
    return next((one for one in found if one.observed > one.allowed), None)


def _rates(limits: RolloutLimits, canary: Figures, stable: Figures) -> Iterator[Passed]:
    for limit, seen, usual in (
        ("max_error_rate", canary.errors, stable.errors),
        ("max_refusal_rate", canary.refusals, stable.refusals),
        ("max_babble_rate", canary.babble, stable.babble),
    ):
        most, observed, compared = _most(limits, limit, seen), seen.value, _enough(limits, usual)
        if most is not None and observed is not None:
            # What goes wrong with both is not the canary's fault.
            allowed = min(1.0, most + (compared or 0.0))
            yield Passed(limit, observed, allowed, compared, seen.count)


def _times(limits: RolloutLimits, canary: Figures) -> Iterator[Passed]:
    for limit, seen in (
        ("max_first_token_s", canary.first_token_s),
        ("max_token_s", canary.token_s),
    ):
        most, observed = _most(limits, limit, seen), seen.value
        if most is not None and observed is not None:
            yield Passed(limit, observed, most, None, seen.count)


def _ratios(limits: RolloutLimits, canary: Figures, stable: Figures) -> Iterator[Passed]:
    for limit, seen, usual in (
        ("max_first_token_ratio", canary.first_token_s, stable.first_token_s),
        ("max_token_ratio", canary.token_s, stable.token_s),
        ("max_length_ratio", canary.mean_tokens, stable.mean_tokens),
    ):
        most, observed, compared = _most(limits, limit, seen), seen.value, _enough(limits, usual)
        if most is not None and observed is not None and compared is not None:
            yield Passed(limit, observed, most * compared, compared, seen.count)


def _most(limits: RolloutLimits, limit: str, seen: Sample) -> float | None:
    """The limit, where there is one and enough was seen to judge by it."""
    most: float | None = getattr(limits, limit)
    return most if seen.count >= limits.min_requests else None


def _enough(limits: RolloutLimits, usual: Sample) -> float | None:
    return usual.value if usual.count >= min(limits.min_requests, _ENOUGH_STABLE) else None


def _share(seen: Sequence[Observation], holds: Callable[[Observation], bool]) -> Sample:
    return Sample(sum(map(holds, seen)) / len(seen) if seen else None, len(seen))


def _high(values: Iterable[float | None]) -> Sample:
    found = sorted(value for value in values if value is not None)
    if not found:
        return Sample()
    return Sample(found[min(len(found) - 1, int(_QUANTILE * len(found)))], len(found))
