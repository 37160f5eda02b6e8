"""Token rows: one example as tokens with labels. No padding here (see run/batches.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.trainer.formats import Place

IGNORED = -100
Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One example as tokens. labels[i] is ids[i] where it is learned, else IGNORED; labels[0] never is.

    Both arrays have the shape (tokens,).
    """

    place: Place
    ids: Ids
    labels: Ids

    def __len__(self) -> int:
        return len(self.ids)


def token_row(place: Place, ids: Sequence[int], learned: NDArray[np.bool_]) -> TokenRow:
    """The row of ids of which some are learned; the shape of both is (tokens,)."""
    array = np.array(ids, dtype=np.int64)
    labels = np.where(learned, array, IGNORED)
    labels[:1] = IGNORED  # Nothing comes before it, so nothing can predict it.
    return TokenRow(place, array, labels)
