"""The adapter weights of one layer, of all slots, laid out so that few and plain products need them.

vLLM keeps a tensor per slice (q, k and v are slices of one layer), of shape [slots, 1, rank, in] for A
and [slots, 1, out, rank] for B, and writes adapters into it. Here the same tensors get other strides
and another storage: vLLM goes on writing, and there is no copy that could be stale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Slice:
    """The weights of all slots for one slice, up to the rank that a step needs.

    Attributes:
        start: its first column in the layer's output.
        stop: the column after its last one.
        a: [in, rank * slots], ordered by rank and then slot.
        b: [rank * slots, out].
    """

    start: int
    stop: int
    a: torch.Tensor
    b: torch.Tensor

    def of(self, slot: int, slots: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One slot's A [in, rank] and B [rank, out]."""
        return self.a[:, slot::slots], self.b[slot::slots]


@dataclass(frozen=True, slots=True)
class Needed:
    """What a step with certain slots needs of a layer.

    Attributes:
        rank: the largest that one of the slots has here; 0 where none has weights.
        slices: those for which one of them has weights.
        all_finite: whether B is finite in every slot, of this step or not.
    """

    rank: int
    slices: tuple[Slice, ...]
    all_finite: bool


@dataclass(frozen=True, slots=True)
class _Content:
    """A slot: per slice how many leading ranks are not all zero, and whether B is finite."""

    ranks: tuple[int, ...]
    finite: bool


class SlotChanges:
    """Counts how often the weights of each slot were written."""

    def __init__(self) -> None:
        self.total = 0
        self._counts: dict[int, int] = {}

    def __getitem__(self, slot: int) -> int:
        return self._counts.get(slot, 0)

    def note(self, slot: int) -> None:
        """A slot has other weights from now on."""
        self.total += 1
        self._counts[slot] = self[slot] + 1


class LayerWeights:
    """A as [slices, rank, slots, in] and per slice B as [rank, slots, out].

    Args:
        a: vLLM's own, per slice [slots, 1, rank, in]; they become views of what is kept here.
        b: per slice [slots, 1, out, rank]; so do they.
        changes: of the slots.
    """

    def __init__(
        self, a: Sequence[torch.Tensor], b: Sequence[torch.Tensor], changes: SlotChanges
    ) -> None:
        self.slots = a[0].shape[0]
        self._changes = changes
        # vLLM may call in inference mode, and writes adapters outside of it, too.
        with torch.inference_mode(False), torch.no_grad():
            self._a = torch.stack([each[:, 0].transpose(0, 1) for each in a])
            self._b = tuple(each[:, 0].permute(2, 0, 1).contiguous() for each in b)
            for number, (its_a, its_b) in enumerate(zip(a, b, strict=True)):
                its_a.data = self._a[number].transpose(0, 1).unsqueeze(1)
                its_b.data = self._b[number].permute(1, 2, 0).unsqueeze(1)
        # They are known again by their identity, so they have to live as long as this does.
        self._theirs = (tuple(a), tuple(b))
        self._contents: list[_Content | None] = [None] * self.slots
        self._counts = [-1] * self.slots
        self._total = -1
        self._needed: dict[tuple[int, ...], Needed] = {}

    def needed(self, active: tuple[int, ...]) -> Needed:
        """What a step with these slots needs."""
        if self._total != self._changes.total:
            self._needed.clear()
            self._total = self._changes.total
        found = self._needed.get(active)
        if found is None:
            found = self._needed[active] = self._sum_up(active)
        return found

    def _sum_up(self, active: tuple[int, ...]) -> Needed:
        contents = [self._content(slot) for slot in range(self.slots)]
        ranks = [
            max(contents[slot].ranks[number] for slot in active) for number in range(len(self._b))
        ]
        rank = max(ranks)
        slices, start = [], 0
        for number, b in enumerate(self._b):
            stop = start + b.shape[2]
            if ranks[number]:
                its_a = self._a[number, :rank].flatten(0, 1).t()
                slices.append(Slice(start, stop, its_a, b[:rank].flatten(0, 1)))
            start = stop
        return Needed(rank, tuple(slices), all(content.finite for content in contents))

    def _content(self, slot: int) -> _Content:
        """Read once after each change: it decides what need not be computed in every step."""
        content = self._contents[slot]
        if content is None or self._counts[slot] != self._changes[slot]:
            self._counts[slot] = self._changes[slot]
            content = self._contents[slot] = self._inspect(slot)
        return content

    def _inspect(self, slot: int) -> _Content:
        ranks, finite = [], True
        for its_a, its_b in zip(self._a, self._b, strict=True):
            # A NaN is not zero, either.
            used = (its_a[:, slot] != 0).any(1) & (its_b[:, slot] != 0).any(1)
            places = torch.nonzero(used)
            ranks.append(int(places[-1]) + 1 if len(places) else 0)
            finite = finite and bool(torch.isfinite(its_b[:, slot]).all())
        return _Content(tuple(ranks), finite)
