"""From answers, and from what is resident, to responses."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence

from graft.attestation import Attestation
from graft.inference.v1 import inference_service_pb2 as pb
from graft.inference.v1.blends_pb2 import BlendPart

from services.inference.answers import TokenCount
from services.inference.domain import AdapterVersion
from services.inference.embeddings import Embeddings
from services.inference.engines.base import Delta, Finish, Position, TokenLogprob, ToolCallPart
from services.inference.failures import Failure
from services.inference.questions import Provenance
from services.inference.residents import Resident, State
from services.inference.rollout.convert import PARTS

_FINISH = {
    Finish.STOP: pb.FINISH_REASON_STOP,
    Finish.LENGTH: pb.FINISH_REASON_LENGTH,
    Finish.ABORTED: pb.FINISH_REASON_ABORTED,
    Finish.TOOL_CALLS: pb.FINISH_REASON_TOOL_CALLS,
}
_STATE = {
    State.LOADING: pb.RESIDENCY_STATE_LOADING,
    State.READY: pb.RESIDENCY_STATE_READY,
    State.DRAINING: pb.RESIDENCY_STATE_DRAINING,
    State.FAILED: pb.RESIDENCY_STATE_FAILED,
}


def embed_response(value: Embeddings) -> pb.EmbedResponse:
    """Vectors with what made them."""
    return pb.EmbedResponse(
        embeddings=[
            pb.Embedding(values=vector, prompt_tokens=tokens)
            for vector, tokens in zip(value.vectors, value.prompt_tokens, strict=True)
        ],
        provenance=provenance(value.provenance),
        usage=pb.Usage(prompt_tokens=sum(value.prompt_tokens)),
    )


def count_response(value: TokenCount) -> pb.CountTokensResponse:
    """A count with whose it is."""
    return pb.CountTokensResponse(
        tokens=value.tokens,
        max_context_tokens=value.max_context_tokens,
        provenance=provenance(value.provenance),
    )


def provenance(value: Provenance) -> pb.Provenance:
    """What made an answer."""
    version = value.version
    message = pb.Provenance(
        version="" if version is None else version.name,
        version_digest="" if version is None else version.digest,
        base=value.base.name,
        base_fingerprint=value.base.fingerprint,
        engine=value.engine,
        rollout_alias=value.rollout_alias,
        rollout_part=PARTS[value.rollout_part],
    )
    if version is not None and version.blend is not None:
        message.blend = version.blend.reference
        message.parts.extend(
            BlendPart(
                version=part.version.name, version_digest=part.version.digest, weight=part.weight
            )
            for part in version.blend.parts
        )
    return message


def response(delta: Delta) -> pb.GenerateResponse:
    """What is new of an answer; provenance and usage are the caller's to set."""
    message = pb.GenerateResponse(text=delta.text, token_ids=delta.token_ids)
    if delta.logprobs:
        message.logprobs.extend(_logprobs(delta.logprobs))
    if delta.finish is not None:
        message.finish_reason = _FINISH[delta.finish]
    if delta.index:
        message.index = delta.index
    if delta.tool_calls:
        message.tool_calls.extend(map(_tool_call_part, delta.tool_calls))
    if delta.prompt_logprobs:
        message.prompt_logprobs.extend(_logprobs(delta.prompt_logprobs))
    return message


def whole_response(deltas: Sequence[Delta]) -> pb.GenerateResponse:
    """All answers to one question; the first is the message itself."""
    message = response(deltas[0])
    message.others.extend(response(delta) for delta in deltas[1:])
    return message


def _tool_call_part(part: ToolCallPart) -> pb.ToolCall:
    return pb.ToolCall(id=part.id, index=part.index, name=part.name, arguments_json=part.arguments)


def attest(message: pb.GenerateResponse, attestation: Attestation | None) -> None:
    """Puts an attestation into the last message of an answer."""
    if attestation is None:
        return
    message.attestation.statement_json = attestation.statement_json
    for one in attestation.signatures:
        signature = base64.b64decode(one.signature)
        message.attestation.signatures.add(key_id=one.key_id, signature=signature)


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
        engine=resident.engine,
        blend=_blend(resident.version),
    )


def failed_adapter(failure: Failure) -> pb.ResidentAdapter:
    """A version that could not be loaded."""
    return pb.ResidentAdapter(
        version=failure.version.name,
        version_digest=failure.version.digest,
        state=pb.RESIDENCY_STATE_FAILED,
        size_bytes=failure.version.size_bytes,
        message=str(failure.error),
        blend=_blend(failure.version),
    )


def _blend(version: AdapterVersion) -> str:
    return "" if version.blend is None else version.blend.reference
