"""An engine without a model: every answer is a function of the prompt and the adapter's files.

For tests of everything around an engine, and of clients. Failures can be scripted.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from graft.digests import digest_file

from services.inference.engines.base import (
    Delta,
    Engine,
    EngineAdapter,
    Finish,
    Limits,
    Pooling,
    Position,
    Sampling,
    Structure,
    TokenLogprob,
    ToolReader,
    engine_dead,
)
from services.inference.engines.fake_forms import FakeToolReader, check, smallest, vector

_VOCAB_SIZE = 1024


class FakeEngine(Engine):
    """Tokens are the bytes of the text; an answer is a stream of lower-case letters.

    Args:
        max_adapters: slots.
        max_rank: as of a real engine.
        max_context_tokens: as of a real engine.
        token_s: time that every token takes.
        max_cpu_adapters: as of a real engine.
    """

    def __init__(
        self,
        max_adapters: int = 4,
        max_rank: int = 64,
        max_context_tokens: int = 512,
        token_s: float = 0.0,
        max_cpu_adapters: int = 0,
    ) -> None:
        self._limits = Limits(
            max_adapters,
            max_rank,
            max_context_tokens,
            _VOCAB_SIZE,
            max_token_characters=1,
            max_cpu_adapters=max_cpu_adapters,
            engine="fake",
        )
        self._token_s = token_s
        self._died = asyncio.Event()
        self._running = False
        self.starts, self.loading = 0, 0
        self._lives = 0
        self.start_failures: list[Exception] = []
        self._unfinished: set[str] = set()
        self._moved = asyncio.Event()
        self._budget: int | None = None
        self.loaded: dict[int, str] = {}
        self.load_failures: list[Exception] = []
        # What every answer says, where it is set.
        self.says = ""
        self.load_gate, self.start_gate = asyncio.Event(), asyncio.Event()
        self.load_gate.set()
        self.start_gate.set()

    @property
    def limits(self) -> Limits:
        return self._limits

    @property
    def healthy(self) -> bool:
        return self._running and not self._died.is_set()

    async def start(self) -> None:
        self.starts += 1
        await self.start_gate.wait()
        if self.start_failures:
            raise self.start_failures.pop(0)
        self._died.clear()
        self._running = True

    async def stop(self) -> None:
        self._running = False
        self._died.set()

    async def wait_dead(self) -> None:
        await self._died.wait()

    def limit_slots(self, max_adapters: int) -> None:
        """Has so many slots from now on."""
        self._limits = replace(self._limits, max_adapters=max_adapters)

    def serve_apart(self, kind: str, most: int) -> None:
        """Takes adapters of another kind, too, so many at once and without a slot."""
        limits = self._limits
        self._limits = replace(
            limits, kinds=limits.kinds | {kind}, apart={**limits.apart, kind: most}
        )

    def die(self) -> None:
        """Behaves like an engine that died, until it is started again."""
        self._died.set()
        self._lives += 1
        self.loaded.clear()
        self._move()

    def hold(self, after_tokens: int) -> None:
        """Every answer stops after so many tokens until release()."""
        self._budget = after_tokens

    async def release(self) -> None:
        """Lets held answers go on."""
        self._budget = None
        self._move()

    def _move(self) -> None:
        """Every answer that waits looks anew."""
        self._moved.set()
        self._moved = asyncio.Event()

    async def load(self, adapter: EngineAdapter) -> None:
        self._check_alive()
        life = self._lives
        self.loading += 1
        try:
            await self.load_gate.wait()
        finally:
            self.loading -= 1
        if life != self._lives:
            raise engine_dead()
        if self.load_failures:
            raise self.load_failures.pop(0)
        assert adapter.number not in self.loaded, "a number is used once"
        most = self._limits.max_loaded + sum(self._limits.apart.values())
        assert len(self.loaded) < most, "more adapters than slots"
        weights = adapter.folder / "adapter_model.safetensors"
        digest = await asyncio.to_thread(digest_file, weights)
        if life != self._lives:
            raise engine_dead()
        self.loaded[adapter.number] = digest

    async def unload(self, adapter: EngineAdapter) -> None:
        self._check_alive()
        self.loaded.pop(adapter.number, None)

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
        self._check_alive()
        life = self._lives
        if adapter is not None and adapter.number not in self.loaded:
            raise engine_dead()
        ids, finish = self._answer(prompt_token_ids, sampling, adapter)
        self._unfinished.add(request_id)
        try:
            step = 1 if stream else max(1, len(ids))
            for start in range(0, max(1, len(ids)), step):
                await asyncio.sleep(self._token_s * step)
                await self._turn(start + step, adapter, life)
                new = ids[start : start + step]
                last = start + step >= len(ids)
                delta = Delta(_text(new), new, _logprobs(new, sampling), finish if last else None)
                if sampling.prompt_logprobs is not None and not start:
                    top = replace(sampling, logprobs=sampling.prompt_logprobs)
                    delta.prompt_logprobs = _logprobs(prompt_token_ids[1:], top)
                yield delta
        finally:
            self._unfinished.discard(request_id)

    async def _turn(self, tokens: int, adapter: EngineAdapter | None, life: int) -> None:
        await asyncio.sleep(0)
        while self._budget is not None and tokens > self._budget and life == self._lives:
            await self._moved.wait()
        self._check_alive()
        if life != self._lives:
            raise engine_dead()
        assert adapter is None or adapter.number in self.loaded, "unloaded under a request"

    def _answer(
        self, prompt: Sequence[int], sampling: Sampling, adapter: EngineAdapter | None
    ) -> tuple[list[int], Finish]:
        if sampling.structure is not None or self.says:
            said = self.says if sampling.structure is None else smallest(sampling.structure)
            whole = list(said.encode())
            finish = Finish.STOP if len(whole) <= sampling.max_tokens else Finish.LENGTH
            return whole[: sampling.max_tokens], finish
        weights = "" if adapter is None else self.loaded[adapter.number]
        seed = sampling.seed if sampling.temperature else 0
        key = f"{weights} {list(prompt)} {seed}".encode()
        letters = [97 + byte % 26 for byte in hashlib.shake_256(key).digest(sampling.max_tokens)]
        text = _text(letters)
        for stop in sampling.stop:
            position = text.find(stop)
            if position >= 0:
                end = position + len(stop) if sampling.include_stop else position
                return letters[:end], Finish.STOP
        return letters, Finish.LENGTH

    async def check_structure(self, structure: Structure) -> int:
        return check(structure)

    async def embed(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        adapter: EngineAdapter | None,
        pooling: Pooling,
        *,
        trace_headers: Mapping[str, str] | None = None,
    ) -> Sequence[float]:
        self._check_alive()
        life = self._lives
        self._unfinished.add(request_id)
        try:
            await self._turn(1, adapter, life)
        finally:
            self._unfinished.discard(request_id)
        weights = "" if adapter is None else self.loaded[adapter.number]
        return vector(f"{weights} {list(prompt_token_ids)} {pooling.name}")

    def tool_reader(
        self, tools: Sequence[Mapping[str, Any]], chat_template: str | None
    ) -> ToolReader | None:
        return FakeToolReader()

    def tokenize(self, text: str, *, special_tokens: bool) -> list[int]:
        return ([256] if special_tokens else []) + list(text.encode())

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
    ) -> str:
        lines = [f"tool {tool['function']['name']}" for tool in tools]
        lines += [f"{message['role']}: {message['content']}" for message in messages]
        return "\n".join([*lines, "assistant: "])

    @property
    def special_tokens(self) -> Mapping[str, str]:
        return {"bos_token": "<s>", "eos_token": "</s>"}

    def unfinished(self) -> int:
        return len(self._unfinished)

    def _check_alive(self) -> None:
        if not self.healthy:
            raise engine_dead()


def _text(ids: Sequence[int]) -> str:
    return bytes(ids).decode()


def _logprobs(ids: Sequence[int], sampling: Sampling) -> tuple[Position, ...]:
    if sampling.logprobs is None:
        return ()
    top = sampling.logprobs
    return tuple(
        Position(
            TokenLogprob(token, -0.5, chr(token)),
            tuple(TokenLogprob(token, -0.5 - rank, chr(token)) for rank in range(top)),
        )
        for token in ids
    )
