"""The adapter weights of one layer as rows that pages divide: an adapter has those of its pages, wherever they are.

In place of cpu_lora_weights.py where small adapters share large slots. What is stale, because its adapter
has gone, stays until its page is taken again; it is multiplied with nobody's tokens but by zero, and no
number stays that zero would not end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch

from services.inference.vllm_plugin.cpu_lora_groups import TokenGroups
from services.inference.vllm_plugin.cpu_lora_packed import PackedLayer
from services.inference.vllm_plugin.cpu_lora_weights import Slice
from services.inference.vllm_plugin.lora_pages import PageTable

Few = tuple[tuple[int, int], ...]
# Changes of a batch after which its adapters are taken to stay.
_TIMES = 8
# What part of all pages they may have, to be laid out apart.
_FEW = 4


class Cleared(Protocol):
    """Holds a layer's weights."""

    def clear(self, slot: int) -> None:
        """A slot holds nothing any more."""


class PagedMemory:
    """What all layers of an engine share: who has which pages.

    Attributes:
        odd: slots whose adapter has a number that zero would not end, or could overflow.
        layers: what holds weights, of each of them.
    """

    def __init__(self, table: PageTable) -> None:
        self.table = table
        self.odd: set[int] = set()
        self.layers: list[Cleared] = []
        self._owners: tuple[int, torch.Tensor] | None = None
        # How often a slot was given to an adapter.
        self._given: Counter[int] = Counter()
        self._groups: TokenGroups | None = None
        self._asked: Few = ()
        self._stay: Few = ()
        self._times = 0

    @property
    def width(self) -> int:
        """Rows that are computed where all are computed together."""
        return self.table.width * self.table.paging.page_rank

    def owners(self) -> torch.Tensor:
        """The slot of each row up to the width."""
        version, table = self.table.version, self.table
        if self._owners is None or self._owners[0] != version:
            pages = torch.tensor(table.owners[: table.width], dtype=torch.long)
            self._owners = version, pages.repeat_interleave(table.paging.page_rank)
        return self._owners[1]

    def few(self, groups: TokenGroups) -> Few:
        """The adapters of a step where they are the same few for some time; empty where they are not.

        Each as its slot and how often that was given to one, which together mean no other one ever.
        """
        if groups is not self._groups:
            asked = tuple((slot, self._given[slot]) for slot in groups.active)
            self._times = self._times + 1 if asked == self._asked else 0
            self._groups, self._asked = groups, asked
            pages = sum(len(self.table.pages(slot)) for slot in groups.active)
            stay = self._times >= _TIMES and pages * _FEW <= self.table.width
            self._stay = asked if stay else ()
        return self._stay

    def rows(self, few: Few) -> list[int]:
        """Those of these adapters, in order."""
        rows = [each for slot, _ in few for each in self.table.rows(slot)]
        return [row for each in rows for row in range(each.start, each.stop)]

    def take(self, slot: int, rank: int, *, odd: bool) -> None:
        """Gives an adapter its pages.

        Raises:
            NoRoomError.
        """
        self.table.take(slot, rank)
        self._given[slot] += 1
        if odd:
            self.odd.add(slot)

    def release(self, slot: int) -> None:
        """Takes them back, without anything that could harm."""
        if slot in self.odd:
            for layer in self.layers:
                layer.clear(slot)
            self.odd.discard(slot)
        self.table.release(slot)


@dataclass(frozen=True, slots=True)
class PagedContent:
    """What a layer's rows hold now.

    Attributes:
        version: of the table of pages.
        key: the same for the same owners.
        owners: makes the slot of each column of the packed weights, or of all rows.
        wasted: those of them that are not one slot's, at least.
        slices: those for which somebody has weights, up to the width.
        tame: whether no number could reach another slot's tokens.
        packed: the same weights for fast products, where the CPU has them and they are small.
        rows: of each slot that has weights here.
    """

    version: int
    key: Hashable
    owners: Callable[[], torch.Tensor]
    wasted: int
    slices: tuple[Slice, ...]
    tame: bool
    packed: PackedLayer | None
    rows: dict[int, list[slice]] = field(default_factory=dict)

    def holds(self, slots: Iterable[int]) -> bool:
        """Whether one of them has weights here."""
        return not self.rows.keys().isdisjoint(slots)

    def own(
        self, groups: TokenGroups, columns: int, times: int, dtype: torch.dtype
    ) -> torch.Tensor:
        """TokenGroups.own for the columns as they are here."""
        return groups.own(self.key, self.owners, columns, times, dtype)

    def of(self, slot: int) -> Iterator[tuple[int, int, torch.Tensor, torch.Tensor]]:
        """One slot's parts: start and stop in the output, A [in, ranks], B [ranks, out]."""
        for rows in self.rows.get(slot, ()):
            for part in self.slices:
                yield part.start, part.stop, part.a[:, rows], part.b[rows]


class PagedWeights:
    """A as [slices, rows, in] and per slice B as [rows, out].

    Args:
        a: vLLM's own, per slice [slots, 1, rank, in]; they become views of what is kept here.
        b: per slice [slots, 1, out, rank]; so do they.
    """

    def __init__(
        self, a: Sequence[torch.Tensor], b: Sequence[torch.Tensor], memory: PagedMemory
    ) -> None:
        self.memory = memory
        with torch.inference_mode(False), torch.no_grad():
            self._a = torch.stack([each.flatten(0, 2) for each in a])
            self._b = tuple(each[:, 0].transpose(1, 2).flatten(0, 1).contiguous() for each in b)
            for number, (its_a, its_b) in enumerate(zip(a, b, strict=True)):
                slots, _, out, rank = its_b.shape
                its_a.data = self._a[number].view(its_a.shape)
                its_b.data = self._b[number].view(slots, rank, out).transpose(1, 2).unsqueeze(1)
        # Pages per slice in which something may be.
        self._filled: list[set[int]] = [set() for _ in a]
        self._here: set[int] = set()
        self._written: list[slice] = []
        self._content: PagedContent | None = None
        self._width = 0
        self._few: tuple[Few, PagedContent | None, PagedContent | None] = ((), None, None)
        memory.layers.append(self)

    def views(self, rows: slice) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        """Rows as vLLM's tensors for one slot: per slice A [1, 1, rows, in] and B [1, 1, out, rows]."""
        a = tuple(each[rows][None, None] for each in self._a)
        return a, tuple(each[rows].t()[None, None] for each in self._b)

    def wrote(self, slot: int, slices: Iterable[int]) -> None:
        """A slot's rows hold its adapter from now on.

        Args:
            slices: those that it has weights for; the rows of others are zero.
        """
        pages, given = set(self.memory.table.pages(slot)), set(slices)
        for number, filled in enumerate(self._filled):
            if number in given:
                filled |= pages
            else:
                filled -= pages
        self._here.add(slot)
        self._written += self.memory.table.rows(slot)

    def clear(self, slot: int) -> None:
        """A slot's rows hold nothing: its adapter has nothing here, or goes."""
        self._here.discard(slot)
        pages = set(self.memory.table.pages(slot))
        if all(filled.isdisjoint(pages) for filled in self._filled):
            return
        for rows in self.memory.table.rows(slot):
            self._a[:, rows] = 0
            for each in self._b:
                each[rows] = 0
            self._written.append(rows)
        for filled in self._filled:
            filled -= pages

    def content(self) -> PagedContent:
        """What the rows hold now; worked out once after each change."""
        table = self.memory.table
        if self._content is None or self._written or self._content.version != table.version:
            # What is kept is changed in place later, maybe when vLLM is in another mode.
            with torch.inference_mode(False), torch.no_grad():
                self._content = self._changed(self._content)
        return self._content

    def content_of(self, groups: TokenGroups) -> PagedContent:
        """The same; where few adapters come and go seldom, packed is laid out for those alone."""
        content = self.content()
        if content.packed is None or not (few := self.memory.few(groups)):
            return content
        known, of, narrow = self._few
        if known != few:
            narrow = None
        if narrow is None or of is not content:
            narrow = self._laid_out(content, few, narrow)
            self._few = few, content, narrow
        return narrow

    def _laid_out(
        self, content: PagedContent, few: Few, known: PagedContent | None
    ) -> PagedContent:
        """A content whose packed weights are of few adapters alone; with those of a known one."""
        table = self.memory.table
        sizes = [len(table.pages(slot)) * table.paging.page_rank for slot, _ in few]
        if known is not None:
            packed = known.packed
        else:
            rows = self.memory.rows(few)
            with torch.inference_mode(False), torch.no_grad():
                packed = PackedLayer.of(
                    [
                        (each.start, each.stop, each.a[:, rows], each.b[rows])
                        for each in content.slices
                    ]
                )

        def owners() -> torch.Tensor:
            slots = torch.tensor([slot for slot, _ in few])
            return slots.repeat_interleave(torch.tensor(sizes))

        wasted = sum(sizes) - max(sizes)
        return replace(content, key=few, owners=owners, wasted=wasted, packed=packed)

    def _changed(self, before: PagedContent | None) -> PagedContent:
        memory, table = self.memory, self.memory.table
        width, slices, start = memory.width, [], 0
        for number, b in enumerate(self._b):
            stop = start + b.shape[1]
            if self._filled[number]:
                its_a = self._a[number, :width].t()
                slices.append(Slice(number, start, stop, its_a, b[:width]))
            start = stop
        packed = None if before is None else self._repacked(before, width, slices)
        self._width = width
        if packed is None:
            packed = PackedLayer.of([(each.start, each.stop, each.a, each.b) for each in slices])
        self._written.clear()
        return PagedContent(
            version=table.version,
            key=("all", table.version),
            owners=memory.owners,
            wasted=width - table.paging.page_rank,
            slices=tuple(slices),
            tame=not memory.odd,
            packed=packed,
            rows={slot: rows for slot in self._here if (rows := table.rows(slot))},
        )

    def _repacked(
        self, before: PagedContent, width: int, slices: Sequence[Slice]
    ) -> PackedLayer | None:
        """What was packed before with the rows that were written since, where it has the same shape."""
        same = self._width == width and [each.number for each in before.slices] == [
            each.number for each in slices
        ]
        if before.packed is None or not before.packed.rewritable or not same:
            return None
        for rows in self._written:
            before.packed.rewrite_rows(
                rows.start, [(self._a[each.number, rows], each.b[rows]) for each in slices]
            )
        return before.packed
