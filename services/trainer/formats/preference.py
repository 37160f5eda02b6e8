"""Preference rows: chosen and rejected answers to the same, for DPO, ORPO and reward models."""

from __future__ import annotations

import re

from services.trainer.formats.base import (
    Completion,
    Conversation,
    Example,
    Format,
    Place,
    Preference,
    Row,
    bad_row,
    empty_row,
)
from services.trainer.formats.exchanges import as_turns, read_answer, read_prompt
from services.trainer.formats.turns import check_system, read_tools, says_something

# All but the last word, which may go on after what is common.
_WORDS = re.compile(r"(.*\S)\s+\S*\Z", re.DOTALL)


class Preferences(Format):
    """Answers as text, as one message, or as whole lists of messages that begin alike."""

    name = "preference"
    fields = (
        *("prompt", "messages", "conversations", "instruction", "input", "system", "history"),
        *("tools", "chosen", "rejected"),
    )
    compares = True

    def fits(self, row: Row) -> bool:
        return "chosen" in row and "rejected" in row

    def read(self, row: Row, place: Place) -> Example:
        prompt = read_prompt(row, place)
        good, bad = read_answer(row, "chosen", place), read_answer(row, "rejected", place)
        if isinstance(prompt, str) and isinstance(good, str) and isinstance(bad, str):
            return Example(place, _texts(prompt, good, bad, place))
        tools = tuple(read_tools(row, place))
        chosen = _turns(prompt, good, "chosen", place)
        rejected = _turns(prompt, bad, "rejected", place)
        if chosen[:-1] != rejected[:-1]:
            raise bad_row(
                place,
                'its "chosen" and "rejected" part before their last turn',
                "Write answers to the same turns: they may differ in the last turn only.",
                "rejected",
            )
        pair = Preference(Conversation(tuple(chosen), tools), Conversation(tuple(rejected), tools))
        return Example(place, pair)


def _texts(prompt: str, chosen: str, rejected: str, place: Place) -> Preference:
    for field, answer in (("chosen", chosen), ("rejected", rejected)):
        if not answer.strip():
            raise empty_row(place, field)
    if not prompt:
        prompt = _common_words(chosen, rejected)
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    return Preference(Completion(prompt, chosen), Completion(prompt, rejected))


def _common_words(first: str, second: str) -> str:
    """What two whole texts begin with, up to the end of a word: their prompt."""
    ends = (index for index, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    common = first[: next(ends, min(len(first), len(second)))]
    match = _WORDS.match(common)
    return match[1] if match else ""


def _turns(prompt: list[Row] | str, answer: list[Row] | str, field: str, place: Place) -> list[Row]:
    """The whole conversation with an answer; a list that begins with the user is a whole one already."""
    if isinstance(answer, str):
        turns = [*as_turns(prompt), {"role": "assistant", "content": answer}]
    elif answer and answer[0]["role"] != "assistant":
        turns = answer
    else:
        turns = [*as_turns(prompt), *answer]
    if not turns or turns[-1]["role"] != "assistant":
        raise bad_row(
            place,
            f'its field "{field}" does not end with a turn of the assistant',
            "End it with the answer that is compared.",
            field,
        )
    if not says_something(turns[-1]):
        raise empty_row(place, field)
    check_system(turns, place, field)
    return turns
