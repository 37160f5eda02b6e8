"""What OpenAI's answers share: log probabilities, usage, finish reasons, and Graft's own field."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from services.inference.answer import Answer
from services.inference.attestation.attestor import attestation_json
from services.inference.engines.base import Finish, Position, TokenLogprob
from services.inference.questions import Provenance

FINISH = {
    Finish.STOP: "stop",
    Finish.LENGTH: "length",
    Finish.TOOL_CALLS: "tool_calls",
    Finish.ABORTED: "abort",
}
# JSON has no infinity; vLLM's server says the same.
_LEAST_LOGPROB = -9999.0
_FINGERPRINT_DIGITS = 12


def graft_field(provenance: Provenance, *answers: Answer) -> dict[str, Any]:
    """What made an answer, and what is attested of those that have ended; clients of OpenAI keep fields that they do not know."""
    version = provenance.version
    found: dict[str, Any] = {
        "version": "" if version is None else version.name,
        "version_digest": "" if version is None else version.digest,
        "base": provenance.base.name,
        "base_fingerprint": provenance.base.fingerprint,
    }
    attested = [attestation_json(one) for one in (each.attest() for each in answers) if one]
    if len(attested) == 1:
        found["attestation"] = attested[0]
    elif attested:
        # Of several prompts, in their order.
        found["attestations"] = attested
    return found


def fingerprint(provenance: Provenance) -> str:
    """system_fingerprint: changes exactly when the weights that answer change."""
    base = provenance.base.fingerprint.rpartition(":")[2][:_FINGERPRINT_DIGITS]
    version = provenance.version
    if version is None:
        return f"fp_{base}"
    return f"fp_{base}_{version.digest.rpartition(':')[2][:_FINGERPRINT_DIGITS]}"


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Token counts of a request."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def usage_of(answers: Sequence[Answer]) -> dict[str, int]:
    """Token counts of all prompts of a request, so far."""
    return usage(
        sum(each.prompt_tokens for each in answers),
        sum(each.completion_tokens for each in answers),
    )


def chat_logprobs(positions: Sequence[Position]) -> dict[str, Any] | None:
    """As /v1/chat/completions has them; None where none were asked for."""
    if not positions:
        return None
    content = [
        {**_token(each.drawn), "top_logprobs": [_token(one) for one in each.top]}
        for each in positions
    ]
    return {"content": content, "refusal": None}


def _token(token: TokenLogprob) -> dict[str, Any]:
    return {
        "token": token.text,
        "logprob": bounded(token.logprob),
        "bytes": list(token.text.encode("utf-8", "replace")),
    }


def completion_logprobs(positions: Sequence[Position], offset: int) -> dict[str, Any] | None:
    """As /v1/completions has them; offset is where their text begins in the answer."""
    if not positions:
        return None
    offsets = []
    for each in positions:
        offsets.append(offset)
        offset += len(each.drawn.text)
    return {
        "tokens": [each.drawn.text for each in positions],
        "token_logprobs": [bounded(each.drawn.logprob) for each in positions],
        "top_logprobs": [
            {one.text: bounded(one.logprob) for one in (*each.top, each.drawn)}
            for each in positions
        ],
        "text_offset": offsets,
    }


def bounded(logprob: float) -> float:
    """A log probability as JSON can say it."""
    return max(logprob, _LEAST_LOGPROB)
