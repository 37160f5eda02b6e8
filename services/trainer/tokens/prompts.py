"""Examples -> prompts as tokens, exactly as they are served, each with the answer that is looked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from graft.errors import GraftError, Reason

from services.trainer.formats import Completion, Conversation, Example, Place, Prompt
from services.trainer.tokens.encoder import Encoder
from services.trainer.tokens.report import Noted
from services.trainer.tokens.templates import ChatTemplate


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A prompt as token ids, and the right answer to it; None where there is none."""

    place: Place
    ids: list[int]
    answer: str | None


class PromptTokenizer:
    """Turns examples into prompts: prompts as they are, conversations without their last answer.

    Args:
        tokenizer: the base's.
        max_tokens: longer prompts are left out, because a cut one asks something else.
        shortest_tokens: shorter prompts are left out; 0 for none.
        longest_tokens: longer prompts are left out too; 0 for none.
    """

    def __init__(
        self, tokenizer: Any, max_tokens: int, shortest_tokens: int = 0, longest_tokens: int = 0
    ) -> None:
        self._encoder = Encoder(tokenizer)
        self._template = ChatTemplate(tokenizer)
        self._max = max_tokens
        self._shortest = shortest_tokens
        self._longest = longest_tokens

    def tokenize(self, examples: Iterable[Example]) -> tuple[list[PromptRow], dict[str, Noted]]:
        """All prompts that can be answered, and those that are left out, by the reason.

        Raises:
            GraftError: BAD_DATA, when there is none; when a chat template does not take one.
        """
        left_out: dict[str, Noted] = {}
        rows = []
        for example in examples:
            row = self._row(example)
            if (why := self._refusal(len(row.ids))) is not None:
                left_out.setdefault(why, Noted()).add(row.place)
            else:
                rows.append(row)
        if not rows:
            why = "; ".join(f"{why} ({places})" for why, places in left_out.items())
            raise GraftError(
                Reason.BAD_DATA,
                f"No row has a prompt to answer: {why or 'there are no rows'}",
                next_step="Raise hyperparameters.max_length_tokens, lower "
                "objective.grpo.max_completion_tokens, or shorten the prompts.",
            )
        return rows, left_out

    def _row(self, example: Example) -> PromptRow:
        prompt, answer = asked_and_answered(example)
        if isinstance(prompt, str):
            ids = self._encoder.ids([prompt], special=True)[0]
        else:
            text = self._template.render_prompt(prompt, example.place)
            ids = self._encoder.ids([text], special=False)[0]
        return PromptRow(example.place, ids, answer)

    def _refusal(self, tokens: int) -> str | None:
        if not tokens:
            return "their prompt has no tokens"
        if tokens > self._max:
            return f"their prompt leaves no room for an answer (more than {self._max} tokens)"
        if tokens < self._shortest:
            return f"their prompt has fewer than {self._shortest} tokens"
        if self._longest and tokens > self._longest:
            return f"their prompt has more than {self._longest} tokens"
        return None


def asked_and_answered(example: Example) -> tuple[Conversation | str, str | None]:
    """What an example asks, and the answer in it: a prompt's own, the completion, or the last turn."""
    content = example.content
    if isinstance(content, Prompt):
        return content.prompt, content.answer
    if isinstance(content, Completion):
        return content.prompt, content.completion
    assert isinstance(content, Conversation), type(content)
    last = content.messages[-1]
    if last["role"] != "assistant":
        return content, None
    asked = Conversation(content.messages[:-1], content.tools)
    answer = last.get("content")
    return asked, answer if isinstance(answer, str) else None
