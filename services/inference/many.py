"""Several answers to one question, and readers between an engine and its reader; a plain answer passes neither."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

from graft.errors import GraftError

from services.inference.engines.base import Delta, Sampling, ToolCallPart, ToolReader
from services.inference.fields import invalid_field

MAX_ANSWERS = 32
_SEEDS = 2**63

Value = TypeVar("Value")
Generate = Callable[[Sampling], AsyncGenerator[Delta, None]]


def check_n(n: int) -> None:
    """Raises INVALID_REQUEST."""
    if not 1 <= n <= MAX_ANSWERS:
        raise invalid_field("sampling.n", f"is {n}", f"It is 1 to {MAX_ANSWERS}.")


async def several(
    generate: Generate, sampling: Sampling, n: int, readers: Sequence[ToolReader]
) -> AsyncGenerator[Delta, None]:
    """The deltas of n answers as they come, each with its index and read by a reader of its own.

    Where a seed is given, the answer of index i has seed + i. When one fails all end.

    Args:
        generate: begins one answer.
        readers: one for each answer, or none at all.
    """
    answers = [generate(_nth(sampling, index)) for index in range(n)]
    waiting = {_next(answer): index for index, answer in enumerate(answers)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=waiting.__getitem__):
                index = waiting.pop(task)
                delta = task.result()
                if delta is None:
                    continue
                if readers:
                    delta = readers[index].read(delta)
                delta.index = index
                yield delta
                # Not before: what comes while the caller is busy is to come as one.
                waiting[_next(answers[index])] = index
    finally:
        await _end(waiting)
        for answer in answers:
            await answer.aclose()


def with_whole_calls(delta: Delta) -> Delta:
    """The same delta with the pieces of each call joined."""
    if len(delta.tool_calls) > 1:
        whole: dict[int, ToolCallPart] = {}
        for part in delta.tool_calls:
            first = whole.get(part.index)
            if first is not None:
                part = replace(first, arguments=first.arguments + part.arguments)
            whole[part.index] = part
        delta.tool_calls = tuple(whole.values())
    return delta


def _nth(sampling: Sampling, index: int) -> Sampling:
    if not index:
        return sampling
    seed = None if sampling.seed is None else (sampling.seed + index) % _SEEDS
    return replace(sampling, seed=seed, prompt_logprobs=None)


def _next(answer: AsyncGenerator[Delta, None]) -> asyncio.Task[Delta | None]:
    async def step() -> Delta | None:
        return await anext(answer, None)

    return asyncio.create_task(step())


async def gathered(works: Iterable[Coroutine[Any, Any, Value]]) -> list[Value]:
    """All results in order; the first error ends the others, and is raised when they have ended."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        await _end(tasks)


async def _end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    for task in tasks:
        # What went wrong in those that nobody waits for any more is no matter.
        with suppress(asyncio.CancelledError, GraftError):
            await task
