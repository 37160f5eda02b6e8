"""A row's tokens as text again, with what is learned of it and what is cut off."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np

from services.trainer.preflight.report import Segment, Shown
from services.trainer.tokens import TokenRow


def show(tokenizer: Any, row: TokenRow, max_tokens: int, answer: str) -> Shown:
    """The row decoded, in pieces that are learned or not, before and behind the cut.

    Args:
        row: before it is cut.
        max_tokens: where it is cut.
        answer: what the row is called where there are several of a kind, for example "chosen".
    """
    marks = [(bool(learned), at >= max_tokens) for at, learned in enumerate(row.learned)]
    segments = []
    start = 0
    for (learned, cut), run in groupby(marks):
        end = start + sum(1 for _ in run)
        text = tokenizer.decode(row.ids[start:end], clean_up_tokenization_spaces=False)
        segments.append(Segment(text, learned, cut))
        start = end
    learned_tokens = int(np.count_nonzero(row.learned))
    return Shown(str(row.place), tuple(segments), len(row), learned_tokens, answer)
