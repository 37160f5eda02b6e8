"""Two engines as one: the first computes the base and what it can of adapters, the second the other kinds.

Whether the service can answer is the first one's matter alone; the second's death ends only what is on it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

from prometheus_client.metrics_core import Metric

from services.inference.engines.base import (
    Delta,
    Engine,
    EngineAdapter,
    Limits,
    Pooling,
    Sampling,
    Structure,
    ToolReader,
)
from services.inference.engines.second import SecondEngine
from services.inference.fitness import kind_of


class ComposedEngine(Engine):
    """Chooses by the kind that an adapter's configuration says.

    Args:
        first: answers for the base, and says whether all is well.
        second: for kinds that the first does not compute.
    """

    def __init__(self, first: Engine, second: SecondEngine) -> None:
        self.first, self.second = first, second
        # What the first one says, and what follows of it.
        self._limits: tuple[Limits, Limits] | None = None

    @property
    def limits(self) -> Limits:
        own = self.first.limits
        if self._limits is None or self._limits[0] is not own:
            others = self.second.limits.kinds - own.kinds
            both = replace(
                own,
                kinds=own.kinds | others,
                second=replace(self.second.limits, kinds=others),
            )
            self._limits = own, both
        return self._limits[1]

    @property
    def healthy(self) -> bool:
        return self.first.healthy

    async def start(self) -> None:
        await self.first.start()
        self.second.begin()

    async def stop(self) -> None:
        try:
            await self.second.stop()
        finally:
            await self.first.stop()

    async def wait_dead(self) -> None:
        await self.first.wait_dead()

    async def inspect(self, name: str, folder: Path) -> None:
        if await self._is_seconds(folder):
            await self.second.inspect(name, folder)
        else:
            await self.first.inspect(name, folder)

    async def load(self, adapter: EngineAdapter) -> None:
        if await self._is_seconds(adapter.folder):
            await self.second.load(adapter)
        else:
            await self.first.load(adapter)

    async def unload(self, adapter: EngineAdapter) -> None:
        if self.second.holds(adapter):
            await self.second.unload(adapter)
        else:
            await self.first.unload(adapter)

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
        if adapter is not None and self.second.holds(adapter):
            answers = self.second.generate(
                request_id, prompt_token_ids, sampling, adapter, stream=stream
            )
        else:
            answers = self.first.generate(
                request_id, prompt_token_ids, sampling, adapter,
                stream=stream, trace_headers=trace_headers,
            )  # fmt: skip
        # Closed now and not by the garbage collector: it aborts what is unfinished.
        async with aclosing(answers):
            async for delta in answers:
                yield delta

    def virtual_tokens(self, adapter: EngineAdapter) -> int:
        holder = self.second.engine if self.second.holds(adapter) else self.first
        return holder.virtual_tokens(adapter)

    async def check_structure(self, structure: Structure) -> int:
        # The second one refuses it by name.
        return await self.first.check_structure(structure)

    async def embed(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        adapter: EngineAdapter | None,
        pooling: Pooling,
        *,
        trace_headers: Mapping[str, str] | None = None,
    ) -> Sequence[float]:
        holder: Engine = self.first
        if adapter is not None and self.second.holds(adapter):
            holder = self.second.engine
        return await holder.embed(
            request_id, prompt_token_ids, adapter, pooling, trace_headers=trace_headers
        )

    def tool_reader(
        self, tools: Sequence[Mapping[str, Any]], chat_template: str | None
    ) -> ToolReader | None:
        return self.first.tool_reader(tools, chat_template)

    def tokenize(self, text: str, *, special_tokens: bool) -> list[int]:
        return self.first.tokenize(text, special_tokens=special_tokens)

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
    ) -> str:
        return self.first.render_chat(messages, tools)

    @property
    def special_tokens(self) -> Mapping[str, str]:
        return self.first.special_tokens

    def metrics(self) -> Iterable[Metric]:
        yield from self.first.metrics()
        yield from self.second.metrics()

    def unfinished(self) -> int:
        return self.first.unfinished() + self.second.engine.unfinished()

    async def _is_seconds(self, folder: Path) -> bool:
        kind = await asyncio.to_thread(_kind, folder)
        return kind not in self.first.limits.kinds and kind in self.second.limits.kinds


def _kind(folder: Path) -> str:
    """What an adapter is; empty where its configuration cannot be read, which the first engine will say."""
    try:
        config = json.loads((folder / "adapter_config.json").read_bytes())
        return kind_of(str(config["peft_type"]), config)
    except (OSError, ValueError, KeyError, TypeError):
        return ""
