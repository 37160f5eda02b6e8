"""The fake engine with adapters that behave as they are told: well, slowly, by failing, by babbling.

For tests and measurements of what judges answers. Which adapter behaves how goes by the digest of its weights.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass

from graft.errors import GraftError, Reason

from services.inference.engines.base import Delta, EngineAdapter, Finish, Sampling
from services.inference.engines.fake import FakeEngine


@dataclass(frozen=True, slots=True)
class Act:
    """How an adapter answers.

    Attributes:
        text: the whole answer; it ends by itself after that.
        first_s: until the first token.
        token_s: until each further one.
        fails: it breaks off after its first token.
        babbles: it says its text again and again, up to max_tokens.
    """

    text: str = "all is well"
    first_s: float = 0.0
    token_s: float = 0.0
    fails: bool = False
    babbles: bool = False


class ActingEngine(FakeEngine):
    """Its adapters answer by their acts; those without one as Act() says.

    Args:
        acts: by digest of an adapter's weights.
        max_adapters: slots.
    """

    def __init__(self, acts: Mapping[str, Act], max_adapters: int = 8) -> None:
        super().__init__(max_adapters, max_context_tokens=4096)
        self.acts = dict(acts)

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
        act = Act() if adapter is None else self.acts.get(self.loaded[adapter.number], Act())
        ids = list(act.text.encode())
        finish = Finish.STOP
        if act.babbles:
            ids = (ids * (sampling.max_tokens // len(ids) + 1))[: sampling.max_tokens]
            finish = Finish.LENGTH
        self._unfinished.add(request_id)
        try:
            await asyncio.sleep(act.first_s)
            step = 1 if stream else len(ids)
            for start in range(0, len(ids), step):
                if start or not stream:
                    await asyncio.sleep(act.token_s * step)
                if act.fails and (start or not stream):
                    raise GraftError(
                        Reason.INTERNAL, "the adapter fails", next_step="Take it back."
                    )
                self._check_alive()
                new = ids[start : start + step]
                last = start + step >= len(ids)
                yield Delta(bytes(new).decode(), new, finish=finish if last else None)
        finally:
            self._unfinished.discard(request_id)
