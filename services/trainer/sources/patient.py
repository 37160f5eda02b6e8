"""Waits for a place that goes away while a set is fetched, and goes on where it stopped when it is back.

What a source calls UNAVAILABLE is waited for and nothing else: data that is not there will not come.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

from graft.errors import GraftError, Reason

from services.trainer.sources.base import Fetched, Log, Source
from services.trainer.spec import DatasetSource

# A place that gave nothing yet may be named wrongly: who did it shall hear of it soon.
_UNSEEN_PATIENCE_S = 60.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0


class PatientSource(Source):
    """Another source, asked again while it is away.

    Args:
        source: that one.
        patience_s: how long nothing more may come of it.
        waiting: told what is waited for, and "" when it is back.
        pause: waits so many seconds; raises to end the waiting.
    """

    def __init__(
        self,
        source: Source,
        patience_s: float,
        waiting: Log,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._source, self._patience_s = source, patience_s
        self._waiting, self._pause = waiting, pause

    def takes(self, source: DatasetSource) -> bool:
        return self._source.takes(source)

    def fetch(self, source: DatasetSource, folder: Path) -> Fetched:
        here_bytes, pause_s, since_s, told = _size(folder), _FIRST_PAUSE_S, time.monotonic(), False
        first: GraftError | None = None
        while True:
            try:
                fetched = self._source.fetch(source, folder)
            except GraftError as error:
                if error.reason is not Reason.UNAVAILABLE:
                    raise
                if first is None or _size(folder) > here_bytes:
                    # What broke off says where; what comes after it only that nobody is there.
                    first, here_bytes = error, _size(folder)
                    pause_s, since_s = _FIRST_PAUSE_S, time.monotonic()
                patience_s = self._patience(here_bytes)
                if time.monotonic() + pause_s > since_s + patience_s:
                    raise _gave_up(first, time.monotonic() - since_s) from None
                if not told:
                    self._waiting(
                        f"Waits for its data: {error.message}. Tried for {patience_s:g} s."
                    )
                    told = True
            else:
                if told:
                    self._waiting("")
                return fetched
            # Many workers wait for the same place: they shall not all come at once.
            self._pause(pause_s * random.uniform(0.7, 1.0))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _patience(self, here_bytes: int) -> float:
        return self._patience_s if here_bytes else min(self._patience_s, _UNSEEN_PATIENCE_S)


def _gave_up(error: GraftError, waited_s: float) -> GraftError:
    said = f"{error.message}; it stayed away for {waited_s:.0f} s"
    return GraftError(error.reason, said, next_step=error.next_step, **error.metadata)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
