"""The adapter weights of one layer, of all slots, laid out so that few and plain products need them.

vLLM keeps a tensor per slice (q, k and v are slices of one layer), of shape [slots, 1, rank, in] for A
and [slots, 1, out, rank] for B, and writes adapters into it. Here the same tensors get other strides
and another storage, and vLLM goes on writing; what is derived from them is made again after a change.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from services.inference.vllm_plugin.cpu_lora_groups import TokenGroups
from services.inference.vllm_plugin.cpu_lora_packed import PackedLayer

# Above it, a number times an activation could overflow to an infinity, and zero times that is NaN.
TAME = 1e20
# A layer that has missed more changes of slots than these looks at all of them.
_REMEMBERED = 1024


@dataclass(frozen=True, slots=True)
class Slice:
    """The weights of all slots for one slice, up to the largest rank that one of them has; views.

    Attributes:
        number: which of the layer's slices it is.
        start: its first column in the layer's output.
        stop: the column after its last one.
        a: [in, rank * slots], ordered by rank and then slot.
        b: [rank * slots, out].
    """

    number: int
    start: int
    stop: int
    a: torch.Tensor
    b: torch.Tensor

    def of(self, slot: int, rank: int, slots: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One slot's A [in, rank] and B [rank, out]."""
        end = rank * slots
        return self.a[:, slot:end:slots], self.b[slot:end:slots]


@dataclass(frozen=True, slots=True)
class Content:
    """What the slots hold now.

    Attributes:
        ranks: per slot, the number of leading ranks that are not all zero; 0 where it has no weights here.
        rank: the largest of them.
        slices: those for which a slot has weights.
        tame: whether no number is so large, or none, that it could reach another slot's tokens.
        packed: the same weights for fast products, where the CPU has them and they are small.
    """

    ranks: tuple[int, ...]
    rank: int
    slices: tuple[Slice, ...]
    tame: bool
    packed: PackedLayer | None

    @property
    def wasted(self) -> int:
        """Columns of all together that are not one slot's."""
        return self.rank * (len(self.ranks) - 1)

    def holds(self, slots: Iterable[int]) -> bool:
        """Whether one of them has weights here."""
        return any(self.ranks[slot] for slot in slots)

    def own(
        self, groups: TokenGroups, columns: int, times: int, dtype: torch.dtype
    ) -> torch.Tensor:
        """TokenGroups.own for the columns as they are here."""
        slots, rank = len(self.ranks), self.rank
        return groups.own(rank, lambda: torch.arange(slots).repeat(rank), columns, times, dtype)

    def of(self, slot: int) -> Iterator[tuple[int, int, torch.Tensor, torch.Tensor]]:
        """One slot's parts: start and stop in the output, A [in, rank], B [rank, out]."""
        if rank := self.ranks[slot]:
            for part in self.slices:
                yield part.start, part.stop, *part.of(slot, rank, len(self.ranks))


class SlotChanges:
    """The slots whose weights were written, the last ones in order."""

    def __init__(self) -> None:
        self.total = 0
        self._last: deque[int] = deque(maxlen=_REMEMBERED)

    def note(self, slot: int) -> None:
        """A slot has other weights from now on."""
        self.total += 1
        self._last.append(slot)

    def since(self, total: int) -> set[int] | None:
        """What was written after so many; None where that is too long ago."""
        count = self.total - total
        if count > len(self._last):
            return None
        return set(islice(reversed(self._last), count))


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
        self._inspected: list[tuple[tuple[int, ...], bool]] = [((), True)] * self.slots
        self._total = 0
        self._content: Content | None = None

    def content(self) -> Content:
        """What the slots hold now; worked out once after each change."""
        if self._content is None or self._total != self._changes.total:
            # What is kept is changed in place later, maybe when vLLM is in another mode.
            with torch.inference_mode(False), torch.no_grad():
                self._content = self._changed(self._content)
            self._total = self._changes.total
        return self._content

    def content_of(self, groups: TokenGroups) -> Content:
        """The same, whatever the batch."""
        return self.content()

    def _changed(self, before: Content | None) -> Content:
        written = None if before is None else self._changes.since(self._total)
        slots = range(self.slots) if written is None else sorted(written)
        here = []
        for slot in slots:
            old, new = self._inspected[slot], self._inspect(slot)
            self._inspected[slot] = new
            # Most adapters have nothing for most layers.
            if old != new or any(new[0]):
                here.append(slot)
        if before is not None and not here:
            return before
        return self._sum_up(before, here)

    def _sum_up(self, before: Content | None, written: Sequence[int]) -> Content:
        ranks = [per_slice for per_slice, _ in self._inspected]
        rank = max(map(max, ranks))
        slices, start = [], 0
        for number, b in enumerate(self._b):
            stop = start + b.shape[2]
            if any(per_slice[number] for per_slice in ranks):
                its_a = self._a[number, :rank].flatten(0, 1).t()
                slices.append(Slice(number, start, stop, its_a, b[:rank].flatten(0, 1)))
            start = stop
        packed = None if before is None else self._repacked(before, rank, slices, written)
        if packed is None:
            packed = PackedLayer.of([(each.start, each.stop, each.a, each.b) for each in slices])
        tame = all(each for _, each in self._inspected)
        return Content(tuple(map(max, ranks)), rank, tuple(slices), tame, packed)

    def _repacked(
        self, before: Content, rank: int, slices: Sequence[Slice], written: Sequence[int]
    ) -> PackedLayer | None:
        """What was packed before with the slots that were written since, where it has the same shape."""
        same = before.rank == rank and [each.number for each in before.slices] == [
            each.number for each in slices
        ]
        if before.packed is None or not before.packed.rewritable or not same:
            return None
        for slot in written:
            before.packed.rewrite(
                slot,
                self.slots,
                [
                    (self._a[each.number, :rank, slot], self._b[each.number][:rank, slot])
                    for each in slices
                ],
            )
        return before.packed

    def _inspect(self, slot: int) -> tuple[tuple[int, ...], bool]:
        """Per slice its rank, and whether it is tame."""
        if not any(bool(each[..., slot, :].any()) for each in (self._a, *self._b)):
            return (0,) * len(self._b), True
        ranks, tame = [], True
        for its_a, its_b in zip(self._a, self._b, strict=True):
            sizes = [each[:, slot].abs().amax(1) for each in (its_a, its_b)]
            # A NaN is not zero, either, and is not below anything.
            places = torch.nonzero((sizes[0] != 0) & (sizes[1] != 0))
            ranks.append(int(places[-1]) + 1 if len(places) else 0)
            tame = tame and all(bool((size <= TAME).all()) for size in sizes)
        return tuple(ranks), tame
