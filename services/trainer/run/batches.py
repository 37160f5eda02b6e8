"""Token rows -> batches with little or no padding: rows of like length together, or several rows in a pack."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from services.trainer.tokens import IGNORED, TokenRow
from services.trainer.tokens.packing import pack_rows

_BATCHES_SORTED_TOGETHER = 50
# What a batch holds beside its tensors.
SOURCE = "graft_source"


@dataclass(frozen=True, slots=True)
class Source:
    """What a batch was made of: each item is a sequence's rows. Nothing looks into it on a batch's way to the device."""

    items: Sequence[Any]


class RowOrder(torch.utils.data.Sampler[int]):
    """The order of rows in each epoch: random, with rows of like length in one batch where that is wanted.

    The same seed and epoch give the same order, whatever came before, so a resumed run sees the same batches.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, seed: int, *, by_length: bool = True
    ) -> None:
        self._lengths = np.array(lengths)
        self._batch_size = batch_size
        self._seed = seed
        self._by_length = by_length
        self._epoch = 0

    def begin_epoch(self, epoch: int) -> None:
        """Sets the epoch that the next iteration is for."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng((self._seed, self._epoch))
        order = random.permutation(len(self._lengths))
        if not self._by_length:
            return iter(order.tolist())
        together = self._batch_size * _BATCHES_SORTED_TOGETHER
        batches = []
        for start in range(0, len(order), together):
            part = order[start : start + together]
            part = part[np.argsort(-self._lengths[part], kind="stable")]
            batches += [
                part[at : at + self._batch_size] for at in range(0, len(part), self._batch_size)
            ]
        # A batch that is not full must stay last: batches are cut from the order by counting.
        full = [batch for batch in batches if len(batch) == self._batch_size]
        rest = [batch for batch in batches if len(batch) < self._batch_size]
        shuffled = [full[index] for index in random.permutation(len(full))] + rest
        return iter(np.concatenate(shuffled).tolist())


class PaddedRows:
    """Makes a batch of one row per sequence, padded at the end to the longest."""

    packs = False

    def __init__(self, rows: Sequence[TokenRow], pad_id: int) -> None:
        self.rows = rows
        self._pad_id = pad_id

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence."""
        return [len(row) for row in self.rows]

    def __call__(self, features: Sequence[dict[str, int]]) -> dict[str, Any]:
        return with_source([self.rows[one["row"]] for one in features], self.make)

    def make(self, rows: Sequence[TokenRow]) -> dict[str, Any]:
        """A batch of rows."""
        return padded_batch(rows, self._pad_id)


class PackedRows:
    """Makes a batch of several rows per sequence, kept apart in attention."""

    packs = True

    def __init__(self, rows: Sequence[TokenRow], pad_id: int, capacity: int) -> None:
        self.rows = rows
        self._pad_id = pad_id
        self._packs = pack_rows([len(row) for row in rows], capacity)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence."""
        return [sum(len(self.rows[row]) for row in pack) for pack in self._packs]

    def __call__(self, features: Sequence[dict[str, int]]) -> dict[str, Any]:
        packs = [[self.rows[row] for row in self._packs[one["row"]]] for one in features]
        return with_source(packs, self.make)

    def make(self, packs: Sequence[list[TokenRow]]) -> dict[str, Any]:
        """A batch of packs."""
        return packed_batch(packs, self._pad_id)


def with_source(
    items: Sequence[Any], make: Callable[[Sequence[Any]], dict[str, Any]]
) -> dict[str, Any]:
    """The batch of items, and what it was made of."""
    return make(items) | {SOURCE: Source(items)}


def padded_batch(rows: Sequence[TokenRow], pad_id: int) -> dict[str, Any]:
    """A row per sequence, as tensors of the shape (rows, longest row).

    There is no attention mask: under causal attention no real token sees the padding behind it, and the
    kernels without a mask are the fast ones.
    """
    longest = max(len(row) for row in rows)
    ids = np.full((len(rows), longest), pad_id, np.int64)
    labels = np.full((len(rows), longest), IGNORED, np.int64)
    for line, row in enumerate(rows):
        ids[line, : len(row)] = row.ids
        labels[line, : len(row)] = row.labels
    positions = torch.arange(longest).expand(len(rows), longest)
    return _batch(ids, labels, positions, rows)


def packed_batch(packs: Sequence[Sequence[TokenRow]], pad_id: int) -> dict[str, Any]:
    """Several rows per sequence, as tensors of the shape (packs, longest pack).

    Positions begin again at 0 with every row and no attention mask is given: transformers then builds
    the mask that keeps the rows apart, for sdpa and eager attention, as long as no cache is used.
    """
    longest = max(sum(len(row) for row in pack) for pack in packs)
    ids = np.full((len(packs), longest), pad_id, np.int64)
    labels = np.full((len(packs), longest), IGNORED, np.int64)
    positions = np.zeros((len(packs), longest), np.int64)
    for line, pack in enumerate(packs):
        at = 0
        for row in pack:
            end = at + len(row)
            ids[line, at:end], labels[line, at:end] = row.ids, row.labels
            positions[line, at:end] = np.arange(len(row))
            at = end
        positions[line, at:] = np.arange(longest - at)
    return _batch(ids, labels, torch.from_numpy(positions), [row for pack in packs for row in pack])


def _batch(
    ids: Any, labels: Any, positions: torch.Tensor, rows: Sequence[TokenRow]
) -> dict[str, Any]:
    return {
        "input_ids": torch.from_numpy(ids),
        "labels": torch.from_numpy(labels),
        "position_ids": positions,
        "rows": rows,
    }
