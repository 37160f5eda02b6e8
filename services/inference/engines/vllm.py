"""The real engine: vLLM's AsyncLLM, on CPU and GPU, wrapped so that its known faults cannot show.

Every adapter is added before it is used, removed after a failed load, and never more are loaded than
there are slots. On a CPU vLLM computes a request for the base beside adapters with the adapter of the last
slot (index -1 wraps around): vllm_cpu_worker.py has another LoRA there, and where that is switched off,
one more slot than is ever used stays empty.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graft.errors import GraftError, Reason
from prometheus_client.metrics_core import Metric

from services.inference.bases.quantization import check_device, read_quantization
from services.inference.engines.base import (
    Delta,
    Engine,
    EngineAdapter,
    Limits,
    Pooling,
    Sampling,
    Structure,
    ToolReader,
    engine_dead,
)
from services.inference.engines.structures import Structures
from services.inference.engines.structures_kept import WholeJson
from services.inference.engines.vllm_arguments import (
    VllmOptions,
    computed_adapters,
    cpu_adapters,
    engine_arguments,
    paging_of,
    served_kinds,
    set_environment,
)
from services.inference.engines.vllm_cpu import as_without_lora, one_process
from services.inference.engines.vllm_device import this_device
from services.inference.engines.vllm_inspection import Inspection
from services.inference.engines.vllm_observability import stat_loggers, vllm_metrics
from services.inference.engines.vllm_params import (
    delta_of,
    prompt_positions,
    sampling_params,
    vector_params,
)
from services.inference.engines.vllm_pooling import Vectors
from services.inference.engines.vllm_soft import (
    KINDS,
    MAX_LOADED,
    SoftPrompts,
    factor_of,
    is_soft,
)
from services.inference.engines.vllm_soft_inspection import SoftInspection
from services.inference.engines.vllm_tokenizer import BaseTokenizer
from services.inference.engines.vllm_tools import check_parser, detect, vllm_tool_reader

if TYPE_CHECKING:
    import zmq
    from vllm.config import ModelConfig
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM

_HEALTH_INTERVAL_S = 0.5
# Answers have been drained by then.
_SHUTDOWN_S = 2.0


class VllmEngine(Engine):
    """One AsyncLLM; its core runs in a process of its own."""

    def __init__(self, options: VllmOptions) -> None:
        self._options = options
        self._engine: AsyncLLM | None = None
        self._tokenizer: BaseTokenizer | None = None
        self._limits: Limits | None = None
        self._requests: dict[EngineAdapter, LoRARequest] = {}
        self._inspection: Inspection | None = None
        self._structures: Structures | None = None
        self._vectors: Vectors | None = None
        self._soft: SoftPrompts | None = None
        self._soft_inspection: SoftInspection | None = None

    @property
    def limits(self) -> Limits:
        assert self._limits is not None, "the engine has not started"
        return self._limits

    @property
    def healthy(self) -> bool:
        return self._engine is not None and not self._engine.errored

    @property
    def loaded(self) -> Collection[EngineAdapter]:
        """What is in its slots, and its soft prompts, which take none."""
        soft = () if self._soft is None else self._soft.loaded
        return (*self._requests, *soft)

    async def start(self) -> None:
        # Of an engine that died: its processes and sockets, and the adapters that went with it.
        await self._end()
        self._requests.clear()
        self._soft = None
        await asyncio.to_thread(self._check_base)
        # Blocks for many seconds; signals and health checks go on meanwhile.
        building = asyncio.create_task(asyncio.to_thread(self._build))
        try:
            engine = await asyncio.shield(building)
        except asyncio.CancelledError:
            # A thread cannot be cancelled, and the process that it starts would be left behind.
            await asyncio.wait([building])
            if building.exception() is None:
                await _shut_down(building.result())
            raise
        except (ValueError, OSError, RuntimeError) as error:
            raise GraftError(
                Reason.NOT_A_MODEL,
                f"vLLM cannot serve {self._options.base}: {error}",
                next_step="Its own log above says more; check the base, the data type and the memory settings.",
            ) from error
        # Sockets and the output loop belong to the loop that we run in.
        engine._run_output_handler()
        self._engine, self._vectors = engine, Vectors(engine)
        tokenizer: Any = engine.get_tokenizer()
        if inspect.isawaitable(tokenizer):
            tokenizer = await tokenizer
        self._tokenizer = BaseTokenizer(tokenizer)
        if parser := self._options.tool_parser or detect(self._tokenizer.chat_template):
            await asyncio.to_thread(check_parser, parser)
        model = engine.model_config
        soft = KINDS if self._options.soft_prompts else frozenset()
        paging = paging_of(self._options)
        self._limits = Limits(
            max_adapters=computed_adapters(self._options),
            max_rank=self._options.max_lora_rank if self._options.max_adapters else 0,
            max_context_tokens=model.max_model_len,
            vocab_size=model.get_vocab_size(),
            max_token_characters=self._tokenizer.max_token_characters,
            max_cpu_adapters=cpu_adapters(self._options),
            engine="vllm",
            kinds=served_kinds(self._options) | soft,
            apart=dict.fromkeys(soft, MAX_LOADED),
            pages=paging.pages if paging else 0,
            page_rank=paging.page_rank if paging else 0,
        )
        self._inspection = await asyncio.to_thread(
            Inspection, self._options.base, _largest(model.dtype)
        )
        self._structures = Structures(self._options.base, self._tokenizer.max_token_characters)
        await self._prepare_soft(model)

    def _check_base(self) -> None:
        """Says what vLLM would end with a traceback for."""
        set_environment(self._options)
        options = self._options
        found = read_quantization(options.base, options.quantization)
        with_lora = options.max_adapters > 0
        check_device(options.base, found, this_device(), with_lora=with_lora, dtype=options.dtype)

    def _build(self) -> AsyncLLM:
        set_environment(self._options)
        from vllm import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = AsyncEngineArgs(**engine_arguments(self._options))
        on_cpu = current_platform.is_cpu()
        with as_without_lora(wanted=on_cpu and not arguments.enforce_eager):
            config = arguments.create_engine_config()
        with one_process(config):
            return AsyncLLM.from_vllm_config(
                config,
                disable_log_stats=arguments.disable_log_stats,
                stat_loggers=stat_loggers(self._options.metrics),
            )

    async def stop(self) -> None:
        await self._end()

    async def _end(self) -> None:
        engine, self._engine = self._engine, None
        structures, self._structures = self._structures, None
        if structures is not None:
            await structures.close()
        if engine is not None:
            await _shut_down(engine)

    async def wait_dead(self) -> None:
        # vLLM says it in a flag alone.
        while self.healthy:  # noqa: ASYNC110
            await asyncio.sleep(_HEALTH_INTERVAL_S)

    async def _prepare_soft(self, model: ModelConfig) -> None:
        text = await asyncio.to_thread((self._options.base / "config.json").read_text, "utf-8")
        most = _largest(model.dtype)
        self._soft_inspection = SoftInspection(text, most, model.max_model_len)
        factor = factor_of(model.hf_text_config)
        self._soft = SoftPrompts(model.get_vocab_size(), model.dtype, factor)

    async def inspect(self, name: str, folder: Path) -> None:
        assert self._inspection is not None, "the engine has not started"
        assert self._soft_inspection is not None, "the engine has not started"
        if await asyncio.to_thread(is_soft, folder):
            await asyncio.to_thread(self._soft_inspection.check, name, folder)
            return
        await asyncio.to_thread(self._inspection.check, name, folder)

    async def load(self, adapter: EngineAdapter) -> None:
        from vllm.lora.request import LoRARequest

        engine = self._running()
        if await asyncio.to_thread(is_soft, adapter.folder):
            await self._load_soft(adapter)
            return
        assert len(self._requests) < self.limits.max_loaded, "more adapters than slots"
        request = LoRARequest(adapter.name, adapter.number, str(adapter.folder))
        self._requests[adapter] = request
        try:
            added = await engine.add_lora(request)
        except BaseException as error:
            self._requests.pop(adapter, None)
            if engine.errored:
                raise engine_dead() from error
            # A failed add may leave its number registered, and garbage would be served under it.
            await asyncio.shield(engine.remove_lora(adapter.number))
            if not isinstance(error, Exception):
                raise
            raise _unusable(adapter, str(error)) from error
        if not added:
            self._requests.pop(adapter, None)
            raise _unusable(adapter, f"its number {adapter.number} is taken")

    async def _load_soft(self, adapter: EngineAdapter) -> None:
        assert self._soft is not None, "the engine has not started"
        soft = self._soft
        try:
            table = await asyncio.to_thread(soft.read, adapter.folder)
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            raise _unusable(adapter, str(error)) from error
        if soft is not self._soft:
            raise engine_dead()
        soft.load(adapter, table)

    def virtual_tokens(self, adapter: EngineAdapter) -> int:
        return 0 if self._soft is None else self._soft.tokens(adapter)

    async def unload(self, adapter: EngineAdapter) -> None:
        engine = self._running()
        if self._soft is not None and self._soft.unload(adapter):
            return
        if self._requests.pop(adapter, None) is None:
            return
        try:
            await engine.remove_lora(adapter.number)
            # A step that was under way may have brought it back.
            while adapter.number in await engine.list_loras():
                await engine.remove_lora(adapter.number)
        except Exception as error:
            if engine.errored:
                raise engine_dead() from error
            raise

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
        engine = self._running()
        prompt_top, form = sampling.prompt_logprobs, WholeJson.of(sampling)
        prompt, lora = self._prompt(prompt_token_ids, adapter, scored=prompt_top is not None)
        with _translated():
            params = sampling_params(sampling, stream)
            answers = engine.generate(
                prompt, params, request_id, lora_request=lora,
                trace_headers=trace_headers if self._options.traces_endpoint else None,
            )  # fmt: skip
            # Closed now and not by the garbage collector: it aborts what is unfinished.
            async with aclosing(answers):
                async for answer in answers:
                    delta = delta_of(answer.outputs[0], sampling)
                    if prompt_top is not None and answer.prompt_logprobs:
                        found = answer.prompt_logprobs
                        if adapter is not None:
                            # Learned rows come first, and are no tokens.
                            found = found[self.virtual_tokens(adapter) :]
                        delta.prompt_logprobs = prompt_positions(
                            prompt_token_ids, found, prompt_top
                        )
                        prompt_top = None
                    if form is not None:
                        form.check(delta)
                    yield delta

    async def embed(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        adapter: EngineAdapter | None,
        pooling: Pooling,
        *,
        trace_headers: Mapping[str, str] | None = None,
    ) -> Sequence[float]:
        engine = self._running()
        prompt, lora = self._prompt(prompt_token_ids, adapter)
        assert self._vectors is not None
        learned = 0 if adapter is None else self.virtual_tokens(adapter)
        with _translated():
            await self._vectors.collect()
            params = vector_params(request_id, pooling, learned)
            answers = engine.generate(
                prompt, params, request_id, lora_request=lora,
                trace_headers=trace_headers if self._options.traces_endpoint else None,
            )  # fmt: skip
            async with aclosing(answers):
                async for _ in answers:
                    pass
            return await self._vectors.fetch(request_id)

    def tool_reader(
        self, tools: Sequence[Mapping[str, Any]], chat_template: str | None
    ) -> ToolReader | None:
        assert self._tokenizer is not None, "the engine has not started"
        if chat_template is None:
            chat_template = self._tokenizer.chat_template
        name = self._options.tool_parser or detect(chat_template)
        return vllm_tool_reader(name, self._tokenizer.tokenizer, tools) if name else None

    async def check_structure(self, structure: Structure) -> int:
        if self._structures is None:
            raise engine_dead()
        return await self._structures.least_tokens(structure)

    def _prompt(
        self, token_ids: Sequence[int], adapter: EngineAdapter | None, *, scored: bool = False
    ) -> tuple[Any, LoRARequest | None]:
        """What vLLM continues, and with which LoRA; "type" says that it is neither to be tokenized nor copied."""
        if adapter is not None and self._soft is not None and adapter in self._soft.loaded:
            return self._soft.prompt(adapter, token_ids, scored=scored), None
        lora = None
        if adapter is not None:
            lora = self._requests.get(adapter)
            if lora is None:
                raise engine_dead()
        return {"type": "token", "prompt_token_ids": list(token_ids)}, lora

    def tokenize(self, text: str, *, special_tokens: bool) -> list[int]:
        assert self._tokenizer is not None, "the engine has not started"
        return self._tokenizer.tokenize(text, special_tokens=special_tokens)

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
    ) -> str:
        assert self._tokenizer is not None, "the engine has not started"
        return self._tokenizer.render_chat(messages, tools)

    @property
    def special_tokens(self) -> Mapping[str, str]:
        assert self._tokenizer is not None, "the engine has not started"
        return self._tokenizer.special_tokens

    def metrics(self) -> Iterable[Metric]:
        return vllm_metrics() if self._options.metrics and self._engine is not None else ()

    def unfinished(self) -> int:
        return (
            0
            if self._engine is None
            else self._engine.output_processor.get_num_unfinished_requests()
        )

    def _running(self) -> AsyncLLM:
        if self._engine is None or self._engine.errored:
            raise engine_dead()
        return self._engine


@contextmanager
def _translated() -> Iterator[None]:
    """vLLM's errors about a request in the service's terms."""
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

    try:
        yield
    except EngineDeadError as error:
        raise engine_dead() from error
    except VLLMValidationError as error:
        raise GraftError(
            Reason.INVALID_REQUEST,
            f"The engine refuses the request: {error}",
            next_step="Change the sampling parameters or the prompt that it names.",
        ) from error
    except EngineGenerateError as error:
        raise GraftError(
            Reason.INTERNAL,
            f"The engine failed on this request: {error.__cause__ or error}",
            next_step="Ask again; if it comes back, read the log of the service.",
        ) from error


def _largest(dtype: Any) -> float:
    """The largest number of a torch type."""
    import torch

    return float(torch.finfo(dtype).max)


async def _shut_down(engine: AsyncLLM) -> None:
    reader, core = engine.output_handler, engine.engine_core
    await asyncio.to_thread(engine.shutdown, _SHUTDOWN_S)
    if reader is not None:
        # Cancelled, but not waited for, by the shutdown; the sockets are closed before it.
        await asyncio.wait([reader], timeout=_SHUTDOWN_S)
    context: zmq.Context[Any] = core.resources.ctx
    await asyncio.to_thread(context.destroy, 0)
    # Its destructor would do it again at the interpreter's end, when vLLM's modules are gone.
    engine.shutdown = _nothing


def _nothing(timeout: float | None = None) -> None:
    """Takes the place of a shutdown that was done."""


def _unusable(adapter: EngineAdapter, why: str) -> GraftError:
    return GraftError(
        Reason.ADAPTER_UNUSABLE,
        f"The engine cannot load {adapter.name}: {why}",
        next_step="Check its adapter_config.json, and docs/served-kinds.md for what this engine computes.",
    )
