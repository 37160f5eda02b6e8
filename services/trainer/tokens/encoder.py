"""Texts -> token ids, many at once, straight through the tokenizers library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from services.trainer.formats import Completion


class Encoder:
    """Encodes texts as the tokenizer of transformers does, without its work per row.

    Args:
        tokenizer: a fast one.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._end: int | None = tokenizer.eos_token_id

    def encode(self, texts: Sequence[str], *, special: bool) -> list[Any]:
        """An Encoding of the tokenizers library for each text, neither cut nor padded.

        Args:
            texts: what to encode.
            special: whether the tokens are added that the tokenizer puts around every text.
        """
        backend = self._tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        encodings: list[Any] = backend.encode_batch(list(texts), add_special_tokens=special)
        return encodings

    def ids(self, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        """Token ids of each text."""
        backend = self._tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        encodings = backend.encode_batch_fast(list(texts), add_special_tokens=special)
        return [encoding.ids for encoding in encodings]

    def texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text with the token that ends it."""
        return [self.ended(ids) for ids in self.ids(texts, special=True)]

    def completions(self, pairs: Sequence[Completion]) -> Iterator[tuple[list[int], list[int]]]:
        """Token ids of each prompt, as it is served, and of what follows it with its end."""
        prompts = self.ids([pair.prompt for pair in pairs], special=True)
        wholes = self.ids([pair.prompt + pair.completion for pair in pairs], special=True)
        # Where a token would reach over the boundary, the two are encoded apart: a served prompt is, too.
        alone = self.ids([pair.completion for pair in pairs], special=False)
        for prompt, whole, completion in zip(prompts, wholes, alone, strict=True):
            follows = whole[len(prompt) :] if whole[: len(prompt)] == prompt else completion
            yield prompt, self.ended(follows)

    def ended(self, ids: list[int]) -> list[int]:
        """The ids with the end token behind them, unless it is there or there is none."""
        return ids if self._end is None or (ids and ids[-1] == self._end) else [*ids, self._end]
