"""Sampling into vLLM's terms, and its log probabilities out of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from services.inference.engines.base import Delta, Finish, Position, Sampling, TokenLogprob

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.outputs import CompletionOutput

_FINISH = {"stop": Finish.STOP, "length": Finish.LENGTH, "abort": Finish.ABORTED}


def sampling_params(sampling: Sampling, stream: bool) -> SamplingParams:
    """vLLM's parameters; a stream gets deltas, anything else one final output."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=sampling.max_tokens,
        min_tokens=sampling.min_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        seed=sampling.seed,
        stop=list(sampling.stop) or None,
        stop_token_ids=list(sampling.stop_token_ids) or None,
        ignore_eos=sampling.ignore_eos,
        logprobs=sampling.logprobs,
        output_kind=RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY,
    )


def delta_of(output: CompletionOutput, sampling: Sampling) -> Delta:
    """What is new of an answer, from vLLM's output of kind DELTA or FINAL_ONLY."""
    return Delta(
        output.text,
        output.token_ids,
        _positions(output.token_ids, output.logprobs, sampling.logprobs) if output.logprobs else (),
        _FINISH.get(output.finish_reason, Finish.ABORTED) if output.finish_reason else None,
    )


def _positions(
    token_ids: Sequence[int], logprobs: Sequence[Mapping[int, Any]], top: int | None
) -> tuple[Position, ...]:
    """vLLM's log probabilities of new tokens, each with the likeliest ones in order."""
    found_at = []
    for token_id, found in zip(token_ids, logprobs, strict=True):
        ranked = sorted(found.items(), key=lambda item: item[1].rank or 0)
        found_at.append(
            Position(
                _token(token_id, found[token_id]),
                tuple(_token(other, value) for other, value in ranked[: top or 0]),
            )
        )
    return tuple(found_at)


def _token(token_id: int, value: Any) -> TokenLogprob:
    return TokenLogprob(token_id, value.logprob, value.decoded_token or "")
