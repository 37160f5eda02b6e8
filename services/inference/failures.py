"""Versions that could not be loaded: why, and for how long nobody tries again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from graft.errors import GraftError, Reason

from services.inference.domain import AdapterVersion

# Trying again may help: such a failure says nothing about the version.
TEMPORARY = frozenset(
    {
        Reason.UNAVAILABLE,
        Reason.OVERLOADED,
        Reason.STORAGE_FULL,
        Reason.ENGINE_DEAD,
        Reason.CANCELLED,
    }
)
_MAX_FAILURES = 256


@dataclass(frozen=True, slots=True)
class Failure:
    """A version, why it could not be loaded, how often in a row, and until when nobody tries again."""

    version: AdapterVersion
    error: GraftError
    times: int
    until_s: float


class Failures:
    """The last failures, by version.

    Args:
        retry_after_s: how long a version is refused without a try after its first failure; each
            further one doubles it.
        max_retry_after_s: but never longer than this.
        clock: for tests.
    """

    def __init__(
        self,
        retry_after_s: float,
        max_retry_after_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._retry_after_s = retry_after_s
        self._max_retry_after_s = max(retry_after_s, max_retry_after_s)
        self._clock = clock
        self._failures: dict[str, Failure] = {}

    def __iter__(self) -> Iterator[Failure]:
        return iter(self._failures.values())

    def __len__(self) -> int:
        return len(self._failures)

    def record(self, version: AdapterVersion, error: GraftError, *, suspect: bool = False) -> None:
        """Remembers a failure that is the version's own.

        Args:
            suspect: it may be the version's own though its reason is temporary: the engine died of it.
        """
        if error.reason in TEMPORARY and not suspect:
            return
        before = self._failures.pop(version.name, None)
        times = 1 if before is None else before.times + 1
        # 2**32 times anything is past every bound.
        delay_s = min(self._retry_after_s * 2 ** min(times - 1, 32), self._max_retry_after_s)
        self._failures[version.name] = Failure(version, error, times, self._clock() + delay_s)
        while len(self._failures) > _MAX_FAILURES:
            del self._failures[next(iter(self._failures))]

    def refuse(self, version: AdapterVersion) -> None:
        """Raises the version's error again while it is not to be tried."""
        failure = self._failures.get(version.name)
        if failure is not None and self._clock() < failure.until_s:
            raise anew(failure.error)

    def forget(self, version: AdapterVersion) -> None:
        """It was loaded, or may be another case now: nothing is held against it."""
        self._failures.pop(version.name, None)


def anew(error: GraftError) -> GraftError:
    """The same error for another caller: an exception has one traceback."""
    return GraftError(error.reason, error.message, next_step=error.next_step, **error.metadata)
