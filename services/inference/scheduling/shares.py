"""Who has had how much of something that several divide: start-time fair queueing, counted in tokens.

One share per namespace and, below it, one per adapter. The one that has had least for its weight is
next (Goyal, Vin and Cheng, Start-time Fair Queueing, 1996; with costs that are known only afterwards as
in the virtual token counter of Sheng et al., Fairness in Serving Large Language Models, 2024).
"""

from __future__ import annotations

from collections.abc import Iterator


class Share:
    """One of those that divide what their parent gets.

    Args:
        parent: None for the root, which stands for the whole.
        weight: what it gets, relative to its siblings.

    Attributes:
        served: tokens that it has had, divided by its weight.
        waiting: requests in it that wait.
    """

    __slots__ = ("_frontier", "_highest", "parent", "served", "waiting", "weight")

    def __init__(self, parent: Share | None = None, weight: float = 1.0) -> None:
        self.parent, self.weight = parent, weight
        self.waiting = 0
        # Where its children are: what the last one that was chosen had, and the most that one has had.
        self._frontier: float = 0.0
        self._highest: float = 0.0
        self.served = 0.0 if parent is None else parent._frontier

    def enter(self) -> None:
        """One more waits. Who did not wait gets no credit for the time in which it asked for nothing."""
        for share in self._path():
            if not share.waiting:
                share.lift()
            share.waiting += 1

    def leave(self) -> None:
        """One waits no longer."""
        for share in self._path():
            share.waiting -= 1
            assert share.waiting >= 0

    def lift(self) -> None:
        """Forgets what it could have had: it could not have taken it."""
        if self.parent is not None:
            self.served = max(self.served, self.parent._frontier)

    def choose(self) -> None:
        """It is the next: others that come later begin where it is now."""
        for share in self._path():
            assert share.parent is not None
            share.parent._frontier = max(share.parent._frontier, share.served)

    def charge(self, tokens: float) -> None:
        """It has had so many more, or fewer where an estimate was too high."""
        for share in self._path():
            assert share.parent is not None
            share.served += tokens / share.weight
            share.parent._highest = max(share.parent._highest, share.served)

    def settle(self) -> None:
        """Nothing waits and nothing runs: all debts between its children are forgiven."""
        self._frontier = self._highest

    @property
    def ahead(self) -> float:
        """Tokens that it has had above where its siblings are; 0 for none."""
        return 0.0 if self.parent is None else max(0.0, self.served - self.parent._frontier)

    @property
    def order(self) -> tuple[float, float]:
        """Sorts the adapters of all namespaces: the least comes next."""
        assert self.parent is not None
        return self.parent.served, self.served

    def _path(self) -> Iterator[Share]:
        """Itself and those above it, without the root."""
        share = self
        while share.parent is not None:
            yield share
            share = share.parent
