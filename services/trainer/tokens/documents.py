"""Texts -> token rows for pre-training: everything is learned, and long documents are split, not cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np

from services.trainer.formats import Example, PlainText
from services.trainer.tokens.encoder import Encoder
from services.trainer.tokens.examples import nothing_to_learn
from services.trainer.tokens.report import TokenReport
from services.trainer.tokens.rows import TokenRow, token_row

_AT_ONCE = 64


class DocumentTokenizer:
    """Turns texts into rows; see ExampleTokenizer for what both have.

    A document that is too long becomes several rows, of which each begins with the last token of the one
    before, which is not learned again: so each token of it is learned exactly once.

    Args:
        tokenizer: the base's.
        max_length_tokens: longer documents are split.
        shortest_tokens: documents of fewer are left out; 0 for none.
        longest_tokens: documents of more are left out; 0 for none.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_length_tokens: int,
        *,
        shortest_tokens: int = 0,
        longest_tokens: int = 0,
    ) -> None:
        self._encoder = Encoder(tokenizer)
        self._max = max_length_tokens
        self._shortest = shortest_tokens
        self._longest = longest_tokens

    def tokenize(self, examples: Iterable[Example]) -> tuple[list[TokenRow], TokenReport]:
        """All rows.

        Raises:
            GraftError: BAD_DATA, when there are none.
        """
        report = TokenReport()
        rows = list(self.iterate(examples, report))
        if not rows:
            raise nothing_to_learn(report)
        return rows, report

    def iterate(self, examples: Iterable[Example], report: TokenReport) -> Iterator[TokenRow]:
        """The rows, one after the other; reads a few documents ahead."""
        source = iter(examples)
        while part := list(islice(source, _AT_ONCE)):
            texts = [one.content.text for one in part if isinstance(one.content, PlainText)]
            for example, ids in zip(part, self._encoder.texts(texts), strict=True):
                for row in self._pieces(example, ids, report):
                    report.count(row)
                    yield row

    def _pieces(self, example: Example, ids: list[int], report: TokenReport) -> Iterator[TokenRow]:
        if report.left_out(example.place, len(ids), self._shortest, self._longest):
            return
        if len(ids) < 2:
            report.drop(example.place, "nothing in them follows their first token")
            return
        if len(ids) > self._max:
            report.split.add(example.place)
        whole = token_row(example.place, ids, np.ones(len(ids), np.bool_))
        yield from split_row(whole, self._max)


def split_row(row: TokenRow, max_length_tokens: int) -> Iterator[TokenRow]:
    """The rows that a row becomes; the first token of each but the first is the last of the one before."""
    if len(row) <= max_length_tokens:
        yield row
        return
    for start in range(0, len(row) - 1, max_length_tokens - 1):
        end = start + max_length_tokens
        yield token_row(row.place, row.ids[start:end], row.learned[start:end].copy())
