"""Versions that could not be loaded: why, and for how long nobody tries again."""

from __future__ import annotations

import time
from collections.abc import Iterator
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
    """A version, why it could not be loaded, and until when nobody tries again."""

    version: AdapterVersion
    error: GraftError
    until_s: float


class Failures:
    """The last failures, by version.

    Args:
        retry_after_s: how long a version is refused without a try.
    """

    def __init__(self, retry_after_s: float) -> None:
        self._retry_after_s = retry_after_s
        self._failures: dict[str, Failure] = {}

    def __iter__(self) -> Iterator[Failure]:
        return iter(self._failures.values())

    def __len__(self) -> int:
        return len(self._failures)

    def record(self, version: AdapterVersion, error: GraftError) -> None:
        """Remembers a failure that is the version's own."""
        if error.reason in TEMPORARY:
            return
        until_s = time.monotonic() + self._retry_after_s
        self._failures[version.name] = Failure(version, error, until_s)
        while len(self._failures) > _MAX_FAILURES:
            del self._failures[next(iter(self._failures))]

    def refuse(self, version: AdapterVersion) -> None:
        """Raises the version's error again while it is not to be tried."""
        failure = self._failures.get(version.name)
        if failure is not None and time.monotonic() < failure.until_s:
            raise anew(failure.error)

    def forget(self, version: AdapterVersion) -> None:
        """It is tried again."""
        self._failures.pop(version.name, None)


def anew(error: GraftError) -> GraftError:
    """The same error for another caller: an exception has one traceback."""
    return GraftError(error.reason, error.message, next_step=error.next_step, **error.metadata)
