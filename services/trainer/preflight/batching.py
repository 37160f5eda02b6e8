"""How many sequences an epoch has and how much of its batches is padding; what batches.py would make, without torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from services.trainer.spec import Hyperparameters
from services.trainer.tokens.packing import pack_rows


def sequences(lengths: NDArray[np.int64], hyper: Hyperparameters, max_tokens: int) -> int:
    """Sequences of an epoch: rows, or packs of them; lengths has the shape (rows,)."""
    if hyper.packing:
        return len(pack_rows(lengths.tolist(), max_tokens))
    return len(lengths)


def padding_fraction(lengths: NDArray[np.int64], hyper: Hyperparameters, max_tokens: int) -> float:
    """The part of an epoch's tokens that is padding; lengths has the shape (rows,)."""
    if not len(lengths):
        return 0.0
    if hyper.packing:
        packs = pack_rows(lengths.tolist(), max_tokens)
        lengths = np.array([lengths[pack].sum() for pack in packs])
    order = np.sort(lengths) if hyper.group_by_length else lengths
    size = hyper.micro_batch_size
    padded = sum(
        int(order[at : at + size].max()) * len(order[at : at + size])
        for at in range(0, len(order), size)
    )
    return 1.0 - float(lengths.sum()) / padded
