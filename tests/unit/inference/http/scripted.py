"""An engine that says what a test tells it, to see how each thing that an engine can say looks over HTTP."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from services.inference.engines.base import (
    Delta,
    EngineAdapter,
    Finish,
    Pooling,
    Sampling,
    Structure,
    ToolReader,
)
from services.inference.engines.fake import FakeEngine
from services.inference.tool_readers import CallsReader


class ScriptedEngine(FakeEngine):
    """Answers `says`, seven characters at a time, however it is asked.

    Attributes:
        structures: that it was asked to keep to.
        samplings: of its answers.
    """

    def __init__(self) -> None:
        super().__init__(max_context_tokens=4096)
        self.says = ""
        self.structures: list[Structure] = []
        self.samplings: list[Sampling] = []

    async def generate(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        sampling: Sampling,
        adapter: EngineAdapter | None,
        *,
        stream: bool,
        trace_headers: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[Delta, None]:
        """See Engine."""
        self.samplings.append(sampling)
        step = 7 if stream else len(self.says)
        for start in range(0, len(self.says), step):
            text = self.says[start : start + step]
            last = start + step >= len(self.says)
            yield Delta(text, list(text.encode()), finish=Finish.STOP if last else None)

    async def check_structure(self, structure: Structure) -> int:
        """See Engine."""
        self.structures.append(structure)
        return 1

    async def embed(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        adapter: EngineAdapter | None,
        pooling: Pooling,
        *,
        trace_headers: Mapping[str, str] | None = None,
    ) -> Sequence[float]:
        """See Engine."""
        return [0.5 if pooling is Pooling.LAST else 0.25, len(prompt_token_ids) / 8, 1.0]

    def tool_reader(
        self, tools: Sequence[Mapping[str, Any]], chat_template: str | None
    ) -> ToolReader | None:
        """See Engine."""
        return CallsReader()
