"""Which batches of an epoch each process of a team takes: the first one the first, and so on in turn.

So a step of several processes has the same rows as that of one with as many more accumulated batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from datasets import Dataset

# Marks a batch that is there so that every process has as many.
IDLE = "graft_idle"
_NOBODY = -1


class Share(torch.utils.data.Sampler[int]):
    """One process' part of an order of rows.

    Args:
        order: of all rows; it has a length and gives them anew each time.
        batch_size: of every batch but the last.
        rank: of the process.
        processes: how many there are.
    """

    def __init__(self, order: Any, batch_size: int, rank: int, processes: int) -> None:
        self._order = order
        self._batch_size = batch_size
        self._rank = rank
        self._processes = processes

    def begin_epoch(self, epoch: int) -> None:
        """Sets the epoch that the next iteration is for."""
        self._order.begin_epoch(epoch)

    def __len__(self) -> int:
        return sum(size for _, size in self._parts())

    def __iter__(self) -> Iterator[int]:
        rows = list(self._order)
        for start, size in self._parts():
            # The row behind the last is nobody's: see share_rows().
            yield from rows[start : start + size] if start < len(rows) else [len(rows)]

    def _parts(self) -> Iterator[tuple[int, int]]:
        """First place and size of each of its batches; an idle one is of one row."""
        rows, size = len(self._order), self._batch_size
        rounds = -(-rows // (size * self._processes))
        for number in range(rounds):
            start = (number * self._processes + self._rank) * size
            yield start, max(1, min(size, rows - start))


def share_rows(count: int) -> Dataset:
    """A data set of rows by their numbers; the one behind the last is nobody's."""
    return Dataset.from_dict({"row": np.append(np.arange(count), _NOBODY)})


def idle_aware(collator: Callable[[list[dict[str, int]]], Any]) -> Callable[..., Any]:
    """A collator that makes of nobody's row a batch in which nothing is learned."""

    def collate(features: list[dict[str, int]]) -> Any:
        if features[0]["row"] != _NOBODY:
            return collator(features)
        batch = dict(collator([{"row": 0}]))
        if "labels" in batch:
            batch["labels"] = torch.full_like(batch["labels"], -100)
        return batch | {IDLE: True}

    return collate
