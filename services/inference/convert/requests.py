"""From requests to questions; checks what a request says. How tokens are drawn is in sampling.py."""

from __future__ import annotations

from collections.abc import Sequence

from graft.inference.v1 import inference_service_pb2 as pb

from services.inference.convert.conversations import conversation
from services.inference.engines.base import Pooling
from services.inference.fields import checked_priority, invalid_field
from services.inference.prompts import Prompt
from services.inference.questions import Question
from services.inference.sampling import answers, checked_sampling

_MAX_SESSION_KEY = 256
_POOLING = {
    pb.POOLING_UNSPECIFIED: Pooling.LAST,
    pb.POOLING_LAST: Pooling.LAST,
    pb.POOLING_MEAN: Pooling.MEAN,
}


def generate_question(request: pb.GenerateRequest) -> Question:
    """Raises INVALID_REQUEST, naming the field."""
    kind = request.WhichOneof("input")
    if kind is None:
        raise invalid_field("prompt", "is missing", "Set prompt or prompt_token_ids.")
    # Not copied: it may be far longer than the context.
    prompt: str | Sequence[int] = (
        request.prompt if kind == "prompt" else request.prompt_token_ids.ids
    )
    return Question(
        _model(request.model),
        prompt,
        checked_sampling(request.sampling),
        checked_priority(request.priority),
        _session_key(request),
        n=answers(request.sampling),
    )


def chat_question(request: pb.ChatRequest) -> Question:
    """Raises INVALID_REQUEST, naming the field."""
    return Question(
        _model(request.model),
        conversation(request),
        checked_sampling(request.sampling),
        checked_priority(request.priority),
        n=answers(request.sampling),
        tool_choice=request.tool_choice,
        parallel_tool_calls=not request.one_tool_call,
    )


def embed_inputs(request: pb.EmbedRequest) -> tuple[str, list[Prompt], Pooling, int]:
    """Model, texts, pooling and priority.

    Raises:
        GraftError: INVALID_REQUEST, naming the field.
    """
    if request.pooling not in _POOLING:
        raise invalid_field("pooling", f"is {request.pooling}", "Use POOLING_LAST or POOLING_MEAN.")
    inputs: list[Prompt] = []
    for index, each in enumerate(request.inputs):
        kind = each.WhichOneof("input")
        if kind is None:
            raise invalid_field(f"inputs[{index}]", "is empty", "Set its text or its token_ids.")
        inputs.append(each.text if kind == "text" else each.token_ids.ids)
    return (
        _model(request.model),
        inputs,
        _POOLING[request.pooling],
        checked_priority(request.priority),
    )


def counted(request: pb.CountTokensRequest) -> tuple[str, Prompt]:
    """Model and what is to be counted.

    Raises:
        GraftError: INVALID_REQUEST, naming the field.
    """
    model = _model(request.model)
    if not request.prompt:
        return model, conversation(request)
    if request.messages:
        raise invalid_field("prompt", "is set beside messages", "Set one of the two.")
    return model, request.prompt


def _session_key(request: pb.GenerateRequest | pb.ChatRequest) -> str:
    if len(request.session_key) > _MAX_SESSION_KEY:
        raise invalid_field(
            "session_key",
            f"has {len(request.session_key)} characters",
            f"Use at most {_MAX_SESSION_KEY}, for example a user's id.",
        )
    return request.session_key


def _model(model: str) -> str:
    if not model:
        raise invalid_field("model", "is empty", "ListModels names what can be asked.")
    return model
