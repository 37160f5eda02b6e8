"""Renders conversations with a tokenizer's chat template, and finds what the assistant says in the result.

The places come from the template's {% generation %} marks. A template without marks is rendered turn by
turn, and a place counts only where the rendered whole really begins with that rendered part.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from graft.errors import GraftError, Reason
from jinja2.exceptions import TemplateError

from services.trainer.chat_templates import template_names
from services.trainer.formats import Conversation, Place
from services.trainer.formats.base import Row, bad_row
from services.trainer.tokens.spans import Span

LossOn = Literal["assistant", "last_turn", "everything"]
_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text, with the character ranges of what is learned.

    unsure_turns counts the assistant's turns whose range could not be made out; they are not learned.
    """

    text: str
    spans: list[Span]
    unsure_turns: int = 0


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        tokenizer: of transformers.
        loss_on: whose ranges are wanted.
    """

    def __init__(self, tokenizer: Any, loss_on: LossOn = "assistant") -> None:
        self._tokenizer = tokenizer
        self._loss_on = loss_on
        self._values = dict(tokenizer.special_tokens_map)
        self._eos: str = tokenizer.eos_token or ""
        self._templates: dict[bool, str] = {}

    def render(self, conversation: Conversation, place: Place) -> Rendered:
        """Renders a whole conversation.

        Raises:
            GraftError: BAD_DATA, in the template's words; INVALID_SPEC when there is no template.
        """
        call = self._call(conversation)
        messages = list(conversation.messages)
        try:
            if self._loss_on == "everything":
                text = call.text(messages)
                return Rendered(text, [(0, len(text))])
            if call.has_marks:
                text, spans = call.marked(messages)
                return Rendered(text, spans[-1:] if self._loss_on == "last_turn" else spans)
            return self._find_turns(call, messages)
        except (TemplateError, TypeError, KeyError, AttributeError) as error:
            raise _refused(place, error) from None

    def render_prompt(self, conversation: Conversation, place: Place) -> str:
        """Renders a conversation up to where the assistant's next answer begins.

        Raises:
            GraftError: as render().
        """
        try:
            return self._call(conversation).text(list(conversation.messages), prompt=True)
        except (TemplateError, TypeError, KeyError, AttributeError) as error:
            raise _refused(place, error) from None

    def _call(self, conversation: Conversation) -> _Call:
        tools = list(conversation.tools) or None
        template = self._templates.get(tools is not None)
        if template is None:
            template = self._templates[tools is not None] = self._template(tools)
        return _Call(template, tools, self._values)

    def _template(self, tools: list[Row] | None) -> str:
        try:
            template: str = self._tokenizer.get_chat_template(tools=tools)
        except ValueError:
            raise GraftError(
                Reason.INVALID_SPEC,
                "The base's tokenizer has no chat template, which conversations need",
                next_step=f"Set dataset.chat_template to one of {', '.join(template_names())}, "
                "or use data with prompt and completion.",
                field="dataset.chat_template",
            ) from None
        return template

    def _find_turns(self, call: _Call, messages: list[Row]) -> Rendered:
        whole = call.text(messages)
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if self._loss_on == "last_turn":
            turns = turns[-1:]
        found = [self._find_turn(call, whole, messages, index) for index in turns]
        spans = [span for span in found if span is not None]
        return Rendered(whole, spans, len(turns) - len(spans))

    def _find_turn(self, call: _Call, whole: str, messages: list[Row], index: int) -> Span | None:
        try:
            head = call.text(messages[:index], prompt=True)
            last = index == len(messages) - 1
            upto = whole if last else call.text(messages[: index + 1])
        except TemplateError:  # Not every template takes a conversation that ends anywhere.
            return None
        if not (whole.startswith(upto) and upto.startswith(head)):
            return None
        turn = upto[len(head) :]
        end = turn.rfind(self._eos) + len(self._eos) if self._eos and self._eos in turn else 0
        return len(head), len(head) + (end or len(turn.rstrip()))


class _Call:
    """One conversation's calls of a template."""

    def __init__(self, template: str, tools: list[Row] | None, values: dict[str, Any]) -> None:
        self._template = template
        self._tools = tools
        self._values = values
        self.has_marks = _MARKS.search(template) is not None

    def text(self, messages: Sequence[Row], *, prompt: bool = False) -> str:
        return self._render(messages, prompt=prompt)[0]

    def marked(self, messages: Sequence[Row]) -> tuple[str, list[Span]]:
        text, spans = self._render(messages, marks=True)
        return text, _joined(spans)

    def _render(
        self, messages: Sequence[Row], *, marks: bool = False, prompt: bool = False
    ) -> tuple[str, list[Span]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        texts, spans = render_jinja_template(
            conversations=[messages],
            tools=self._tools,
            chat_template=self._template,
            return_assistant_tokens_mask=marks,
            add_generation_prompt=prompt,
            **self._values,
        )
        return texts[0], spans[0] if marks else []


def _joined(spans: list[Span]) -> list[Span]:
    """The ranges with those made one that touch: a turn may be marked in parts."""
    joined: list[Span] = []
    for start, end in spans:
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        joined.append((start, end))
    return joined


def _refused(place: Place, error: Exception) -> GraftError:
    return bad_row(
        place,
        f"the chat template does not take it: {error}",
        "Bring the turns into the order that the template wants, remove the row, or set "
        "dataset.chat_template to another.",
    )


def turns_not_found(place: Place) -> GraftError:
    """The error of a template that does not tell what the assistant says."""
    return GraftError(
        Reason.INVALID_SPEC,
        "The chat template has no {% generation %} marks, and the assistant's turns cannot be found in what it "
        f"renders ({place}), so what to learn is not known",
        next_step="Set dataset.chat_template to a named template (`graft methods --templates`), or "
        "dataset.loss_on to everything.",
        field="dataset.chat_template",
    )
