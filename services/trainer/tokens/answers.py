"""The last answer of a conversation or a completion, and the prompt before it, as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from services.trainer.formats import Completion, Conversation, Place
from services.trainer.tokens.encoder import Encoder
from services.trainer.tokens.spans import span_tokens
from services.trainer.tokens.templates import ChatTemplate, Rendered, turns_not_found


@dataclass(frozen=True, slots=True)
class Answer:
    """A prompt and an answer with its end, as ids and as the texts that they are of."""

    prompt: list[int]
    ids: list[int]
    prompt_text: str
    text: str
    special: bool


class AnswerEncoder:
    """Encodes prompts and answers.

    Args:
        tokenizer: the base's.
        end_ids: tokens that end an answer; one that follows an answer belongs to it.
    """

    def __init__(self, tokenizer: Any, end_ids: frozenset[int]) -> None:
        self._encoder = Encoder(tokenizer)
        self._template = ChatTemplate(tokenizer, "last_turn")
        self._ends = end_ids

    def encode(
        self, contents: Sequence[Conversation | Completion], places: Sequence[Place]
    ) -> list[Answer | None]:
        """The answers in their order; None where the template does not show where one is.

        Raises:
            GraftError: BAD_DATA, for a row that the template refuses; INVALID_SPEC, when it shows none.
        """
        found: list[Answer | None] = [None] * len(contents)
        talks = [i for i, content in enumerate(contents) if isinstance(content, Conversation)]
        texts = [i for i, content in enumerate(contents) if isinstance(content, Completion)]
        rendered = [self._render(contents[i], places[i]) for i in talks]
        if rendered and not any(one.spans for one in rendered):
            raise turns_not_found(places[talks[0]])
        for i, answer in zip(talks, self._of_rendered(rendered), strict=True):
            found[i] = answer
        for i, answer in zip(texts, self._of_texts([contents[i] for i in texts]), strict=True):
            found[i] = answer
        return found

    def apart(self, answer: Answer) -> Answer:
        """The same with prompt and answer encoded each for itself."""
        prompt = self._encoder.ids([answer.prompt_text], special=answer.special)[0]
        return replace(answer, prompt=prompt, ids=self._alone(answer))

    def _alone(self, answer: Answer) -> list[int]:
        ids = self._encoder.ids([answer.text], special=False)[0]
        return self._encoder.ended(ids) if answer.special else ids

    def _render(self, content: Conversation | Completion, place: Place) -> Rendered:
        assert isinstance(content, Conversation)
        return self._template.render(content, place)

    def _of_rendered(self, rendered: Sequence[Rendered]) -> list[Answer | None]:
        encodings = self._encoder.encode([one.text for one in rendered], special=False)
        return [
            self._last(one, encoding) for one, encoding in zip(rendered, encodings, strict=True)
        ]

    def _last(self, one: Rendered, encoding: Any) -> Answer | None:
        if not one.spans:
            return None
        start, end = one.spans[-1]
        tokens = span_tokens(encoding, (start, end))
        if tokens is None:
            return None
        ids: list[int] = encoding.ids
        first, after = tokens
        if after < len(ids) and ids[after - 1] not in self._ends and ids[after] in self._ends:
            after += 1
        text = one.text[start : max(end, encoding.token_to_chars(after - 1)[1])]
        answer = Answer(ids[:first], ids[first:after], one.text[:start], text, special=False)
        aligned = first == 0 or encoding.token_to_chars(first - 1)[1] <= start
        return answer if aligned else self.apart(answer)

    def _of_texts(self, contents: Sequence[Conversation | Completion]) -> list[Answer]:
        pairs = [content for content in contents if isinstance(content, Completion)]
        return [
            Answer(prompt, ids, pair.prompt, pair.completion, special=True)
            for pair, (prompt, ids) in zip(pairs, self._encoder.completions(pairs), strict=True)
        ]
