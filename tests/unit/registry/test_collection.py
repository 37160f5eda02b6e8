"""When a lease has ended, by the steady clock of one process."""

from __future__ import annotations

import pytest

from services.registry.catalogue.leases import LeaseSeen
from services.registry.collection.clock import LeaseClock
from tests.support.collecting import Clocks

ENDS = LeaseSeen("a", renewals=0, ttl_s=60.0)


@pytest.fixture
def clocks() -> Clocks:
    """At zero."""
    return Clocks()


@pytest.fixture
def clock(clocks: Clocks) -> LeaseClock:
    """Time between two looks counts up to 30 seconds."""
    return LeaseClock(clocks.monotonic, longest_gap_s=30.0)


def looks(clock: LeaseClock, clocks: Clocks, seen: LeaseSeen, steps: list[float]) -> list[bool]:
    """Whether it had ended at each look, so many seconds after the one before."""
    found = []
    for step_s in steps:
        clocks.steady_s += step_s
        found.append(bool(clock.look([seen])))
    return found


def test_a_lease_ends_when_it_was_watched_for_its_time(clock: LeaseClock, clocks: Clocks) -> None:
    assert looks(clock, clocks, ENDS, [0, 29, 29, 1.9]) == [False] * 4
    assert looks(clock, clocks, ENDS, [0.1]) == [True]


def test_the_first_look_is_where_its_time_begins(clock: LeaseClock, clocks: Clocks) -> None:
    assert looks(clock, clocks, ENDS, [30, 30, 29]) == [False] * 3
    assert looks(clock, clocks, ENDS, [1]) == [True]


def test_a_renewal_begins_its_time_anew(clock: LeaseClock, clocks: Clocks) -> None:
    looks(clock, clocks, ENDS, [0, 30, 29])
    renewed = LeaseSeen("a", renewals=1, ttl_s=60.0)
    assert looks(clock, clocks, renewed, [1, 30, 29]) == [False] * 3
    assert looks(clock, clocks, renewed, [1]) == [True]


def test_a_gap_in_which_nobody_looked_does_not_count(clock: LeaseClock, clocks: Clocks) -> None:
    assert looks(clock, clocks, ENDS, [0, 3600, 30, 29, 1]) == [False, False, False, False, True]


def test_one_that_is_gone_is_forgotten(clock: LeaseClock, clocks: Clocks) -> None:
    looks(clock, clocks, ENDS, [0, 30, 29])
    clocks.steady_s += 1
    clock.look([])
    assert looks(clock, clocks, ENDS, [1]) == [False]
