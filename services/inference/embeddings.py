"""Vectors of many inputs at once: each is a request like any other, all by the same version."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from graft.errors import GraftError, Reason

from services.inference.answers import Answers
from services.inference.domain import AdapterVersion
from services.inference.engines.base import Pooling, Sampling
from services.inference.failures import anew
from services.inference.fields import invalid_field
from services.inference.many import gathered
from services.inference.prompts import Prompt
from services.inference.questions import Provenance, Question

MAX_INPUTS = 2048
_INPUTS_AT_ONCE = 64
# A vector is made in the place of one token.
_EMBEDDING = Sampling(max_tokens=1, temperature=0.0)


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Vectors of length 1, one for each input, with the tokens that each input had."""

    vectors: Sequence[Sequence[float]]
    prompt_tokens: Sequence[int]
    provenance: Provenance


async def embed(
    answers: Answers,
    model: str,
    inputs: Sequence[Prompt],
    *,
    pooling: Pooling = Pooling.LAST,
    priority: int = 0,
    session_key: str = "",
    time_remaining_s: float | None = None,
) -> Embeddings:
    """A vector for each input.

    Raises:
        GraftError: as Answers.admit(), and of Engine.embed; of an input that cannot be used, nothing is made.
    """
    if not 0 < len(inputs) <= MAX_INPUTS:
        raise invalid_field("inputs", f"has {len(inputs)} texts", f"Send 1 to {MAX_INPUTS}.")
    question = Question(model, "", _EMBEDDING, priority, session_key)
    places = asyncio.Semaphore(_INPUTS_AT_ONCE)

    async def one(index: int, asked: Question) -> tuple[Sequence[float], int, Provenance]:
        async with places:
            try:
                admitted = answers.admit(replace(asked, prompt=inputs[index]), time_remaining_s)
                async with admitted as answer:
                    vector = await answer.embedding(pooling)
                    return vector, answer.prompt_tokens, answer.provenance
            except GraftError as error:
                raise _of_input(error, index) from error

    # The first says which version it is: what its name means may change meanwhile.
    found = [await one(0, question)]
    version = found[0][2].version
    fixed = question if version is None else replace(question, model=_reference(version))
    found += await gathered(one(index, fixed) for index in range(1, len(inputs)))
    vectors, tokens, provenances = zip(*found, strict=True)
    return Embeddings(vectors, tokens, provenances[0])


def _reference(version: AdapterVersion) -> str:
    if version.blend is not None:
        return version.reference
    namespace = version.name.split("/")[1]
    return f"{namespace}/{version.reference}"


def _of_input(error: GraftError, index: int) -> GraftError:
    """The same error, naming which of the inputs it is about, where it is about one."""
    if error.reason not in (Reason.INVALID_REQUEST, Reason.PROMPT_TOO_LONG):
        return anew(error)
    metadata = {**error.metadata, "field": f"inputs[{index}]"}
    return GraftError(
        error.reason, f"inputs[{index}]: {error.message}", next_step=error.next_step, **metadata
    )
