"""What an alias says of where requests go, and how a rollout changes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from graft.errors import GraftError, Reason
from graft.rollout_policy import Rollout

from services.registry.catalogue.base import AliasMove
from services.registry.domain import Alias


@dataclass(frozen=True, slots=True)
class Split:
    """The version, its canaries as (number, percent), and what happens to them."""

    version: int
    canaries: tuple[tuple[int, float], ...] = ()
    rollout: Rollout | None = None

    @property
    def numbers(self) -> list[int]:
        """The version and the canaries."""
        return [self.version, *(number for number, _ in self.canaries)]

    @property
    def shadows(self) -> list[int]:
        """The version that answers copies, if one does."""
        shadow = None if self.rollout is None else self.rollout.shadow
        return [] if shadow is None else [shadow.version]


def split_of(alias: Alias) -> Split:
    """An alias' own."""
    canaries = tuple((one.version, one.weight_percent) for one in alias.canaries)
    return Split(alias.version, canaries, alias.rollout)


def rollout_of(move: AliasMove, now: Alias | None) -> Rollout | None:
    """What holds after a move: what it says, or of what there is all that still makes sense."""
    if move.rollout is not None:
        return move.rollout if move.rollout != Rollout() else None
    kept = None if now is None else now.rollout
    if kept is None:
        return None
    numbers = [move.version, *(number for number, _ in move.canaries)]
    if len(move.canaries) != 1:
        kept = replace(kept, steps_percent=(), paused=False)
    if kept.shadow is not None and kept.shadow.version in numbers:
        kept = replace(kept, shadow=None)
    return kept if kept != Rollout() else None


def taken_out(now: Alias, canaries: Sequence[int]) -> Split:
    """Without these canaries; limits stay for the next one. Raises NO_ROLLOUT."""
    named = {one.version for one in now.canaries}
    missing = [number for number in canaries if number not in named]
    if missing:
        raise _none(now, f"has no canary {missing[0]}")
    left = tuple(
        (one.version, one.weight_percent) for one in now.canaries if one.version not in canaries
    )
    return Split(now.version, left, _ended(now.rollout))


def advanced(now: Alias, time: datetime) -> Split:
    """One step on; the last may make the canary the version. Raises NO_ROLLOUT."""
    rollout = now.rollout
    if rollout is None or rollout.limits is None or len(now.canaries) != 1:
        raise _none(now, "has no canary that goes by steps")
    if rollout.paused:
        raise _none(now, "holds its rollout where it is")
    since = timedelta(seconds=rollout.limits.window_s)
    if time - now.update_time < since:
        raise _none(now, f"was moved less than its window of {rollout.limits.window_s:g} s ago")
    (canary,) = now.canaries
    percent = rollout.next_percent(canary.weight_percent)
    if percent is None:
        raise _none(now, f"has no step after {canary.weight_percent:g} %")
    if percent >= 100:
        return Split(canary.version, (), _ended(rollout))
    return Split(now.version, ((canary.version, percent),), rollout)


def _ended(rollout: Rollout | None) -> Rollout | None:
    if rollout is None or rollout.limits is None:
        return None
    return Rollout(rollout.limits)


def _none(now: Alias, what: str) -> GraftError:
    return GraftError(
        Reason.NO_ROLLOUT,
        f"{now.name} {what}",
        next_step="Read it with GetAlias (`graft rollout status`), or begin one with "
        "`graft rollout start`.",
        resource=now.name,
    )
