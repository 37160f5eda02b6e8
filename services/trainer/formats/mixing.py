"""Mixes several sets by weights: small ones are repeated until the shares are those of the weights."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from graft.errors import GraftError, Reason

# A weight that repeats a set more often than this is a slip, and would fill the memory.
_MOST_PASSES = 1000
T = TypeVar("T")


def mixed_sizes(sizes: Sequence[int], weights: Sequence[float]) -> list[int]:
    """How many rows each set gives to the mix: all of its own at least, and in the weights' proportions.

    The set with the most rows for its weight is used once; each share is right within one row.

    Raises:
        GraftError: INVALID_SPEC, when a set would have to be repeated beyond reason.
    """
    if not any(weights):
        return list(sizes)
    scale = max(size / weight for size, weight in zip(sizes, weights, strict=True))
    for index, (size, weight) in enumerate(zip(sizes, weights, strict=True)):
        if scale * weight > _MOST_PASSES * size:
            raise GraftError(
                Reason.INVALID_SPEC,
                f"dataset.sources[{index}].weight {weight:g} repeats its {size} rows "
                f"{scale * weight / size:.0f} times beside the other sets",
                next_step="Lower that weight, raise the others', or add rows to the set.",
                field=f"dataset.sources[{index}].weight",
            )
    return [round(scale * weight) for weight in weights]


def mix(sets: Sequence[list[T]], weights: Sequence[float], seed: int) -> list[T]:
    """The rows of all sets, one set after the other, repeated as the weights say.

    A set is repeated in whole passes and a random part without repetition, so no row is in the mix twice
    more often than another of its set.

    Args:
        weights: one for each set; all 0 uses every row once.

    Raises:
        GraftError: INVALID_SPEC.
    """
    sizes = mixed_sizes([len(rows) for rows in sets], weights)
    chosen = random.Random(seed)
    result: list[T] = []
    for rows, size in zip(sets, sizes, strict=True):
        passes, part = divmod(size, len(rows))
        for _ in range(passes):
            result += rows
        result += (rows[index] for index in sorted(chosen.sample(range(len(rows)), part)))
    return result


def interleave(sets: Sequence[Callable[[], Iterator[T]]], weights: Sequence[float]) -> Iterator[T]:
    """Rows of several sets without end, as they are read: at every moment in the weights' proportions.

    Args:
        sets: each begins to read its set anew; a set that ends is begun again.
        weights: one for each set; all 0 reads one set after the other, again and again.
    """
    if not any(weights):
        while True:
            yield from itertools.chain.from_iterable(begin() for begin in sets)
    total = sum(weights)
    running = [_again(begin) for begin in sets]
    # Each set earns its share with every row; whoever has earned the most gives the next one.
    earned = [0.0] * len(sets)
    while True:
        earned = [have + weight / total for have, weight in zip(earned, weights, strict=True)]
        index = max(range(len(sets)), key=earned.__getitem__)
        earned[index] -= 1.0
        yield next(running[index])


def _again(begin: Callable[[], Iterator[T]]) -> Iterator[T]:
    while True:
        yield from begin()
