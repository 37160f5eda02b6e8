"""How often a stream sends what is ready; it delays no first token."""

from __future__ import annotations

# Below this a timer costs more than it collects.
_LEAST_FLUSH_S = 0.002
_FLUSH_PER_STREAM_S = 0.0003


class Pace:
    """How long a stream collects tokens before it sends them: the more streams, the longer.

    A message costs far more than a token, so under load the messages, not the tokens, would be what
    the machine is busy with. A single stream is not slowed.
    """

    def __init__(self, max_interval_s: float) -> None:
        self._max_interval_s = max_interval_s
        self.streams = 0

    @property
    def interval_s(self) -> float:
        """Time to collect for, now; 0 for not at all."""
        interval_s = min(self.streams * _FLUSH_PER_STREAM_S, self._max_interval_s)
        return interval_s if interval_s >= _LEAST_FLUSH_S else 0.0
