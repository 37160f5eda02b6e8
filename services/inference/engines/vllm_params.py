"""Sampling into vLLM's terms, and its log probabilities out of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from services.inference.engines.base import (
    Delta,
    Finish,
    Pooling,
    Position,
    Sampling,
    Structure,
    TokenLogprob,
)
from services.inference.engines.structure_grammar import schema_of
from services.inference.engines.vllm_pooling import KIND, LEARNED, MARK

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.outputs import CompletionOutput
    from vllm.sampling_params import StructuredOutputsParams

_FINISH = {"stop": Finish.STOP, "length": Finish.LENGTH, "abort": Finish.ABORTED}


def vector_params(key: str, pooling: Pooling, learned: int = 0) -> SamplingParams:
    """Of a request whose prompt's hidden states are wanted; see vllm_pooling.py.

    Args:
        learned: positions before the prompt's own tokens.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=1,
        temperature=0.0,
        detokenize=False,
        extra_args={MARK: key, KIND: pooling.name, LEARNED: learned},
        # What comes out of the cache has no hidden states any more.
        skip_reading_prefix_cache=pooling is Pooling.MEAN,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


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
        prompt_logprobs=sampling.prompt_logprobs,
        include_stop_str_in_output=sampling.include_stop,
        skip_special_tokens=not sampling.special_tokens_text,
        structured_outputs=_structured(sampling.structure),
        output_kind=RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY,
    )


def _structured(structure: Structure | None) -> StructuredOutputsParams | None:
    if structure is None:
        return None
    from vllm.sampling_params import StructuredOutputsParams

    return StructuredOutputsParams(
        json=schema_of(structure) or None,
        regex=structure.regex or None,
        choice=list(structure.choice) or None,
        grammar=structure.grammar or None,
    )


def prompt_positions(
    prompt_token_ids: Sequence[int], found: Sequence[Mapping[int, Any] | None] | None, top: int
) -> tuple[Position, ...]:
    """vLLM's log probabilities of a prompt's tokens from the second on; it has none of the first."""
    if not found:
        return ()
    return _positions(
        prompt_token_ids[1 : len(found)], [each for each in found[1:] if each is not None], top
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
