"""The engine's process does not grow with the number of different batches that it has computed."""

from __future__ import annotations

import pytest

from services.inference.engines.base import Sampling
from services.inference.engines.vllm_arguments import cpu_kernels
from tests.support.engines import SharedEngine

MIB = 1024 * 1024
pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.engine]


async def compute(engine: SharedEngine, tokens: int) -> None:
    """A step of so many tokens, which nothing in the prefix cache shortens."""
    prompt = [3 + (7 * place + 3 * tokens) % 500 for place in range(tokens)]
    sampling = Sampling(max_tokens=1, temperature=0.0)
    async for _ in engine.generate(f"step-{tokens}", prompt, sampling, None, stream=False):
        pass


def engine_bytes(engine: SharedEngine) -> int:
    """What the process that computes has in memory."""
    return int(engine.core.memory_info().rss)


async def test_steps_of_new_sizes_take_no_more_memory(vllm_engine: SharedEngine) -> None:
    # More sizes than the engine keeps kernels of.
    for tokens in range(17, 167):
        await compute(vllm_engine, tokens)
    before = engine_bytes(vllm_engine)
    for tokens in range(167, 227):
        await compute(vllm_engine, tokens)
    grown = engine_bytes(vllm_engine) - before
    # It was 1.4 MiB for each size.
    assert grown < 24 * MIB, f"{grown / MIB:.0f} MiB for 60 sizes of steps"


async def test_an_engine_keeps_the_kernels_of_its_usual_steps() -> None:
    assert [cpu_kernels(most) for most in (16, 64, 4096)] == [496, 1024, 1024]
