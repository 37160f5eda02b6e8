"""What one adapter or one namespace may use at most: requests at once, and tokens per second."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field

# In a table of limits: whoever is not named in it.
ANYBODY = "*"
_BURST_S = 10.0


class Limit(BaseModel):
    """Settings of one adapter or namespace; what is None is not limited.

    tokens_per_s counts prompts and answers; burst_tokens may be used at once after a pause, ten
    seconds' worth if not set.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    max_concurrent: int | None = Field(default=None, ge=1)
    max_waiting: int | None = Field(default=None, ge=1)
    tokens_per_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    burst_tokens: float | None = Field(default=None, gt=0, allow_inf_nan=False)


def limit_of(limits: Mapping[str, Limit], name: str) -> Limit:
    """The limit of a name: what its own entry says, and what it leaves out from "*"."""
    common, own = limits.get(ANYBODY, Limit()), limits.get(name)
    if own is None:
        return common
    return common.model_copy(update={each: getattr(own, each) for each in own.model_fields_set})


class TokenBucket:
    """Fills with so many tokens per second up to burst; what was taken too much is waited for.

    A request's tokens are known only when it has ended: it may take more than there is, and the next
    one then waits until the debt is paid.
    """

    def __init__(self, tokens_per_s: float, burst: float, now_s: float) -> None:
        self._rate, self._burst = tokens_per_s, burst
        self._level, self._seen_s = burst, now_s

    def take(self, tokens: float, now_s: float) -> None:
        """Takes, or gives back where tokens is negative."""
        self._fill(now_s)
        self._level = min(self._burst, self._level - tokens)

    def wait_s(self, now_s: float, ahead_tokens: float = 0.0) -> float:
        """Seconds until something may be taken, once so many have gone before."""
        self._fill(now_s)
        missing = ahead_tokens - self._level
        return 0.0 if missing < 0 else missing / self._rate + 0.001

    def full(self, now_s: float) -> bool:
        """Whether it remembers nothing."""
        self._fill(now_s)
        return self._level >= self._burst

    def _fill(self, now_s: float) -> None:
        passed_s = max(0.0, now_s - self._seen_s)
        self._level = min(self._burst, self._level + passed_s * self._rate)
        self._seen_s = now_s


class Allowance:
    """What is left of one limit; limits says whether there is anything to ask for."""

    def __init__(self, limit: Limit, now_s: float) -> None:
        self.limit, self.running = limit, 0
        rate = limit.tokens_per_s
        self.limits = rate is not None or limit.max_concurrent is not None
        self._bucket = (
            None
            if rate is None
            else TokenBucket(rate, limit.burst_tokens or rate * _BURST_S, now_s)
        )

    def wait_s(self, now_s: float) -> float:
        """Seconds until one more may begin: 0 is now, infinite is when another ends."""
        if not self.limits:
            return 0.0
        most = self.limit.max_concurrent
        if most is not None and self.running >= most:
            return math.inf
        return self.rate_wait_s(now_s)

    def rate_wait_s(self, now_s: float, ahead_tokens: float = 0.0) -> float:
        """Seconds until its token rate lets one begin behind so many tokens."""
        return 0.0 if self._bucket is None else self._bucket.wait_s(now_s, ahead_tokens)

    def charge(self, tokens: float, now_s: float) -> None:
        """Tokens were used, or were not where it is negative."""
        if self._bucket is not None:
            self._bucket.take(tokens, now_s)

    def at_rest(self, now_s: float) -> bool:
        """Whether a new one would be the same."""
        return not self.running and (self._bucket is None or self._bucket.full(now_s))
