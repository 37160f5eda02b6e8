"""All adapters that have asked for turns, by namespace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from services.inference.scheduling.limits import Allowance, Limit, limit_of
from services.inference.scheduling.queue import Flow
from services.inference.scheduling.shares import Share

# Adapters that nothing is known of but their mean answer are forgotten above so many.
_MAX_IDLE = 1024


@dataclass(slots=True)
class _Namespace:
    share: Share
    allowance: Allowance
    flows: dict[str, Flow] = field(default_factory=dict)


class Flows:
    """Makes each when it is first asked for, with its limits.

    Args:
        adapter_limits: by adapter id.
        namespace_limits: by namespace.
    """

    def __init__(
        self, adapter_limits: Mapping[str, Limit], namespace_limits: Mapping[str, Limit]
    ) -> None:
        self._adapter_limits, self._namespace_limits = adapter_limits, namespace_limits
        self._root = Share()
        self._namespaces: dict[str, _Namespace] = {}

    def of(self, namespace: str, adapter: str, now_s: float) -> Flow:
        """The flow of an adapter."""
        space = self._namespaces.get(namespace)
        if space is None:
            limit = limit_of(self._namespace_limits, namespace)
            share = Share(self._root, limit.weight)
            space = self._namespaces[namespace] = _Namespace(share, Allowance(limit, now_s))
        flow = space.flows.get(adapter)
        if flow is None:
            _forget_idle(space.flows, now_s)
            limit = limit_of(self._adapter_limits, adapter)
            share = Share(space.share, limit.weight)
            flow = space.flows[adapter] = Flow(adapter, space.allowance, share, limit, now_s)
        return flow

    def settle(self) -> None:
        """Nobody waits or runs: nobody owes anybody."""
        for space in self._namespaces.values():
            space.share.settle()
        self._root.settle()


def _forget_idle(flows: dict[str, Flow], now_s: float) -> None:
    if len(flows) >= _MAX_IDLE:
        for name in [name for name, flow in flows.items() if flow.at_rest(now_s)]:
            del flows[name]
