"""The base's own tokenizer and chat template, as transformers and vLLM load them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from graft.errors import GraftError, Reason
from jinja2 import TemplateError

# What a template raises over a conversation that it was not made for.
_REFUSALS = (TemplateError, ValueError, TypeError, KeyError, AttributeError, RecursionError)


class BaseTokenizer:
    """See Engine.tokenize and Engine.render_chat, which may be called in any thread.

    Args:
        tokenizer: of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = self.tokenizer = tokenizer
        template = getattr(tokenizer, "chat_template", None)
        self.chat_template = template if isinstance(template, str) else ""
        # A byte-level token has a character per byte, any other one per character of its text.
        self.max_token_characters = max(map(len, tokenizer.get_vocab()))
        self.special_tokens: dict[str, str] = dict(tokenizer.special_tokens_map)

    def tokenize(self, text: str, *, special_tokens: bool) -> list[int]:
        """Token ids of a text."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special_tokens)
        return ids

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
    ) -> str:
        """The conversation up to where the assistant's answer begins.

        Raises:
            GraftError: INVALID_REQUEST when the base has no template or the template refuses.
        """
        try:
            text: str = self._tokenizer.apply_chat_template(
                list(messages),
                tools=list(tools) or None,
                tokenize=False,
                add_generation_prompt=True,
            )
        except _REFUSALS as error:
            raise GraftError(
                Reason.INVALID_REQUEST,
                f"The base's chat template refuses the conversation: {error}",
                next_step="Check the roles and their order, or call Generate with a prompt of your own.",
            ) from error
        return text
