"""Which tokens stand for a stretch of the text that they were made of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from services.trainer.tokens.rows import Mask

Span = tuple[int, int]


def span_tokens(encoding: Any, span: Span) -> Span | None:
    """The range of tokens that lie wholly within a range of characters; None where there are none.

    Args:
        encoding: of the tokenizers library.
        span: of characters, end exclusive.
    """
    start, end = span
    first = _first_within(encoding, start, end)
    last = _last_within(encoding, start, end)
    if first is None or last is None or last < first:
        return None
    return first, last + 1


def _first_within(encoding: Any, start: int, end: int) -> int | None:
    for position in range(start, end):
        token = encoding.char_to_token(position)  # None for white space that belongs to no token.
        if token is not None and encoding.token_to_chars(token)[0] >= start:
            return int(token)
    return None


def _last_within(encoding: Any, start: int, end: int) -> int | None:
    for position in range(end - 1, start - 1, -1):
        token = encoding.char_to_token(position)
        if token is not None and encoding.token_to_chars(token)[1] <= end:
            return _last_before(encoding, token, end)
    return None


def _last_before(encoding: Any, token: int, end: int) -> int:
    """The last token, from this one on, that ends there: byte-level tokens may be parts of one character."""
    while token + 1 < len(encoding):
        chars = encoding.token_to_chars(token + 1)
        if chars is None or chars[0] >= end or chars[1] > end or chars[1] <= chars[0]:
            break
        token += 1
    return token


def learned_tokens(encoding: Any, spans: Iterable[Span], end_ids: frozenset[int]) -> Mask:
    """The mask, of shape (tokens,), of tokens within the spans and of the end token right behind each."""
    learned = np.zeros(len(encoding), dtype=np.bool_)
    ids = encoding.ids
    for span in spans:
        tokens = span_tokens(encoding, span)
        if tokens is None:
            continue
        first, end = tokens
        if end < len(ids) and ids[end - 1] not in end_ids and ids[end] in end_ids:
            end += 1
        learned[first:end] = True
    return learned
