"""Rows that are read while they are trained on -> batches, for sets larger than memory.

The n-th sequence of a stream is the same whenever it is made: a run that goes on reads up to where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch

from services.trainer.run.batches import packed_batch, padded_batch, with_source
from services.trainer.tokens import TokenRow
from services.trainer.tokens.packing import pack_rows

_SHUFFLED_ROWS = 4096
_BATCHES_TOGETHER = 50
_PACKS_TOGETHER = 64
Rows = list[TokenRow]


class StreamedRows:
    """Makes batches of sequences that are rows, or packs of them, in the order in which they come.

    Args:
        begin: begins the rows; they never end.
        pad_id: fills batches.
        capacity: tokens of a pack; 0 for a row per sequence.
        batch_size: sequences in a batch.
        seed: of the order in which rows leave the shuffling buffer.
        by_length: whether rows of like length share a batch.
        done: called when the last sequence has been given.
        sequences: how many are wanted.
    """

    def __init__(
        self,
        begin: Callable[[], Iterator[TokenRow]],
        pad_id: int,
        *,
        sequences: int,
        capacity: int,
        batch_size: int,
        seed: int,
        by_length: bool,
        done: Callable[[], None],
    ) -> None:
        self._begin = begin
        self._pad_id = pad_id
        self._capacity = capacity
        self._batch_size = batch_size
        self._seed = seed
        self._by_length = by_length
        self._done = done
        self._next = 0
        self._running: Iterator[Rows] | None = None
        self.packs = capacity > 0
        self.sequences = sequences

    def __call__(self, features: Sequence[dict[str, int]]) -> dict[str, Any]:
        first = features[0]["row"]
        if self._running is None or first < self._next:
            self._running, self._next = self._sequences(), 0
        taken = list(islice(self._running, first - self._next, first - self._next + len(features)))
        self._next = first + len(features)
        if self._next >= self.sequences:
            self._done()
        return with_source(taken, self.make)

    def make(self, taken: Sequence[Rows]) -> dict[str, Any]:
        """A batch of sequences that were taken from the stream."""
        if self.packs:
            return packed_batch(taken, self._pad_id)
        return padded_batch([row for one in taken for row in one], self._pad_id)

    def _sequences(self) -> Iterator[Rows]:
        random = np.random.default_rng(self._seed)
        rows = shuffled(self._begin(), _SHUFFLED_ROWS, random)
        if self.packs:
            return _packs(rows, self._capacity, random)
        if self._by_length:
            return _by_length(rows, self._batch_size, random)
        return ([row] for row in rows)


class InOrder(torch.utils.data.Sampler[int]):
    """The order of a stream's sequences: that in which they come."""

    def __init__(self, sequences: int) -> None:
        self._sequences = sequences

    def begin_epoch(self, epoch: int) -> None:
        """A stream has no epochs."""

    def __len__(self) -> int:
        return self._sequences

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._sequences))


def shuffled(
    rows: Iterator[TokenRow], buffer_rows: int, random: np.random.Generator
) -> Iterator[TokenRow]:
    """The rows in random order, as far as a buffer of so many allows it."""
    buffer: list[TokenRow] = []
    for row in rows:
        if len(buffer) < buffer_rows:
            buffer.append(row)
            continue
        at = int(random.integers(buffer_rows))
        buffer[at], row = row, buffer[at]
        yield row
    random.shuffle(buffer)
    yield from buffer


def _packs(rows: Iterator[TokenRow], capacity: int, random: np.random.Generator) -> Iterator[Rows]:
    """Full packs: rows of many packs are gathered first, and packed together."""
    waiting: Rows = []
    tokens = 0
    for row in rows:
        waiting.append(row)
        tokens += len(row)
        if tokens >= _PACKS_TOGETHER * capacity:
            yield from _packed(waiting, capacity, random)
            waiting, tokens = [], 0
    yield from _packed(waiting, capacity, random)


def _packed(rows: Rows, capacity: int, random: np.random.Generator) -> Iterator[Rows]:
    packs = pack_rows([len(row) for row in rows], capacity)
    for index in random.permutation(len(packs)):
        yield [rows[row] for row in packs[index]]


def _by_length(
    rows: Iterator[TokenRow], batch_size: int, random: np.random.Generator
) -> Iterator[Rows]:
    """Rows of many batches are gathered first; those of like length follow each other, batch by batch."""
    while part := list(islice(rows, batch_size * _BATCHES_TOGETHER)):
        part.sort(key=lambda row: -len(row))
        batches = [part[at : at + batch_size] for at in range(0, len(part), batch_size)]
        for index in random.permutation(len(batches)):
            yield from ([row] for row in batches[index])
