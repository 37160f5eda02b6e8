"""Hidden states out of a generating engine: the worker's side, and the front end's.

A request for a vector is one for a single token, marked with a key. The worker takes the base's last
hidden states of its prompt from the step that computes them anyway, in one batch with everybody else's
and with the request's LoRA; the front end fetches the vectors by their keys.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from services.inference.engines.base import Pooling, engine_dead

if TYPE_CHECKING:
    import torch
    from vllm.v1.engine.async_llm import AsyncLLM

MARK, KIND, LEARNED = "graft_vector", "graft_pooling", "graft_learned"
EXTENSION = "services.inference.engines.vllm_pooling.VectorsExtension"
# Of requests whose callers went away meanwhile.
_KEPT = 4096


class _Sum:
    """Of the hidden states of one prompt, as far as it is computed."""

    def __init__(self) -> None:
        self.value: torch.Tensor | None = None
        self.count = 0


class Collector:
    """Looks at the hidden states of every step; made in the worker by the first request for a vector."""

    def __init__(self) -> None:
        self._sums: OrderedDict[str, _Sum] = OrderedDict()
        self._vectors: OrderedDict[str, list[float]] = OrderedDict()

    def look(
        self,
        extra: Mapping[str, Any],
        hidden_states: torch.Tensor,
        first: int,
        prompt_tokens: int,
    ) -> None:
        """Hidden states (tokens, hidden_size) of a request's positions from first on."""
        key = str(extra[MARK])
        of_prompt = hidden_states[: max(0, prompt_tokens - first)]
        if not len(of_prompt):
            return
        done = first + len(hidden_states) >= prompt_tokens
        if extra[KIND] == Pooling.LAST.name:
            if done:
                self._keep(key, of_prompt[-1].float())
            return
        if first == 0:
            # Also where it was preempted, and begins anew.
            self._sums[key] = _Sum()
            _shorten(self._sums)
        found = self._sums.get(key)
        if found is None:
            return
        of_prompt = of_prompt[max(0, int(extra.get(LEARNED, 0)) - first) :]
        part = of_prompt.float().sum(0)
        found.value = part if found.value is None else found.value + part
        found.count += len(of_prompt)
        if done:
            del self._sums[key]
            self._keep(key, found.value / found.count)

    def take(self, keys: Sequence[str]) -> list[list[float] | None]:
        """The vectors that are there."""
        return [self._vectors.pop(key, None) for key in keys]

    def _keep(self, key: str, vector: torch.Tensor) -> None:
        length = vector.norm().clamp_min(1e-12)
        self._vectors[key] = (vector / length).tolist()
        _shorten(self._vectors)


def _shorten(kept: OrderedDict[str, Any]) -> None:
    if len(kept) > _KEPT:
        kept.popitem(last=False)


class VectorsExtension:
    """What vLLM adds to its worker class; both of its model runners have one place that sees what is needed."""

    model_runner: Any
    _graft_collector: Collector | None = None

    def graft_collect(self) -> None:
        """From now on marked requests' hidden states are taken. Once is enough."""
        if self._graft_collector is None:
            self._graft_collector = Collector()
            runner = self.model_runner
            if hasattr(runner, "prompt_logprobs_worker"):
                _watch_v2(runner, self._graft_collector)
            else:
                _watch_v1(runner, self._graft_collector)

    def graft_vectors(self, keys: list[str]) -> list[list[float] | None]:
        """Vectors by their keys; None for one that is not there."""
        assert self._graft_collector is not None
        return self._graft_collector.take(keys)


def _watch_v1(runner: Any, collector: Collector) -> None:
    prompt_logprobs = runner._get_prompt_logprobs_dict

    def watched(hidden_states: torch.Tensor, scheduled: dict[str, int]) -> Any:
        for request_id, tokens in scheduled.items():
            request = runner.requests.get(request_id)
            extra = _extra(request and request.sampling_params)
            if extra is not None:
                row = runner.input_batch.req_id_to_index[request_id]
                start = int(runner.query_start_loc.np[row])
                states = hidden_states[start : start + tokens]
                prompt_tokens = len(request.prompt_token_ids)
                collector.look(extra, states, request.num_computed_tokens, prompt_tokens)
        return prompt_logprobs(hidden_states, scheduled)

    runner._get_prompt_logprobs_dict = watched


def _watch_v2(runner: Any, collector: Collector) -> None:
    worker, marked = runner.prompt_logprobs_worker, dict[str, Mapping[str, Any]]()
    add, remove, compute = worker.add_request, worker.remove_request, worker.compute_prompt_logprobs

    def adding(request_id: str, index: int, params: Any) -> None:
        extra = _extra(params)
        if extra is not None:
            marked[request_id] = extra
        add(request_id, index, params)

    def removing(request_id: str) -> None:
        marked.pop(request_id, None)
        remove(request_id)

    def computing(
        logits: Any, hidden_states: torch.Tensor, batch: Any, ids: Any, computed: Any, lengths: Any
    ) -> Any:
        for row, request_id in enumerate(batch.req_ids if marked else ()):
            extra = marked.get(request_id)
            if extra is not None:
                start, end = batch.query_start_loc_np[row], batch.query_start_loc_np[row + 1]
                first = int(batch.num_computed_prefill_tokens_np[row])
                prompt_tokens = int(lengths[batch.idx_mapping_np[row]])
                collector.look(extra, hidden_states[start:end], first, prompt_tokens)
        return compute(logits, hidden_states, batch, ids, computed, lengths)

    worker.add_request, worker.remove_request = adding, removing
    worker.compute_prompt_logprobs = computing


def _extra(params: Any) -> Mapping[str, Any] | None:
    extra: Mapping[str, Any] | None = params and params.extra_args
    return extra if extra and MARK in extra else None


class Vectors:
    """The front end's side: fetches what is asked for, many keys with one call."""

    def __init__(self, engine: AsyncLLM) -> None:
        self._engine = engine
        self._collecting: asyncio.Task[Any] | None = None
        self._wanted: dict[str, asyncio.Future[list[float]]] = {}
        self._fetching: asyncio.Task[None] | None = None

    async def collect(self) -> None:
        """The worker looks from now on."""
        if self._collecting is None:
            self._collecting = asyncio.create_task(self._engine.collective_rpc("graft_collect"))
        await asyncio.shield(self._collecting)

    async def fetch(self, key: str) -> list[float]:
        """The vector of a request that has been answered.

        Raises:
            GraftError: ENGINE_DEAD.
        """
        found = self._wanted[key] = asyncio.get_running_loop().create_future()
        if self._fetching is None or self._fetching.done():
            self._fetching = asyncio.create_task(self._fetch())
        try:
            vector: list[float] = await found
            return vector
        finally:
            self._wanted.pop(key, None)

    async def _fetch(self) -> None:
        while self._wanted:
            keys, waiting = list(self._wanted), list(self._wanted.values())
            self._wanted.clear()
            try:
                (vectors, *_) = await self._engine.collective_rpc("graft_vectors", args=(keys,))
            except Exception as error:
                for each in waiting:
                    if not each.done():
                        each.set_exception(engine_dead() if self._engine.errored else error)
                continue
            for future, vector in zip(waiting, vectors, strict=True):
                if future.done():
                    continue
                if vector is None:
                    future.set_exception(
                        RuntimeError("vLLM computed no hidden state of the prompt")
                    )
                else:
                    future.set_result(vector)
