"""Requests that wait for a place in the batch: each adapter's in order, the adapters in turn."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Waiting(Generic[T]):
    """First come, first served within an adapter; an adapter that was served goes behind the others."""

    def __init__(self) -> None:
        self._queues: OrderedDict[int, deque[T]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def add(self, adapter: int, one: T) -> None:
        """Behind the others of its adapter, which is a number of any kind."""
        self._queues.setdefault(adapter, deque()).append(one)

    def add_first(self, adapter: int, one: T) -> None:
        """Before all: it has been served already, and had to make room."""
        self._queues.setdefault(adapter, deque()).appendleft(one)
        self._queues.move_to_end(adapter, last=False)

    def first(self) -> T | None:
        """Who is next."""
        return next((queue[0] for queue in self._queues.values()), None)

    def pop(self) -> T:
        """Takes who is next."""
        adapter, queue = next(iter(self._queues.items()))
        one = queue.popleft()
        if queue:
            self._queues.move_to_end(adapter)
        else:
            del self._queues[adapter]
        return one

    def discard(self, adapter: int, one: T) -> bool:
        """Waits no longer; whether it had waited."""
        queue = self._queues.get(adapter)
        if queue is None or one not in queue:
            return False
        queue.remove(one)
        if not queue:
            del self._queues[adapter]
        return True
