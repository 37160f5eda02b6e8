"""A queue for each engine: requests that wait for one of them take no place on another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from services.inference.scheduling.queue import Claim, Turn
from services.inference.scheduling.scheduler import Scheduler


class Schedulers:
    """The schedulers of a service.

    Args:
        first: for the base, and for what no other is for.
        others: by their engine's name, as Claim.engine has it.
    """

    def __init__(self, first: Scheduler, others: Mapping[str, Scheduler]) -> None:
        self._first, self._others = first, others

    async def turn(self, claim: Claim) -> Turn:
        """As Scheduler.turn, of the claim's engine."""
        return await self._others.get(claim.engine, self._first).turn(claim)

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return sum(each.waiting for each in self._all())

    @property
    def in_flight(self) -> int:
        """Requests that the first engine has."""
        return self._first.in_flight

    @property
    def oldest_s(self) -> float:
        """As Scheduler.oldest_s, of all. From any thread."""
        return max(each.oldest_s for each in self._all())

    @property
    def in_flight_tokens(self) -> float:
        """As Scheduler.in_flight_tokens, of all."""
        return sum(each.in_flight_tokens for each in self._all())

    def _all(self) -> Iterator[Scheduler]:
        yield self._first
        yield from self._others.values()
