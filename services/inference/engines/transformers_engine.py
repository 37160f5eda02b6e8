"""The second engine: transformers, for kinds of adapters that vLLM has no place for.

It computes in a process of its own, so that neither torch nor its end can touch the service's event loop or
another engine. See docs/served-kinds.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any

from graft.errors import GraftError, Reason

from services.inference.engines.base import (
    Delta,
    Engine,
    EngineAdapter,
    Limits,
    Sampling,
    engine_dead,
)
from services.inference.engines.transformers_child import Child, joined
from services.inference.engines.transformers_inspection import KindInspection
from services.inference.engines.transformers_messages import (
    TransformersOptions,
    check_sampling,
    sampling_message,
)
from services.inference.engines.vllm_tokenizer import BaseTokenizer


class TransformersEngine(Engine):
    """One base in one process."""

    def __init__(self, options: TransformersOptions) -> None:
        self._options = options
        self._child: Child | None = None
        self._limits: Limits | None = None
        # With the tokens that each puts before a prompt.
        self._loaded: dict[EngineAdapter, int] = {}
        self._tokenizer: BaseTokenizer | None = None
        self._inspection: KindInspection | None = None

    @property
    def limits(self) -> Limits:
        assert self._limits is not None, "the engine has not started"
        return self._limits

    @property
    def healthy(self) -> bool:
        return self._child is not None and not self._child.died.is_set()

    @property
    def pid(self) -> int | None:
        """Of the process in which it computes."""
        return self._child.pid if self._child is not None and self.healthy else None

    async def start(self) -> None:
        await self.stop()
        child = await Child.start(self._options)
        self._loaded.clear()
        self._child, self._limits = child, child.limits

    async def stop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            await child.end()

    async def wait_dead(self) -> None:
        if self._child is not None:
            await self._child.died.wait()

    async def inspect(self, name: str, folder: Path) -> None:
        if self._inspection is None:
            self._inspection = await asyncio.to_thread(KindInspection, self._options.base)
        await asyncio.to_thread(self._inspection.check, name, folder)

    async def load(self, adapter: EngineAdapter) -> None:
        child = self._running()
        assert len(self._loaded) < self.limits.max_loaded, "more adapters than slots"
        self._loaded[adapter] = 0
        try:
            self._loaded[adapter] = await child.call(
                {
                    "do": "load",
                    "number": adapter.number,
                    "name": adapter.name,
                    "folder": str(adapter.folder),
                }
            )
        except BaseException as error:
            self._loaded.pop(adapter, None)
            if isinstance(error, asyncio.CancelledError) and not child.died.is_set():
                # It may be loaded a moment later.
                await asyncio.shield(child.call({"do": "unload", "number": adapter.number}))
            raise

    async def unload(self, adapter: EngineAdapter) -> None:
        child = self._running()
        if adapter in self._loaded:
            await child.call({"do": "unload", "number": adapter.number})
            self._loaded.pop(adapter, None)

    def virtual_tokens(self, adapter: EngineAdapter) -> int:
        return self._loaded.get(adapter, 0)

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
        check_sampling(sampling)
        child = self._running()
        if adapter is not None and adapter not in self._loaded:
            raise engine_dead()
        if len(child.streams) >= self._options.max_num_seqs + self._options.max_waiting:
            raise _full(len(child.streams))
        answer = child.generate(
            {
                "request": request_id,
                "number": 0 if adapter is None else adapter.number,
                "prompt": list(prompt_token_ids),
                "sampling": sampling_message(sampling),
            }
        )
        finished = False
        parts: list[Delta] = []
        try:
            while not finished:
                delta = await answer.take()
                finished = delta.finish is not None
                parts.append(delta)
                if stream or finished:
                    found, parts = joined(parts), []
                    yield found
        finally:
            child.abort(request_id, finished=finished)

    def tokenize(self, text: str, *, special_tokens: bool) -> list[int]:
        return self._words().tokenize(text, special_tokens=special_tokens)

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
    ) -> str:
        return self._words().render_chat(messages, tools)

    @property
    def special_tokens(self) -> Mapping[str, str]:
        return self._words().special_tokens

    def unfinished(self) -> int:
        return 0 if self._child is None else len(self._child.streams)

    def _words(self) -> BaseTokenizer:
        # Beside another engine, whose tokenizer is asked, it is never needed.
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            self._tokenizer = BaseTokenizer(
                AutoTokenizer.from_pretrained(
                    self._options.base,
                    trust_remote_code=self._options.trust_remote_code,
                    local_files_only=True,
                )
            )
        return self._tokenizer

    def _running(self) -> Child:
        if self._child is None or self._child.died.is_set():
            raise engine_dead()
        return self._child


def _full(count: int) -> GraftError:
    return GraftError(
        Reason.OVERLOADED,
        f"{count} requests are on the transformers engine, which takes no more",
        next_step="Try again later, or add replicas.",
    )
