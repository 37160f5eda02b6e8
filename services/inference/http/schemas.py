"""What OpenAI's requests look like, with vLLM's extensions: types alone.

What a value may be is checked where both doors meet (sampling.py, fields.py, admission.py). Fields that
nobody knows are ignored, as vLLM's server does; those whose meaning would be lost are refused by name
(refused.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import core_schema

_INT32 = 2**31 - 1
_MAX_ITEMS = 65_536
_MAX_TOKEN_IDS = 2**21
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class _Bounded:
    """Of a million wrong items one is told, not a million; and what is too long is not looked through.

    Pydantic's own FailFast cannot be hashed, and so not be part of a union on Python 3.11.
    """

    max_length: int

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        schema = handler(source)
        assert schema["type"] == "list"
        bounded: dict[str, Any] = {**schema, "fail_fast": True, "max_length": self.max_length}
        return cast(core_schema.CoreSchema, bounded)


Several = Annotated[list[Item], _Bounded(_MAX_ITEMS)]
TokenIds = Annotated[list[int], _Bounded(_MAX_TOKEN_IDS)]
_MAX_MODEL_CHARACTERS = 512
_MAX_KEY_CHARACTERS = 1024


class StreamOptions(BaseModel):
    """Of a streamed answer; continuous_usage_stats is vLLM's."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class StructuredOutputs(BaseModel):
    """vLLM's form of an answer: exactly one of them."""

    json_: str | dict[str, Any] | None = Field(None, alias="json")
    json_object: bool | None = None
    regex: str | None = None
    choice: Several[str] | None = None
    grammar: str | None = None
    structural_tag: Any = None


class _Request(BaseModel):
    """What every request has."""

    # Fields are looked at one by one in refused.py.
    model_config = ConfigDict(extra="allow", protected_namespaces=())

    model: str = Field(min_length=1, max_length=_MAX_MODEL_CHARACTERS)
    user: str | None = Field(None, max_length=_MAX_KEY_CHARACTERS)
    priority: int = 0


class Drawn(_Request):
    """What chats and completions share: how tokens are drawn, and how the answer comes."""

    max_tokens: int | None = Field(None, ge=1, le=_INT32)
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: str | Several[str] | None = None

    top_k: int | None = Field(None, ge=-1, le=_INT32)
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = Field(None, ge=0, le=_INT32)
    stop_token_ids: Several[int] | None = None
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    return_token_ids: bool | None = None

    response_format: dict[str, Any] | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: Several[str] | None = None
    guided_grammar: str | None = None


class ToolFunction(BaseModel):
    """A function's name and what it is called with, as JSON text."""

    name: str = ""
    arguments: str | dict[str, Any] | None = None


class ToolCall(BaseModel):
    """A call that the assistant made earlier."""

    id: str = ""
    type: str = "function"
    function: ToolFunction | None = None


class Message(BaseModel):
    """One of a conversation; content is checked part by part."""

    role: str
    content: Any = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: Several[ToolCall] | None = None
    function_call: Any = None


class ChatRequest(Drawn):
    """POST /v1/chat/completions."""

    messages: Several[Message]
    max_completion_tokens: int | None = Field(None, ge=1, le=_INT32)
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: Several[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None


class CompletionRequest(Drawn):
    """POST /v1/completions."""

    prompt: str | TokenIds | Several[str] | Several[TokenIds]
    logprobs: int | None = None


class EmbeddingRequest(_Request):
    """POST /v1/embeddings."""

    input: str | TokenIds | Several[str] | Several[TokenIds]
    encoding_format: str = "float"
    dimensions: int | None = None
    # Ours: which of the base's last hidden states make the vector.
    pooling: str = "last"


class TokenizeRequest(_Request):
    """POST /tokenize, as vLLM has it: a prompt or messages."""

    prompt: str | None = None
    messages: Several[Message] | None = None
    tools: Several[dict[str, Any]] | None = None
