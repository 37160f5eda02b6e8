"""Examples -> token rows with labels: only what shall be learned has one. No padding here (see run/batches.py)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from graft.errors import GraftError, Reason
from numpy.typing import NDArray

from services.trainer.formats import Completion, Conversation, Example, PlainText
from services.trainer.tokens.report import TokenReport, named_places
from services.trainer.tokens.rows import IGNORED, Ids, TokenRow, token_row
from services.trainer.tokens.templates import ChatTemplate, Span

_AT_ONCE = 256


class ExampleTokenizer:
    """Turns examples into token rows.

    Args:
        tokenizer: the base's.
        max_length_tokens: longer rows are cut at the end.
        end_ids: tokens that end an answer; one that follows an answer is learned with it.
    """

    def __init__(self, tokenizer: Any, max_length_tokens: int, end_ids: Iterable[int]) -> None:
        self._tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer)
        self._max = max_length_tokens
        self._end_ids = np.array(sorted(end_ids), dtype=np.int64)

    def tokenize(self, examples: Sequence[Example]) -> tuple[list[TokenRow], TokenReport]:
        """All rows that have something to learn.

        Raises:
            GraftError: BAD_DATA, when none has, naming rows and reasons.
        """
        report = TokenReport()
        rows = [row for row in self._rows(examples, report) if self._keep(row, report)]
        rows = [self._cut(row) for row in rows]
        if not rows:
            places = named_places([place for place, _ in report.dropped])
            why = " or ".join(sorted({why for _, why in report.dropped}))
            raise GraftError(
                Reason.BAD_DATA,
                f"No row has anything to learn: {why} ({places})",
                next_step="Raise hyperparameters.max_length_tokens or shorten the prompts."
                if any("cuts off" in why for _, why in report.dropped)
                else "Check that the rows have answers, and that the base's chat template shows them.",
            )
        report.rows = len(rows)
        report.tokens = sum(len(row) for row in rows)
        report.learned_tokens = sum(int((row.labels != IGNORED).sum()) for row in rows)
        return rows, report

    def _keep(self, row: TokenRow, report: TokenReport) -> bool:
        too_long = len(row) > self._max
        if (row.labels[: self._max] != IGNORED).any():
            if too_long:
                report.cut.append(row.place)
            return True
        learned = bool((row.labels != IGNORED).any())
        why = (
            f"max_length_tokens ({self._max}) cuts off their whole answer"
            if learned
            else "nothing in them is an answer of the assistant"
        )
        report.dropped.append((row.place, why))
        return False

    def _cut(self, row: TokenRow) -> TokenRow:
        if len(row) <= self._max:
            return row
        return TokenRow(row.place, row.ids[: self._max], row.labels[: self._max])

    def _rows(self, examples: Sequence[Example], report: TokenReport) -> Iterator[TokenRow]:
        source = iter(examples)
        while part := list(islice(source, _AT_ONCE)):
            # A file has one format, so all of a part are of one kind.
            if isinstance(part[0].content, Conversation):
                yield from self._conversations(part, report)
            elif isinstance(part[0].content, Completion):
                yield from self._completions(part)
            else:
                yield from self._texts(part)

    def _conversations(self, part: list[Example], report: TokenReport) -> Iterator[TokenRow]:
        rendered = []
        for example in part:
            assert isinstance(example.content, Conversation)
            rendered.append(self._template.render(example.content, example.place))
        encoded = self._tokenizer(
            [one.text for one in rendered],
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
        )
        for example, one, ids, offsets in zip(
            part, rendered, encoded["input_ids"], encoded["offset_mapping"], strict=True
        ):
            report.unsure_turns += one.unsure_turns
            learned = self._learned(np.array(ids, np.int64), np.array(offsets), one.spans)
            yield token_row(example.place, ids, learned)

    def _learned(self, ids: Ids, offsets: Ids, spans: list[Span]) -> NDArray[np.bool_]:
        """Which tokens lie within the spans, with the end token that directly follows one."""
        learned = np.zeros(len(ids), dtype=np.bool_)
        if not len(ids):
            return learned
        starts, ends = offsets[:, 0], offsets[:, 1]
        for start, end in spans:
            inside = (starts >= start) & (ends <= end) & (ends > starts)
            learned |= inside
            last = int(np.flatnonzero(inside)[-1]) if inside.any() else -1
            if 0 <= last < len(ids) - 1 and ids[last] not in self._end_ids:
                learned[last + 1] |= ids[last + 1] in self._end_ids
        return learned

    def _completions(self, part: list[Example]) -> Iterator[TokenRow]:
        pairs = [example.content for example in part if isinstance(example.content, Completion)]
        prompts = self._encode([pair.prompt for pair in pairs])
        wholes = self._encode([pair.prompt + pair.completion for pair in pairs])
        # Where a token would reach over the boundary, the two are encoded apart: a served prompt is, too.
        alone = self._encode([pair.completion for pair in pairs], special=False)
        for example, prompt, whole, completion in zip(part, prompts, wholes, alone, strict=True):
            ids = whole if whole[: len(prompt)] == prompt else prompt + completion
            ids = self._ended(ids)
            yield token_row(example.place, ids, np.arange(len(ids)) >= len(prompt))

    def _texts(self, part: list[Example]) -> Iterator[TokenRow]:
        texts = [example.content.text for example in part if isinstance(example.content, PlainText)]
        for example, ids in zip(part, self._encode(texts), strict=True):
            ended = self._ended(ids)
            yield token_row(example.place, ended, np.ones(len(ended), np.bool_))

    def _encode(self, texts: list[str], *, special: bool = True) -> list[list[int]]:
        encoded = self._tokenizer(texts, add_special_tokens=special, return_attention_mask=False)
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def _ended(self, ids: list[int]) -> list[int]:
        end = self._tokenizer.eos_token_id
        return ids if end is None or (ids and ids[-1] == end) else [*ids, end]


def end_token_ids(tokenizer: Any, generation_config: Any) -> set[int]:
    """The tokens that end an answer, as the tokenizer and the model's generation settings name them."""
    named = getattr(generation_config, "eos_token_id", None)
    ids = set(named if isinstance(named, list) else [named])
    return {token for token in ids | {tokenizer.eos_token_id} if token is not None}
