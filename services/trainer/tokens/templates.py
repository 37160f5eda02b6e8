"""Renders conversations with the base's own chat template, and finds what the assistant says in the result.

The places come from the template's {% generation %} marks. A template without marks is rendered turn by
turn, and a place counts only where the rendered whole really begins with that rendered part.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from graft.errors import GraftError, Reason
from jinja2.exceptions import TemplateError

from services.trainer.formats import Conversation, Place
from services.trainer.formats.base import Row, bad_row

_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text, with the character ranges of the assistant's words.

    unsure_turns counts the assistant's turns whose range could not be made out; they are not learned.
    """

    text: str
    spans: list[Span]
    unsure_turns: int = 0


class ChatTemplate:
    """The chat template of a tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def render(self, conversation: Conversation, place: Place) -> Rendered:
        """Renders a conversation.

        Raises:
            GraftError: BAD_DATA, in the template's words; INVALID_SPEC when the base has no template.
        """
        tools = list(conversation.tools) or None
        template = self._template(tools)
        try:
            return _Renderer(self._tokenizer, template, tools).render(list(conversation.messages))
        except (TemplateError, TypeError, KeyError, AttributeError) as error:
            raise bad_row(
                place,
                f"the base's chat template does not take it: {error}",
                "Bring the turns into the order that the template wants, or remove the row.",
            ) from None

    def _template(self, tools: list[Row] | None) -> str:
        try:
            template: str = self._tokenizer.get_chat_template(tools=tools)
        except ValueError:
            raise GraftError(
                Reason.INVALID_SPEC,
                "The base's tokenizer has no chat template, which conversations need",
                next_step="Use a base with a chat template, or data with prompt and completion.",
                field="base.source",
            ) from None
        return template


class _Renderer:
    def __init__(self, tokenizer: Any, template: str, tools: list[Row] | None) -> None:
        self._template = template
        self._tools = tools
        self._eos: str = tokenizer.eos_token or ""
        self._values = dict(tokenizer.special_tokens_map)

    def render(self, messages: list[Row]) -> Rendered:
        if _MARKS.search(self._template):
            texts, spans = self._call(messages, marks=True)
            return Rendered(texts[0], [(start, end) for start, end in spans[0]])
        return self._find_turns(messages)

    def _call(self, messages: list[Row], *, marks: bool = False, prompt: bool = False) -> Any:
        from transformers.utils.chat_template_utils import render_jinja_template

        return render_jinja_template(
            conversations=[messages],
            tools=self._tools,
            chat_template=self._template,
            return_assistant_tokens_mask=marks,
            add_generation_prompt=prompt,
            **self._values,
        )

    def _text(self, messages: list[Row], *, prompt: bool = False) -> str:
        texts: list[str] = self._call(messages, prompt=prompt)[0]
        return texts[0]

    def _find_turns(self, messages: list[Row]) -> Rendered:
        whole = self._text(messages)
        spans: list[Span] = []
        unsure = 0
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            span = self._find_turn(whole, messages[:index], message)
            if span is None:
                unsure += 1
            else:
                spans.append(span)
        return Rendered(whole, spans, unsure)

    def _find_turn(self, whole: str, before: list[Row], message: Row) -> Span | None:
        try:
            head = self._text(before, prompt=True)
            upto = self._text([*before, message])
        except TemplateError:  # Not every template takes a conversation that ends anywhere.
            return None
        if not (whole.startswith(upto) and upto.startswith(head)):
            return None
        turn = upto[len(head) :]
        end = turn.rfind(self._eos) + len(self._eos) if self._eos and self._eos in turn else 0
        return len(head), len(head) + (end or len(turn.rstrip()))
