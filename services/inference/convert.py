"""The only place where protobuf and the inference service's domain meet; checks what a request says."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct
from graft.common.v1.common_pb2 import File
from graft.errors import GraftError, Reason
from graft.inference.v1 import inference_service_pb2 as pb
from graft.registry.v1 import registry_service_pb2 as registry_pb

from services.inference.answers import Provenance, Question
from services.inference.domain import (
    AdapterFile,
    AdapterSeen,
    AdapterVersion,
    AliasSeen,
    Change,
    Event,
)
from services.inference.engines.base import Delta, Finish, Position, Sampling, TokenLogprob
from services.inference.prompts import Conversation
from services.inference.residency import Failure, Resident, State

_ROLES = ("system", "user", "assistant", "tool")
_MAX_STOP = 16
_MAX_STOP_TOKENS = 1024
_MAX_LOGPROBS = 20
_MAX_INT32 = 2**31 - 1
_FINISH = {
    Finish.STOP: pb.FINISH_REASON_STOP,
    Finish.LENGTH: pb.FINISH_REASON_LENGTH,
    Finish.ABORTED: pb.FINISH_REASON_ABORTED,
}
_STATE = {
    State.LOADING: pb.RESIDENCY_STATE_LOADING,
    State.READY: pb.RESIDENCY_STATE_READY,
    State.DRAINING: pb.RESIDENCY_STATE_DRAINING,
    State.FAILED: pb.RESIDENCY_STATE_FAILED,
}


def generate_question(request: pb.GenerateRequest) -> Question:
    """Raises INVALID_REQUEST, naming the field."""
    kind = request.WhichOneof("input")
    if kind is None:
        raise _invalid("prompt", "is missing", "Set prompt or prompt_token_ids.")
    # Not copied: it may be far longer than the context.
    prompt: str | Sequence[int] = (
        request.prompt if kind == "prompt" else request.prompt_token_ids.ids
    )
    return Question(_model(request.model), prompt, sampling(request.sampling))


def chat_question(request: pb.ChatRequest) -> Question:
    """Raises INVALID_REQUEST, naming the field."""
    if not request.messages:
        raise _invalid("messages", "is empty", "Send at least one message of a user.")
    messages = [_message(index, message) for index, message in enumerate(request.messages)]
    if messages[-1]["role"] == "assistant":
        raise _invalid("messages", "ends with the assistant's", "Let a user's or tool's be last.")
    conversation = Conversation(messages, _tools(request), request.ByteSize())
    return Question(_model(request.model), conversation, sampling(request.sampling))


def _model(model: str) -> str:
    if not model:
        raise _invalid("model", "is empty", "ListModels names what can be asked.")
    return model


def _message(index: int, message: pb.ChatMessage) -> dict[str, Any]:
    field = f"messages[{index}]"
    if message.role not in _ROLES:
        raise _invalid(
            f"{field}.role", f"is {message.role[:40]!r}", f"Use one of {', '.join(_ROLES)}."
        )
    result: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        if message.role != "assistant":
            raise _invalid(f"{field}.tool_calls", "is set", "Only the assistant calls tools.")
        result["tool_calls"] = [
            _tool_call(f"{field}.tool_calls[{number}]", call)
            for number, call in enumerate(message.tool_calls)
        ]
    return result


def _tool_call(field: str, call: pb.ToolCall) -> dict[str, Any]:
    if not call.name:
        raise _invalid(f"{field}.name", "is empty", "Name the function that is called.")
    arguments = (
        _json_object(f"{field}.arguments_json", call.arguments_json)
        if call.arguments_json
        else plain(call.arguments)
    )
    function = {"name": call.name, "arguments": arguments}
    return {"type": "function", "function": function}


def _tools(request: pb.ChatRequest) -> list[dict[str, Any]]:
    tools = [plain(tool) for tool in request.tools]
    tools += [
        _json_object(f"tools_json[{index}]", text) for index, text in enumerate(request.tools_json)
    ]
    for index, tool in enumerate(tools):
        function = tool.get("function")
        if not isinstance(function, dict) or not function.get("name"):
            raise _invalid(
                f"tools[{index}].function.name",
                "is missing",
                'Write {"type": "function", "function": {"name": ..., "parameters": ...}}.',
            )
    return tools


def _json_object(field: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
        if "\\u" in text:
            # Half of a surrogate pair is JSON, but no tokenizer takes it.
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise _invalid(field, f"is not JSON ({error})", "Send one JSON object as text.") from None
    if not isinstance(value, dict):
        raise _invalid(field, "is not a JSON object", 'Send one, as {"name": "value"}.')
    return value


def plain(struct: Struct) -> dict[str, Any]:
    """A Struct as JSON has it: keys sorted, because a Struct has no order; whole numbers without ".0"."""
    result: dict[str, Any] = json.loads(json.dumps(_whole(MessageToDict(struct)), sort_keys=True))
    return result


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _whole(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_whole(each) for each in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def sampling(params: pb.SamplingParams) -> Sampling:
    """Sampling with the contract's defaults; max_tokens is 0 where none was set.

    Raises:
        GraftError: INVALID_REQUEST, naming the field.
    """
    given = {field.name for field, _ in params.ListFields()}
    result = Sampling(
        max_tokens=params.max_tokens if params.HasField("max_tokens") else 0,
        temperature=params.temperature if "temperature" in given else 1.0,
        top_p=params.top_p if "top_p" in given else 1.0,
        top_k=max(0, params.top_k),
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty if "repetition_penalty" in given else 1.0,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        seed=params.seed if params.HasField("seed") else None,
        stop=tuple(params.stop),
        stop_token_ids=tuple(params.stop_token_ids),
        ignore_eos=params.ignore_eos,
        logprobs=params.logprobs if params.HasField("logprobs") else None,
        min_tokens=params.min_tokens,
    )
    if given:
        _check(params, result)
    return result


def _check(params: pb.SamplingParams, value: Sampling) -> None:
    if params.HasField("max_tokens"):
        _within("max_tokens", params.max_tokens, 1, _MAX_INT32)
    _within("temperature", value.temperature, 0, 2)
    if not 0 < value.top_p <= 1:
        raise _invalid("sampling.top_p", f"is {value.top_p}", "It is above 0 and at most 1.")
    _within("top_k", params.top_k, -1, _MAX_INT32)
    _within("min_p", value.min_p, 0, 1)
    if not 0 < value.repetition_penalty < math.inf:
        raise _invalid(
            "sampling.repetition_penalty", f"is {value.repetition_penalty}", "It is above 0."
        )
    _within("presence_penalty", value.presence_penalty, -2, 2)
    _within("frequency_penalty", value.frequency_penalty, -2, 2)
    if value.seed is not None:
        _within("seed", value.seed, 0, 2**63 - 1)
    _within("min_tokens", value.min_tokens, 0, value.max_tokens or _MAX_INT32)
    if value.logprobs is not None:
        _within("logprobs", value.logprobs, 0, _MAX_LOGPROBS)
    if len(value.stop) > _MAX_STOP:
        raise _invalid("sampling.stop", f"has {len(value.stop)} strings", "16 at most.")
    if not all(value.stop):
        raise _invalid("sampling.stop", "has an empty string", "Leave it out.")
    if len(value.stop_token_ids) > _MAX_STOP_TOKENS:
        raise _invalid(
            "sampling.stop_token_ids",
            f"has {len(value.stop_token_ids)} tokens",
            f"{_MAX_STOP_TOKENS} at most.",
        )
    for token in value.stop_token_ids:
        _within("stop_token_ids", token, 0, _MAX_INT32)


def _within(field: str, value: float, least: float, most: float) -> None:
    # Written so that NaN is outside.
    if not least <= value <= most:
        raise _invalid(f"sampling.{field}", f"is {value}", f"It is {least} to {most}.")


def _invalid(field: str, what: str, next_step: str) -> GraftError:
    return GraftError(Reason.INVALID_REQUEST, f"{field} {what}", next_step=next_step, field=field)


def provenance(value: Provenance) -> pb.Provenance:
    """What made an answer."""
    version = value.version
    return pb.Provenance(
        version="" if version is None else version.name,
        version_digest="" if version is None else version.digest,
        base=value.base.name,
        base_fingerprint=value.base.fingerprint,
    )


def response(delta: Delta) -> pb.GenerateResponse:
    """What is new of an answer; provenance and usage are the caller's to set."""
    message = pb.GenerateResponse(text=delta.text, token_ids=delta.token_ids)
    if delta.logprobs:
        message.logprobs.extend(_logprobs(delta.logprobs))
    if delta.finish is not None:
        message.finish_reason = _FINISH[delta.finish]
    return message


def _logprobs(positions: Iterable[Position]) -> Iterable[pb.TokenLogprobs]:
    for position in positions:
        yield pb.TokenLogprobs(
            token=_logprob(position.drawn), top=[_logprob(each) for each in position.top]
        )


def _logprob(token: TokenLogprob) -> pb.TokenLogprob:
    return pb.TokenLogprob(token_id=token.token_id, logprob=token.logprob, text=token.text)


def resident_adapter(resident: Resident) -> pb.ResidentAdapter:
    """One instance on the engine."""
    return pb.ResidentAdapter(
        version=resident.version.name,
        version_digest=resident.version.digest,
        state=_STATE[resident.state],
        in_flight=resident.in_flight,
        size_bytes=resident.version.size_bytes,
    )


def failed_adapter(failure: Failure) -> pb.ResidentAdapter:
    """A version that could not be loaded."""
    return pb.ResidentAdapter(
        version=failure.version.name,
        version_digest=failure.version.digest,
        state=pb.RESIDENCY_STATE_FAILED,
        size_bytes=failure.version.size_bytes,
        message=str(failure.error),
    )


def adapter_seen(adapter: registry_pb.Adapter) -> AdapterSeen:
    """An adapter of the registry."""
    return AdapterSeen(adapter.name, adapter.base, adapter.latest_version)


def alias_seen(alias: registry_pb.Alias) -> AliasSeen:
    """An alias of the registry."""
    adapter, _, name = alias.name.partition("/aliases/")
    return AliasSeen(adapter, name, alias.version, alias.revision)


def adapter_version(version: registry_pb.Version) -> AdapterVersion:
    """A version of the registry."""
    manifest = version.manifest
    return AdapterVersion(
        name=version.name,
        adapter=version.name.partition("/versions/")[0],
        number=version.number,
        digest=version.digest,
        base_fingerprint=manifest.base_fingerprint,
        peft_type=manifest.peft_type,
        rank=manifest.rank,
        files=tuple(
            AdapterFile(file.path, file.digest, file.size_bytes) for file in manifest.files
        ),
    )


def event(message: registry_pb.WatchResponse) -> Event:
    """A change of the registry; what does not concern adapters counts as a bookmark."""
    change: Change | None = None
    match message.WhichOneof("change"):
        case "adapter":
            change = adapter_seen(message.adapter)
        case "version":
            change = adapter_version(message.version)
        case "alias":
            change = alias_seen(message.alias)
    time_s = message.time.seconds + message.time.nanos / 1e9
    return Event(message.revision, time_s, change)


def file_message(file: AdapterFile) -> File:
    """A file as the blob client takes it."""
    return File(path=file.path, digest=file.digest, size_bytes=file.size_bytes)
