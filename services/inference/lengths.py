"""How many tokens an answer may have: what its prompt, and a version's own tokens, leave of the context."""

from __future__ import annotations

from dataclasses import replace

from graft.errors import GraftError, Reason

from services.inference.engines.base import Engine, Sampling
from services.inference.fields import invalid_field
from services.inference.residents import Resident


class Lengths:
    """Of one engine's context."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def complete(
        self, sampling: Sampling, prompt_tokens: int, resident: Resident | None = None
    ) -> Sampling:
        """With max_tokens as far as the context goes.

        Args:
            resident: what answers, once it is loaded: its own tokens come before the prompt's.

        Raises:
            GraftError: PROMPT_TOO_LONG beside its own tokens; INVALID_REQUEST for tokens that are not in
                the vocabulary, and for more tokens at least than are left.
        """
        limits = self._engine.limits
        taken = prompt_tokens + self._own_tokens(resident, prompt_tokens)
        left = limits.max_context_tokens - taken
        wrong = next((each for each in sampling.stop_token_ids if each >= limits.vocab_size), None)
        if wrong is not None:
            raise invalid_field(
                "sampling.stop_token_ids",
                f"has {wrong}, and the vocabulary ends at {limits.vocab_size - 1}",
                "Name tokens of the base's vocabulary.",
            )
        if sampling.min_tokens > left:
            raise invalid_field(
                "sampling.min_tokens",
                f"is {sampling.min_tokens}, and {left} tokens are left of the context of "
                f"{limits.max_context_tokens}",
                "Lower sampling.min_tokens, or shorten the prompt.",
            )
        if 0 < sampling.max_tokens <= left:
            return sampling
        return replace(sampling, max_tokens=left)

    async def check_structure(self, sampling: Sampling) -> None:
        """Refuses a form that the engine cannot keep to, and one that the answer has no room for.

        Raises:
            GraftError: INVALID_REQUEST; of Engine.check_structure.
        """
        if sampling.structure is None:
            return
        least = await self._engine.check_structure(sampling.structure)
        room = sampling.max_tokens or self._engine.limits.max_context_tokens
        if least > room:
            raise invalid_field(
                "sampling.structure",
                f"takes {least} tokens at least, and the answer may have {room}",
                "Raise sampling.max_tokens, shorten the prompt, or ask for less.",
            )

    def _own_tokens(self, resident: Resident | None, prompt_tokens: int) -> int:
        if resident is None:
            return 0
        assert resident.adapter is not None
        own = self._engine.virtual_tokens(resident.adapter)
        context = self._engine.limits.max_context_tokens
        if own and own + prompt_tokens >= context:
            raise GraftError(
                Reason.PROMPT_TOO_LONG,
                f"The prompt has {prompt_tokens} tokens after the {own} of {resident.version.name}, "
                f"and the context is {context} tokens with at least one for the answer",
                next_step=f"Shorten the prompt to {context - own - 1} tokens.",
                max_context_tokens=context - own,
            )
        return own
