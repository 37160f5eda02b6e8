"""Examples -> token rows: only what shall be learned is marked so. No padding here (see run/batches.py)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
from graft.errors import GraftError, Reason

from services.trainer.formats import Completion, Conversation, Example, PlainText
from services.trainer.tokens.encoder import Encoder
from services.trainer.tokens.report import TokenReport
from services.trainer.tokens.rows import TokenRow, token_row
from services.trainer.tokens.spans import learned_tokens
from services.trainer.tokens.templates import ChatTemplate, LossOn, turns_not_found

_AT_ONCE = 256
_NO_ANSWER = "nothing in them is an answer of the assistant"
_NOT_FOUND = "the chat template does not show where their answers are"


class ExampleTokenizer:
    """Turns examples into token rows.

    Args:
        tokenizer: the base's.
        max_length_tokens: longer rows are cut at the end.
        end_ids: tokens that end an answer; one that follows an answer is learned with it.
        loss_on: what is learned of conversations and completions; of texts everything is.
        shortest_tokens: rows of fewer are left out; 0 for none.
        longest_tokens: rows of more, before they are cut, are left out; 0 for none.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_length_tokens: int,
        end_ids: Iterable[int],
        *,
        loss_on: LossOn = "assistant",
        shortest_tokens: int = 0,
        longest_tokens: int = 0,
    ) -> None:
        self._encoder = Encoder(tokenizer)
        self._template = ChatTemplate(tokenizer, loss_on)
        self._max = max_length_tokens
        self._end_ids = frozenset(end_ids)
        self._everything = loss_on == "everything"
        self._shortest = shortest_tokens
        self._longest = longest_tokens

    def tokenize(self, examples: Iterable[Example]) -> tuple[list[TokenRow], TokenReport]:
        """All rows that have something to learn.

        Raises:
            GraftError: BAD_DATA, when none has, naming rows and reasons; as iterate().
        """
        report = TokenReport()
        rows = list(self.iterate(examples, report))
        if not rows:
            raise nothing_to_learn(report)
        return rows, report

    def iterate(self, examples: Iterable[Example], report: TokenReport) -> Iterator[TokenRow]:
        """The rows that have something to learn, one after the other; reads a few hundred ahead.

        Raises:
            GraftError: BAD_DATA, for a row that the chat template refuses; INVALID_SPEC, when there is no
                chat template, or one in which no turn of the assistant can be found.
        """
        source = iter(examples)
        while part := list(islice(source, _AT_ONCE)):
            for row in self._rows(part, report):
                if (kept := self._kept(row, report)) is not None:
                    report.count(kept)
                    yield kept

    def _kept(self, row: TokenRow, report: TokenReport) -> TokenRow | None:
        """The row, cut to the longest length; None if it is left out."""
        if report.left_out(row.place, len(row), self._shortest, self._longest):
            return None
        if not row.learned[: self._max].any():
            cut_off = f"max_length_tokens ({self._max}) cuts off their whole answer"
            report.drop(row.place, cut_off if row.learned.any() else _NO_ANSWER)
            return None
        if len(row) > self._max:
            report.cut.add(row.place)
            return row.cut(self._max)
        last = int(np.flatnonzero(row.learned)[-1])
        if int(row.ids[last]) not in self._end_ids:
            report.unended.add(row.place)
        return row

    def _rows(self, part: list[Example], report: TokenReport) -> Iterator[TokenRow]:
        """Rows in the order of the examples; those of one kind that stand together are encoded together."""
        start = 0
        while start < len(part):
            kind = type(part[start].content)
            end = start + 1
            while end < len(part) and type(part[end].content) is kind:
                end += 1
            yield from self._of_one_kind(part[start:end], report)
            start = end

    def _of_one_kind(self, part: list[Example], report: TokenReport) -> Iterator[TokenRow]:
        first = part[0].content
        if isinstance(first, Conversation):
            yield from self._conversations(part, report)
        elif isinstance(first, Completion):
            yield from self._completions(part)
        else:
            yield from self._texts(part)

    def _conversations(self, part: list[Example], report: TokenReport) -> Iterator[TokenRow]:
        rendered = [
            self._template.render(example.content, example.place)
            for example in part
            if isinstance(example.content, Conversation)
        ]
        unsure = sum(one.unsure_turns for one in rendered)
        if unsure and not any(one.spans for one in rendered):
            raise turns_not_found(part[0].place)
        report.unsure_turns += unsure
        encodings = self._encoder.encode([one.text for one in rendered], special=False)
        for example, one, encoding in zip(part, rendered, encodings, strict=True):
            if one.unsure_turns and not one.spans:
                report.drop(example.place, _NOT_FOUND)
                continue
            learned = learned_tokens(encoding, one.spans, self._end_ids)
            yield token_row(example.place, encoding.ids, learned)

    def _completions(self, part: list[Example]) -> Iterator[TokenRow]:
        pairs = [example.content for example in part if isinstance(example.content, Completion)]
        for example, (prompt, answer) in zip(part, self._encoder.completions(pairs), strict=True):
            learned = np.ones(len(prompt) + len(answer), np.bool_)
            learned[: 0 if self._everything else len(prompt)] = False
            yield token_row(example.place, prompt + answer, learned)

    def _texts(self, part: list[Example]) -> Iterator[TokenRow]:
        texts = [example.content.text for example in part if isinstance(example.content, PlainText)]
        for example, ids in zip(part, self._encoder.texts(texts), strict=True):
            yield token_row(example.place, ids, np.ones(len(ids), np.bool_))


def nothing_to_learn(report: TokenReport, kind: str = "") -> GraftError:
    """The error of a set of which every row is left out; kind says which rows, for example "held-out"."""
    reasons = "; ".join(f"{why} ({rows})" for why, rows in report.dropped.items())
    too_long = any("cuts off" in why for why in report.dropped)
    cleaned = any("cleaning." in why for why in report.dropped)
    next_step = "Check that the rows have answers, and that the chat template shows them."
    if too_long:
        next_step = "Raise hyperparameters.max_length_tokens or shorten the prompts."
    elif cleaned:
        next_step = "Widen dataset.cleaning.min_length_tokens and max_length_tokens."
    return GraftError(
        Reason.BAD_DATA,
        f"No {kind}{' ' if kind else ''}row has anything to learn: {reasons or 'there are no rows'}",
        next_step=next_step,
    )
