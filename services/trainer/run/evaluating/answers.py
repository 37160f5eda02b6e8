"""Answers of a model to prompts as they are served: greedy, many at once, and as long as memory lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from graft.errors import GraftError, Reason
from transformers import GenerationConfig

from services.trainer.formats import Completion, Conversation, Example, Place, Prompt
from services.trainer.run.trainers.common import without_dropout
from services.trainer.spec.evaluation import Answers
from services.trainer.tokens.prompts import PromptTokenizer, asked_and_answered


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt as token ids and as text, and the right answer to it."""

    place: Place
    ids: list[int]
    prompt: str
    reference: str


class QuestionReader:
    """Makes questions of examples: the prompt of the last answer, rendered as it is served.

    Args:
        tokenizer: with the chat template of the training.
        settings: how many, and how long answers may be.
        longest_tokens: what the model reads, prompt and answer together.
        log: takes a line for people.
    """

    def __init__(
        self, tokenizer: Any, settings: Answers, longest_tokens: int, log: Callable[[str], None]
    ) -> None:
        self._tokenizer = tokenizer
        self._settings = settings
        self._room = longest_tokens - settings.max_new_tokens
        self._longest = longest_tokens
        self._log = log

    def read(self, examples: Sequence[Example], what: str) -> list[Question]:
        """The first max_rows questions.

        Args:
            what: the rows in words, for messages: "held-out".

        Raises:
            GraftError: BAD_DATA, when no row has a prompt with an answer; INVALID_SPEC, when answers may be longer than the
                model reads.
        """
        if self._room < 1:
            raise GraftError(
                Reason.INVALID_SPEC,
                f"answers.max_new_tokens is {self._settings.max_new_tokens}, and the base reads "
                f"{self._longest} tokens, prompt and answer together",
                next_step="Lower answers.max_new_tokens.",
                field="evaluation.answers.max_new_tokens",
            )
        answered = [one for one in examples if _answer(one)]
        if not answered:
            raise GraftError(
                Reason.BAD_DATA,
                f"None of the {len(examples)} {what} rows has a prompt with an answer to compare with",
                next_step="Hold out conversations or prompts with completions, or leave out the figures "
                "that look at answers.",
            )
        chosen = answered[: self._settings.max_rows]
        rows, left_out = PromptTokenizer(self._tokenizer, self._room).tokenize(chosen)
        for why, places in left_out.items():
            self._log(f"{len(places)} {what} rows are not answered because {why} ({places}).")
        if len(answered) > len(chosen):
            self._log(f"The first {len(chosen)} of {len(answered)} {what} rows are answered.")
        texts = self._tokenizer.batch_decode([row.ids for row in rows])
        return [
            Question(row.place, row.ids, text, row.answer or "")
            for row, text in zip(rows, texts, strict=True)
        ]


def _answer(example: Example) -> str:
    if not isinstance(example.content, Conversation | Completion | Prompt):
        return ""
    return (asked_and_answered(example)[1] or "").strip()


class AnswerWriter:
    """Lets a model answer.

    Args:
        tokenizer: the base's.
        end_ids: tokens that end an answer.
        settings: how long answers may be, and how many are written at once.
        log: takes a line for people.
    """

    def __init__(
        self,
        tokenizer: Any,
        end_ids: frozenset[int],
        settings: Answers,
        log: Callable[[str], None],
    ) -> None:
        self._tokenizer = tokenizer
        self._log = log
        self._at_once = settings.batch_size
        pad_id = tokenizer.pad_token_id
        self._pad_id = 0 if pad_id is None else int(pad_id)
        self._config = GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=settings.max_new_tokens,
            eos_token_id=sorted(end_ids) or None,
            pad_token_id=self._pad_id,
            use_cache=True,
        )

    def write(
        self, model: Any, questions: Sequence[Question], check: Callable[[], None] = lambda: None
    ) -> list[str]:
        """The answers, in the questions' order, without special tokens.

        Args:
            model: a causal language model, adapted or not; not changed, and no random number is drawn.
            check: called before each batch; may raise.

        Raises:
            torch.OutOfMemoryError: one prompt alone does not fit.
        """
        order = sorted(range(len(questions)), key=lambda index: -len(questions[index].ids))
        written: dict[int, str] = {}
        with torch.no_grad(), without_dropout(model), _greedy(model, self._config):
            while len(written) < len(order):
                check()
                part = order[len(written) : len(written) + self._at_once]
                try:
                    texts = self._answer(model, [questions[index].ids for index in part])
                except torch.OutOfMemoryError:
                    if len(part) == 1:
                        raise
                    self._write_fewer_at_once(len(part))
                    continue
                written |= dict(zip(part, texts, strict=True))
        return [written[index] for index in range(len(questions))]

    def _write_fewer_at_once(self, tried: int) -> None:
        """Halves the batch after memory ran out."""
        self._at_once = tried // 2
        torch.cuda.empty_cache()
        self._log(
            f"Memory ran out while {tried} answers were generated at once; going on with "
            f"{self._at_once}."
        )

    def _answer(self, model: Any, prompts: Sequence[list[int]]) -> list[str]:
        longest = max(map(len, prompts))
        ids = torch.full((len(prompts), longest), self._pad_id)
        mask = torch.zeros((len(prompts), longest), dtype=torch.long)
        for line, prompt in enumerate(prompts):
            # Padding stands before the prompt: what is written must follow it.
            ids[line, longest - len(prompt) :] = torch.tensor(prompt)
            mask[line, longest - len(prompt) :] = 1
        written = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=self._config,
        )
        texts: list[str] = self._tokenizer.batch_decode(
            written[:, longest:], skip_special_tokens=True
        )
        return texts


@contextmanager
def _greedy(model: Any, config: GenerationConfig) -> Iterator[None]:
    """Takes away what the base's own settings would add: sampling, penalties, forbidden words."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = base.generation_config
    base.generation_config = config
    try:
        yield
    finally:
        base.generation_config = own
