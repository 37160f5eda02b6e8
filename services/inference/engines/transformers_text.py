"""Tokens into text as they come: whole characters alone, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers.decoders import DecodeStream

# As many tokens before the answer as decide whether it begins with a space.
_CONTEXT_TOKENS = 8


class Text:
    """The text of one answer.

    Args:
        tokenizer: of transformers.
        prompt: the tokens before it.
        stop: strings that end it.
        min_tokens: before which none of them does.
        with_stop: what ends the answer is a part of its text.
        special: special tokens are, too.
    """

    def __init__(
        self,
        tokenizer: Any,
        prompt: Sequence[int],
        stop: Sequence[str],
        min_tokens: int,
        *,
        with_stop: bool = False,
        special: bool = False,
    ) -> None:
        self._decode = _decoder(tokenizer, list(prompt[-_CONTEXT_TOKENS:]), special)
        self._stop, self._min_tokens, self._with_stop = stop, min_tokens, with_stop
        # What may yet become a stop string is not told.
        self._held = 0 if with_stop else max(map(len, stop), default=1) - 1
        self._text, self._told, self._tokens = "", 0, 0

    def add(self, token: int, *, ends: bool = False) -> bool:
        """One more token; true when a stop string is complete, and the text ends before it.

        Args:
            ends: it ends the answer.
        """
        self._tokens += 1
        before = len(self._text)
        if not ends or self._with_stop:
            self._text += self._decode(token)
        if self._tokens <= self._min_tokens:
            return False
        found = [
            (at, at + len(stop))
            for stop in self._stop
            if (at := self._text.find(stop, max(0, before - len(stop) + 1))) >= 0
        ]
        if not found:
            return False
        begin, end = min(found)
        self._text = self._text[: end if self._with_stop else begin]
        return True

    def new(self, *, last: bool) -> str:
        """What has not been told yet and may be; with last, all that is left."""
        end = len(self._text) if last else max(self._told, len(self._text) - self._held)
        text = self._text[self._told : end]
        self._told = max(self._told, end)
        return text


def _decoder(tokenizer: Any, context: list[int], special: bool) -> Any:
    fast = getattr(tokenizer, "_tokenizer", None)
    if fast is None:
        return _Slow(tokenizer, context, not special)
    return _Fast(fast, context, not special)


class _Fast:
    """By the tokenizers library."""

    def __init__(self, tokenizer: Any, context: list[int], skip: bool) -> None:
        self._tokenizer, self._skip = tokenizer, skip
        self._stream = DecodeStream(ids=context, skip_special_tokens=skip)

    def __call__(self, token: int) -> str:
        try:
            return self._stream.step(self._tokenizer, token) or ""
        except Exception as error:
            if not str(error).startswith("Invalid prefix"):
                raise
            # Bytes that are no character can upset its state; it begins anew.
            self._stream = DecodeStream(skip_special_tokens=self._skip)
            return self._stream.step(self._tokenizer, token) or ""


class _Slow:
    """By decoding the last tokens twice: with the new one and without it."""

    def __init__(self, tokenizer: Any, context: list[int], skip: bool) -> None:
        self._tokenizer, self._ids, self._skip = tokenizer, context, skip
        self._from, self._read = 0, len(context)

    def __call__(self, token: int) -> str:
        self._ids.append(token)
        known = self._text(self._ids[self._from : self._read])
        text = self._text(self._ids[self._from :])
        if len(text) <= len(known) or text.endswith("�"):
            return ""
        self._from, self._read = self._read, len(self._ids)
        return text[len(known) :]

    def _text(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=self._skip))
