"""Counts and times one answer, from its handing over to the engine: into its version's series and its spans."""

from __future__ import annotations

import time
from collections.abc import Mapping

from services.common.tracing import Tracing
from services.inference.version_series import VersionSeries


class Measured:
    """One answer; it begins when this is made, and is ended exactly once.

    Args:
        arrived_s: when the request came, by time.perf_counter().

    Attributes:
        completion_tokens: so far.
    """

    __slots__ = ("_arrived_s", "_first_s", "_gap_s", "_last_s", "_prompt_tokens", "_series", "_spans", "completion_tokens")  # fmt: skip

    def __init__(
        self, series: VersionSeries, tracing: Tracing, arrived_s: float, prompt_tokens: int
    ) -> None:
        self._series, self._arrived_s, self._prompt_tokens = series, arrived_s, prompt_tokens
        self._first_s = self._last_s = self._gap_s = 0.0
        self.completion_tokens = 0
        series.prompt_tokens.inc(prompt_tokens)
        series.queue.observe(time.perf_counter() - arrived_s)
        self._spans = tracing.answering()

    @property
    def trace_headers(self) -> Mapping[str, str] | None:
        """For the engine's own spans."""
        return self._spans.headers

    @property
    def begun(self) -> bool:
        """Whether anything came yet."""
        return self._first_s > 0.0

    def came(self, new_tokens: int) -> None:
        """So many more are there."""
        now_s = time.perf_counter()
        if self._first_s:
            self._gap_s = max(self._gap_s, now_s - self._last_s)
        else:
            self._first_s = now_s
            self._series.first_token.observe(now_s - self._arrived_s)
            self._spans.first_token()
        self._last_s = now_s
        self.completion_tokens += new_tokens

    def end(self, outcome: str, *, stream: bool) -> None:
        """It is over: "ok", "cancelled" or "error". Only a stream shows how its tokens came."""
        series = self._series
        series.outcomes[outcome].inc()
        series.completion_tokens.inc(self.completion_tokens)
        if stream and self.completion_tokens > 1:
            passed_s = time.perf_counter() - self._first_s
            series.per_token.observe(passed_s / (self.completion_tokens - 1))
            series.longest_gap.observe(self._gap_s)
        self._spans.end(outcome, self._prompt_tokens, self.completion_tokens)
