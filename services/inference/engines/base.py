"""What the service asks of an engine, in the service's own terms; knows neither vLLM nor protobuf.

One engine holds one base and, beside it, adapters up to its slots. It does what it is told: which
adapter is loaded and when is decided by the residency.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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
    TOOL_CALLS = auto()


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
        kinds: of adapters that it computes, as kind_of() names them.
        apart: kinds that take none of the slots, and how many of each may be loaded at once.
        engine: its name, for people: "vllm", "transformers".
        second: of the engine beside it, for kinds that it does not compute itself; see composed.py.
        pages: what its memory for adapters is divided into; 0 where each takes a slot of its own.
        page_rank: ranks of a page.
    """

    max_adapters: int
    max_rank: int
    max_context_tokens: int
    vocab_size: int
    max_token_characters: int
    max_cpu_adapters: int = 0
    kinds: frozenset[str] = frozenset({"LORA"})
    apart: Mapping[str, int] = field(default_factory=dict)
    engine: str = ""
    second: Limits | None = None
    pages: int = 0
    page_rank: int = 0

    @property
    def room(self) -> int:
        """What the adapters that are computed at once may take in all, as room_of() counts."""
        return self.pages or self.max_adapters

    def room_of(self, rank: int) -> int:
        """What an adapter of a rank takes of it: pages, or one slot."""
        if not self.pages:
            return 1
        # Of a larger one than is served it is said elsewhere; it is not to wait for more than there is.
        return max(1, -(-min(rank, self.max_rank) // self.page_rank))

    def computed(self, ranks: Iterable[int]) -> int:
        """How many of these adapters, in order, the engine can compute at once."""
        left, count = self.room, 0
        for rank in ranks:
            left -= self.room_of(rank)
            if left < 0:
                break
            count += 1
        return count

    def of(self, kind: str) -> Limits:
        """Of the engine that computes adapters of a kind; of the first one for what none does."""
        second = self.second
        return second if second is not None and kind in second.kinds else self

    def pool(self, kind: str) -> str:
        """Whose room an adapter of a kind takes: its engine's slots, or its kind's where it needs none of them."""
        of = self.of(kind)
        return kind if kind in of.apart else of.engine

    @property
    def max_loaded(self) -> int:
        """Adapters that may be loaded at once; those that are not computed wait in main memory."""
        return max(self.max_adapters, self.max_cpu_adapters)

    def takes_slot(self, kind: str) -> bool:
        """Whether an adapter of a kind takes one of this engine's own slots."""
        return self.pool(kind) == self.engine

    def room_for(self, kind: str) -> int:
        """How many adapters may be loaded at once in the pool of a kind."""
        of = self.of(kind)
        return of.apart.get(kind, of.max_loaded)


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
class Structure:
    """The form that an answer must have; exactly one of its fields is set.

    Attributes:
        json_schema: a JSON schema as JSON text.
        json_object: any JSON object.
        regex: a regular expression that matches the whole answer.
        choice: one of these texts.
        grammar: EBNF, as xgrammar reads it.
    """

    json_schema: str = ""
    json_object: bool = False
    regex: str = ""
    choice: tuple[str, ...] = ()
    grammar: str = ""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn, checked and complete; see SamplingParams of the contract.

    Attributes:
        special_tokens_text: special tokens are part of the text, as readers of tool calls need it.
    """

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
    structure: Structure | None = None
    include_stop: bool = False
    special_tokens_text: bool = False
    prompt_logprobs: int | None = None


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


@dataclass(frozen=True, slots=True)
class ToolCallPart:
    """A piece of a call of a tool: id and name come with its first piece, arguments are pieces of JSON text.

    Attributes:
        index: which call of the answer, from 0.
    """

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(slots=True)
class Delta:
    """What is new of an answer; finish is set on the last one.

    Attributes:
        index: which of the answers to one question, from 0.
        tool_calls: new pieces of calls; their text is not part of text.
        prompt_logprobs: with the first delta, where asked for: the prompt's tokens from the second on.
    """

    text: str
    token_ids: Sequence[int]
    logprobs: Sequence[Position] = ()
    finish: Finish | None = None
    index: int = 0
    tool_calls: Sequence[ToolCallPart] = ()
    prompt_logprobs: Sequence[Position] = ()


class Pooling(Enum):
    """Which of the base's last hidden states make an embedding."""

    LAST = auto()
    MEAN = auto()


class ToolReader(ABC):
    """Takes the calls of tools out of one answer's text; one per answer.

    Attributes:
        special_tokens_text: whether it needs the text of special tokens.
        only_first: calls after the first one are left out.
    """

    special_tokens_text = False
    only_first = False

    @abstractmethod
    def read(self, delta: Delta) -> Delta:
        """The same delta with the calls' text taken out of its text and put into tool_calls.

        What may yet become a call is kept back; everything has been handed out with the delta that
        has a finish. An answer that calls and ended by itself ends with TOOL_CALLS.
        """


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

    def virtual_tokens(self, adapter: EngineAdapter) -> int:
        """Positions of the context that a loaded adapter takes before a request's own tokens."""
        return 0

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

    async def check_structure(self, structure: Structure) -> int:
        """Tokens that the shortest answer of this form takes at least.

        What cannot be compiled, or answered token by token, within bounded time is refused, before
        generate() is asked for it.

        Raises:
            GraftError: INVALID_REQUEST, naming the field; NOT_SUPPORTED where it holds answers to none.
        """
        raise _not_supported("structured output", "Leave sampling.structure out.")

    async def embed(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        adapter: EngineAdapter | None,
        pooling: Pooling,
        *,
        trace_headers: Mapping[str, str] | None = None,
    ) -> Sequence[float]:
        """The base's last hidden state of a text, of length 1; adapter as in generate().

        Raises:
            GraftError: NOT_SUPPORTED where it has none to give; ENGINE_DEAD.
        """
        raise _not_supported("embeddings", "Ask a replica with the vLLM engine.")

    def tool_reader(
        self, tools: Sequence[Mapping[str, Any]], chat_template: str | None
    ) -> ToolReader | None:
        """What reads calls in the form that a chat template teaches; None where it knows none.

        Args:
            chat_template: of the version; None for the base's own.
        """
        return None

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


def _not_supported(what: str, next_step: str) -> GraftError:
    return GraftError(Reason.NOT_SUPPORTED, f"This engine has no {what}", next_step=next_step)
