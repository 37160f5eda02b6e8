"""What happens to canaries here, as log lines and metrics."""

from __future__ import annotations

from collections.abc import Mapping

from services.common.logs import get_logger
from services.inference.rollout.metrics import RolloutMetrics, Step
from services.inference.rollout.state import Here
from services.inference.swaps import RouteKey

_BAD = frozenset({Step.NOT_LOADED, Step.TAKEN_OUT, Step.RETRIED})


class RolloutLog:
    """Tells of steps, and where all canaries are.

    Args:
        here: the aliases; their owner changes them.
    """

    def __init__(self, metrics: RolloutMetrics, here: Mapping[RouteKey, Here]) -> None:
        self._metrics, self._here = metrics, here

    def tell(self, step: Step, here: Here, number: int, **details: object) -> None:
        """It happened to this canary."""
        self._metrics.step(step)
        say = get_logger().warning if step in _BAD else get_logger().info
        say(f"canary {step.value}", alias=here.name, canary=number, **details)

    def show(self) -> None:
        """Where the canaries are now."""
        self._metrics.show(
            canary.state.value for here in self._here.values() for canary in here.canaries.values()
        )
