"""From what a request asks to the token ids that the engine gets, without holding up anybody else.

What cannot fit the context is refused before it is rendered or tokenized; what is long is rendered
and tokenized in a thread, so that everybody else's streams go on meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graft.errors import GraftError, Reason

from services.inference.domain import Base
from services.inference.engines.base import Engine
from services.inference.templates import ChatTemplate

# About 10 ms of tokenizing, and a hundred times what a thread costs.
LONG_BYTES = 16_384
# The same threads verify adapters: long prompts may not take all of them.
_MAX_THREADS = 2


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages and tools as the chat template takes them; size_bytes is what came over the wire."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]]
    size_bytes: int


Prompt = str | Sequence[int] | Conversation


class Prompts:
    """Renders, tokenizes and checks for one engine."""

    def __init__(self, engine: Engine, base: Base) -> None:
        self._engine, self._base = engine, base
        self._threads = asyncio.Semaphore(_MAX_THREADS)

    async def token_ids(
        self, prompt: Prompt, template: ChatTemplate | None = None
    ) -> Sequence[int]:
        """What the engine continues: at least one id, with room for one more after them.

        Args:
            template: renders a conversation in the place of the base's own.

        Raises:
            GraftError: INVALID_REQUEST, PROMPT_TOO_LONG.
        """
        if isinstance(prompt, Conversation):
            self.check_conversation(prompt)
            ids = await self._converse(prompt, template)
        elif isinstance(prompt, str):
            self._check_characters(len(prompt))
            ids = await self._tokenize(prompt, len(prompt))
        else:
            ids = prompt
        if not ids:
            raise GraftError(
                Reason.INVALID_REQUEST, "the prompt is empty", next_step="Send at least one token."
            )
        if len(ids) >= self._engine.limits.max_context_tokens:
            raise self._too_long(f"{len(ids)} tokens")
        if ids is prompt:
            self._check_vocabulary(ids)
        return ids

    def check_messages(self, count: int) -> None:
        """Refuses a conversation of more messages than the context has tokens.

        Raises:
            GraftError: PROMPT_TOO_LONG.
        """
        if count >= self._engine.limits.max_context_tokens:
            raise self._too_long(f"{count} messages")

    def check_conversation(self, conversation: Conversation) -> None:
        """Refuses what cannot fit however it is rendered.

        Raises:
            GraftError: PROMPT_TOO_LONG.
        """
        self._check_characters(sum(len(message["content"]) for message in conversation.messages))

    async def _tokenize(self, text: str, size_bytes: int) -> Sequence[int]:
        if not text:
            return ()
        if size_bytes <= LONG_BYTES:
            return self._engine.tokenize(text, special_tokens=True)
        async with self._threads:
            return await asyncio.to_thread(self._engine.tokenize, text, special_tokens=True)

    async def _converse(
        self, conversation: Conversation, template: ChatTemplate | None
    ) -> Sequence[int]:
        if conversation.size_bytes <= LONG_BYTES and template is None:
            return self._render(conversation, template)
        # What an adapter's template does, and for how long, is not known here.
        async with self._threads:
            return await asyncio.to_thread(self._render, conversation, template)

    def _render(self, conversation: Conversation, template: ChatTemplate | None) -> Sequence[int]:
        messages, tools = conversation.messages, conversation.tools
        if template is None:
            text = self._engine.render_chat(messages, tools)
        else:
            special_tokens = self._engine.special_tokens
            text = template.render(messages, tools, special_tokens, self._max_characters)
        self._check_characters(len(text))
        # The template writes the special tokens itself.
        return self._engine.tokenize(text, special_tokens=False)

    @property
    def _max_characters(self) -> int:
        limits = self._engine.limits
        return limits.max_token_characters * (limits.max_context_tokens - 1)

    def _check_characters(self, count: int) -> None:
        if count > self._max_characters:
            raise self._too_long(f"{count} characters")

    def _check_vocabulary(self, ids: Sequence[int]) -> None:
        size = self._engine.limits.vocab_size
        wrong = next((each for each in ids if not 0 <= each < size), None)
        if wrong is not None:
            raise GraftError(
                Reason.INVALID_REQUEST,
                f"prompt_token_ids has {wrong}, and the vocabulary is 0 to {size - 1}",
                next_step=f"Tokenize with the tokenizer of {self._base.base_id}, or send the text.",
                field="prompt_token_ids",
            )

    def _too_long(self, length: str) -> GraftError:
        context = self._engine.limits.max_context_tokens
        return GraftError(
            Reason.PROMPT_TOO_LONG,
            f"The prompt has {length}, and the context of {self._base.base_id} is {context} tokens "
            "with at least one for the answer",
            next_step="Shorten the prompt.",
            max_context_tokens=context,
        )
