"""Versions that could not be loaded are refused for longer each time, and forgiven once they load."""

from __future__ import annotations

import pytest
from graft.errors import GraftError, Reason

from services.inference.domain import AdapterVersion
from services.inference.failures import Failures

BAD = GraftError(Reason.ADAPTER_UNUSABLE, "bad tensors", next_step="Commit another.")


class Clock:
    """Time that a test turns."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def failures(clock: Clock) -> Failures:
    return Failures(10.0, 60.0, clock)


VERSION = AdapterVersion("v", "a", 1, "sha256:0", "f", "LORA", 8, ())


def refused_s(failures: Failures, clock: Clock) -> float:
    """For how long it is refused from now on, to the second; the clock is there afterwards."""
    began_s = clock.now_s
    while True:
        try:
            failures.refuse(VERSION)
        except GraftError:
            clock.now_s += 1
        else:
            return clock.now_s - began_s


def test_each_failure_in_a_row_doubles_the_wait_up_to_the_bound(
    failures: Failures, clock: Clock
) -> None:
    waits = []
    for _ in range(5):
        failures.record(VERSION, BAD)
        waits.append(refused_s(failures, clock))
    assert waits == [10, 20, 40, 60, 60]


def test_a_load_that_succeeds_forgives(failures: Failures, clock: Clock) -> None:
    for _ in range(3):
        failures.record(VERSION, BAD)
    failures.forget(VERSION)
    assert refused_s(failures, clock) == 0
    failures.record(VERSION, BAD)
    assert refused_s(failures, clock) == 10


def test_what_is_temporary_is_not_held_against_a_version_unless_it_is_suspect(
    failures: Failures, clock: Clock
) -> None:
    dead = GraftError(Reason.ENGINE_DEAD, "died", next_step="Try again.")
    failures.record(VERSION, dead)
    assert refused_s(failures, clock) == 0
    failures.record(VERSION, dead, suspect=True)
    assert refused_s(failures, clock) == 10


def test_only_the_last_failures_are_kept(failures: Failures) -> None:
    for number in range(1000):
        version = AdapterVersion(f"v{number}", "a", 1, "sha256:0", "f", "LORA", 8, ())
        failures.record(version, BAD)
    assert len(failures) < 300
    assert next(reversed(list(failures))).version.name == "v999"
