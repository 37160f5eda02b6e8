"""What the service asks of an engine, in the service's own terms; knows neither vLLM nor protobuf.

One engine holds one base and, beside it, adapters up to its slots. It does what it is told: which
adapter is loaded and when is decided by the residency.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any

from graft.errors import GraftError, Reason
from prometheus_client.metrics_core import Metric


class Finish(Enum):
    """Why an answer ended."""

    STOP = auto()
    LENGTH = auto()
    ABORTED = auto()


@dataclass(frozen=True, slots=True)
class Limits:
    """What an engine can take.

    Attributes:
        max_adapters: adapters that are computed at once; 0 when it serves the base alone.
        max_rank: largest LoRA rank.
        max_context_tokens: prompt and answer together.
        vocab_size: token ids are below it.
        max_token_characters: characters of text that one token stands for, at most.
        max_cpu_adapters: adapters that may be loaded at once, where that is more.
    """

    max_adapters: int
    max_rank: int
    max_context_tokens: int
    vocab_size: int
    max_token_characters: int
    max_cpu_adapters: int = 0

    @property
    def max_loaded(self) -> int:
        """Adapters that may be loaded at once; those that are not computed wait in main memory."""
        return max(self.max_adapters, self.max_cpu_adapters)


@dataclass(frozen=True, slots=True)
class EngineAdapter:
    """One load of one adapter version. A later load of the same version has another number.

    Attributes:
        number: unique among all loads of this engine, from 1.
        name: unique per content, "adapter@digest".
        folder: its files; never changes while it is loaded.
    """

    number: int
    name: str
    folder: Path


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn, checked and complete; see SamplingParams of the contract."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    min_tokens: int = 0


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token with the natural logarithm of its probability."""

    token_id: int
    logprob: float
    text: str


@dataclass(frozen=True, slots=True)
class Position:
    """The drawn token of one position and the likeliest ones, in order."""

    drawn: TokenLogprob
    top: tuple[TokenLogprob, ...]


@dataclass(slots=True)
class Delta:
    """What is new of an answer; finish is set on the last one."""

    text: str
    token_ids: Sequence[int]
    logprobs: Sequence[Position] = ()
    finish: Finish | None = None


class Engine(ABC):
    """A running base with slots for adapters."""

    @property
    @abstractmethod
    def limits(self) -> Limits:
        """Known once it has started."""

    @property
    @abstractmethod
    def healthy(self) -> bool:
        """Whether it can answer: false before it has started, and after it died until it is started anew."""

    @abstractmethod
    async def start(self) -> None:
        """Loads the base. After its death it may be started anew, and then holds no adapter.

        Raises:
            GraftError: NOT_A_MODEL when the base cannot be served, with the engine's reason.
        """

    @abstractmethod
    async def stop(self) -> None:
        """Ends the engine and what it started. Answers in flight end with ENGINE_DEAD."""

    @abstractmethod
    async def wait_dead(self) -> None:
        """Returns when the engine has died or was stopped."""

    async def inspect(self, name: str, folder: Path) -> None:  # noqa: B027
        """Looks into an adapter's files before a slot is taken for them; some engines take any.

        Raises:
            GraftError: ADAPTER_UNUSABLE, naming the field or the tensor.
        """

    @abstractmethod
    async def load(self, adapter: EngineAdapter) -> None:
        """Loads an adapter, while fewer than max_loaded are. After an error nothing of it is left in the engine.

        Raises:
            GraftError: ADAPTER_UNUSABLE with the engine's reason, ENGINE_DEAD.
        """

    @abstractmethod
    async def unload(self, adapter: EngineAdapter) -> None:
        """Frees an adapter's slot. No request may be on it; nothing is done if it died with its engine.

        Raises:
            GraftError: ENGINE_DEAD.
        """

    @abstractmethod
    def generate(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        sampling: Sampling,
        adapter: EngineAdapter | None,
        *,
        stream: bool,
        trace_headers: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[Delta, None]:
        """Continues a prompt; adapter must be loaded, None is the base.

        What accumulates while the caller is busy comes as one delta; without stream everything comes
        as one. Closing or cancelling the generator aborts the request in the engine. trace_headers is
        the W3C context below which the engine's own spans belong.

        Raises:
            GraftError: ENGINE_DEAD, also where the adapter died with its engine; INVALID_REQUEST where
                the engine refuses the request.
        """

    @abstractmethod
    def tokenize(self, text: str, *, special_tokens: bool) -> list[int]:
        """Token ids of a text; special_tokens adds what the base's tokenizer adds by itself.

        May be called in any thread, as render_chat. Takes about 0.6 us for each character.
        """

    @abstractmethod
    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
    ) -> str:
        """The conversation in the base's own chat template, ready for the assistant's answer.

        Raises:
            GraftError: INVALID_REQUEST when the base has no template or the template refuses.
        """

    @property
    @abstractmethod
    def special_tokens(self) -> Mapping[str, str]:
        """What chat templates know of the tokenizer: "eos_token", "bos_token" and others, once it has started."""

    def metrics(self) -> Iterable[Metric]:
        """What the engine counts itself, for Prometheus. Called in any thread, at every scrape."""
        return ()

    @abstractmethod
    def unfinished(self) -> int:
        """Requests that the engine still works on."""


def engine_dead(retry_after_s: float = 5.0) -> GraftError:
    """ENGINE_DEAD, in the same words wherever it shows.

    Args:
        retry_after_s: when another try is worth it.
    """
    return GraftError(
        Reason.ENGINE_DEAD,
        "The engine of this service has died, and is being started anew",
        next_step="Try again in a few seconds, or on another replica; the service's log says why.",
        retry_after_s=f"{retry_after_s:g}",
    )
