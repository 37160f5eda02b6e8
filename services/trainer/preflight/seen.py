"""Which rows were seen: the same ones twice, the same question with other answers, training rows held out as well."""

from __future__ import annotations

import random

from services.trainer.formats import Example
from services.trainer.formats.cleaning import content_key
from services.trainer.preflight.report import Rows
from services.trainer.preflight.text_checks import (
    broken_encoding,
    question_key,
    texts,
    unfilled_placeholder,
)


class Seen:
    """Looks at the text of each row; keeps a few bytes of it."""

    def __init__(self) -> None:
        self._all: set[bytes] = set()
        self._order: list[bytes] = []
        self._questions: dict[bytes, bytes] = {}
        self.duplicates = Rows()
        self.other_answers = Rows()
        self.encoding = Rows()
        self.placeholders = Rows()
        self.overlap = Rows()

    def is_wanted(self, example: Example, dedupe: bool) -> bool:
        """Whether a training row is kept; notes what is to note."""
        self._look(example)
        content = content_key(example.content)
        if content in self._all:
            if dedupe:
                return False
            self.duplicates.add(example.place)
        else:
            self._all.add(content)
            self._look_at_question(example, content)
        self._order.append(content)
        return True

    def held_out(self, example: Example) -> None:
        """Takes a row of an evaluation set."""
        self._look(example)
        if content_key(example.content) in self._all:
            self.overlap.add(example.place)

    def split(self, fraction: float, seed: int) -> int:
        """Holds out that fraction of the training rows as the worker does; notes those that stay as well."""
        count = len(self._order)
        held_out = round(count * fraction)
        chosen = set(random.Random(seed).sample(range(count), held_out))
        stays = {value for index, value in enumerate(self._order) if index not in chosen}
        self.overlap.count += sum(self._order[index] in stays for index in chosen)
        return held_out

    def _look(self, example: Example) -> None:
        for text in texts(example.content):
            if why := broken_encoding(text):
                self.encoding.add(example.place, why)
                break
        for text in texts(example.content):
            if found := unfilled_placeholder(text):
                self.placeholders.add(example.place, found)
                break

    def _look_at_question(self, example: Example, content: bytes) -> None:
        question = question_key(example.content)
        if question is None:
            return
        if self._questions.setdefault(question, content) != content:
            self.other_answers.add(example.place)
