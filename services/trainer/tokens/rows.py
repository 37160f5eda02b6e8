"""Token rows: one example as tokens, with what is learned of it. No padding here (see run/batches.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.trainer.formats import Place

IGNORED = -100
Ids = NDArray[np.int32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One example as tokens. learned[i] says whether ids[i] is learned; learned[0] never is.

    Both arrays have the shape (tokens,).
    """

    place: Place
    ids: Ids
    learned: Mask

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def labels(self) -> Ids:
        """ids where they are learned, else IGNORED; shape (tokens,)."""
        return np.where(self.learned, self.ids, np.int32(IGNORED))

    def cut(self, max_length_tokens: int) -> TokenRow:
        """Its beginning."""
        return TokenRow(self.place, self.ids[:max_length_tokens], self.learned[:max_length_tokens])


def token_row(place: Place, ids: Sequence[int] | Ids, learned: Mask) -> TokenRow:
    """The row of ids of which some are learned; the shape of both is (tokens,)."""
    learned[:1] = False  # Nothing comes before it, so nothing can predict it.
    return TokenRow(place, np.asarray(ids, dtype=np.int32), learned)
