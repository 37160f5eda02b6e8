"""Prompts and answers as token ids, for objectives that compare answers or weigh them.

Turns are rendered and encoded as ExampleTokenizer does it, so a prompt has the ids that it is served with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeVar

from services.trainer.formats import (
    Completion,
    Conversation,
    Example,
    Labelled,
    Place,
    Preference,
)
from services.trainer.formats.base import bad_row
from services.trainer.tokens.answers import Answer, AnswerEncoder
from services.trainer.tokens.examples import nothing_to_learn
from services.trainer.tokens.report import TokenReport

_AT_ONCE = 256
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class PreferenceRow:
    """A prompt and two answers to it, each with the token that ends it, as token ids."""

    place: Place
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


@dataclass(frozen=True, slots=True)
class LabelledRow:
    """A prompt and an answer with the token that ends it, as token ids, and whether it is a good one."""

    place: Place
    prompt: list[int]
    answer: list[int]
    good: bool


class PairTokenizer:
    """Turns preferences and labelled answers into token ids.

    Args:
        tokenizer: the base's.
        max_length_tokens: of a prompt with its answer; longer answers are cut at the end, and rows whose
            prompt alone is that long are left out.
        end_ids: tokens that end an answer.
        shortest_tokens: rows of fewer are left out; 0 for none.
        longest_tokens: rows of more, before they are cut, are left out; 0 for none.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_length_tokens: int,
        end_ids: Iterable[int],
        *,
        shortest_tokens: int = 0,
        longest_tokens: int = 0,
    ) -> None:
        self._max = max_length_tokens
        self._ends = frozenset(end_ids)
        self._answers = AnswerEncoder(tokenizer, self._ends)
        self._shortest = shortest_tokens
        self._longest = longest_tokens

    def preferences(self, examples: Iterable[Example]) -> tuple[list[PreferenceRow], TokenReport]:
        """The rows of Preference examples.

        Raises:
            GraftError: BAD_DATA, when no row is left or the template refuses one; INVALID_SPEC, when there
                is no chat template, or one in which the answer cannot be found.
        """
        return _all(examples, self._preferences)

    def labelled(self, examples: Iterable[Example]) -> tuple[list[LabelledRow], TokenReport]:
        """The rows of Labelled examples.

        Raises:
            GraftError: as preferences().
        """
        return _all(examples, self._labelled)

    def _preferences(self, part: list[Example], report: TokenReport) -> Iterator[PreferenceRow]:
        pairs = [one.content for one in part if isinstance(one.content, Preference)]
        contents = [content for pair in pairs for content in (pair.chosen, pair.rejected)]
        answers = self._encode(contents, [one.place for one in part for _ in range(2)])
        for example, chosen, rejected in zip(part, answers[::2], answers[1::2], strict=True):
            place = example.place
            if chosen is None or rejected is None:
                report.drop(place, "the chat template does not show where their answers are")
                continue
            chosen, rejected = self._same_prompt(chosen, rejected, place)
            if not self._fits(place, report, chosen, rejected):
                continue
            chosen, rejected = self._cut(chosen), self._cut(rejected)
            if chosen.ids == rejected.ids:
                report.drop(place, f"both answers are the same in {self._max} tokens")
                continue
            self._count(place, report, chosen, rejected)
            yield PreferenceRow(place, chosen.prompt, chosen.ids, rejected.ids)

    def _labelled(self, part: list[Example], report: TokenReport) -> Iterator[LabelledRow]:
        rows = [one.content for one in part if isinstance(one.content, Labelled)]
        answers = self._encode([row.answer for row in rows], [one.place for one in part])
        for example, row, answer in zip(part, rows, answers, strict=True):
            if answer is None:
                report.drop(
                    example.place, "the chat template does not show where their answers are"
                )
            elif self._fits(example.place, report, answer):
                answer = self._cut(answer)
                self._count(example.place, report, answer)
                yield LabelledRow(example.place, answer.prompt, answer.ids, row.good)

    def _encode(
        self, contents: Sequence[Conversation | Completion], places: Sequence[Place]
    ) -> list[Answer | None]:
        return self._answers.encode(contents, places)

    def _same_prompt(self, chosen: Answer, rejected: Answer, place: Place) -> tuple[Answer, Answer]:
        if chosen.prompt == rejected.prompt:
            return chosen, rejected
        if chosen.prompt_text != rejected.prompt_text:
            raise bad_row(
                place,
                "its two answers do not follow the same turns",
                "Let chosen and rejected differ in the last turn only, or remove the row.",
            )
        # A token that reaches over the boundary depends on the answer; encoded apart, the prompt does not.
        return self._answers.apart(chosen), self._answers.apart(rejected)

    def _fits(self, place: Place, report: TokenReport, *answers: Answer) -> bool:
        longest = max(len(answer.prompt) + len(answer.ids) for answer in answers)
        if report.left_out(place, longest, self._shortest, self._longest):
            return False
        if len(answers[0].prompt) >= self._max:
            report.drop(place, f"max_length_tokens ({self._max}) cuts off their whole answer")
            return False
        if longest > self._max:
            report.cut.add(place)
        elif any(not self._ends.intersection(answer.ids[-1:]) for answer in answers):
            report.unended.add(place)
        return True

    def _cut(self, answer: Answer) -> Answer:
        return replace(answer, ids=answer.ids[: self._max - len(answer.prompt)])

    def _count(self, place: Place, report: TokenReport, *answers: Answer) -> None:
        report.rows += 1
        report.tokens += len(answers[0].prompt) + sum(len(answer.ids) for answer in answers)
        report.learned_tokens += sum(len(answer.ids) for answer in answers)


def _all(
    examples: Iterable[Example], make: Callable[[list[Example], TokenReport], Iterator[R]]
) -> tuple[list[R], TokenReport]:
    report = TokenReport()
    rows: list[R] = []
    source = iter(examples)
    while part := list(islice(source, _AT_ONCE)):
        rows.extend(make(part, report))
    if not rows:
        raise nothing_to_learn(report)
    return rows, report
