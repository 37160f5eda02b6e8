"""One real engine for all tests that need it: it starts once, in the session's own event loop."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from services.inference.engines.vllm_arguments import VllmOptions
from tests.support.engines import SharedEngine


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def vllm_engine(tiny_base: Path) -> AsyncIterator[SharedEngine]:
    """Two adapters beside tiny_base, in float32, so that answers can be compared token by token."""
    engine = SharedEngine(
        VllmOptions(
            base=tiny_base,
            max_adapters=2,
            max_lora_rank=16,
            max_model_len=256,
            max_num_seqs=16,
            dtype="float32",
            quantization=None,
            gpu_memory_utilization=0.5,
            cpu_kv_cache_gib=1,
            enforce_eager=True,
            enable_prefix_caching=True,
            seed=0,
            trust_remote_code=False,
        )
    )
    with warnings.catch_warnings():
        # Importing vLLM warns of its own and of its libraries' deprecations.
        warnings.simplefilter("ignore")
        await engine.start()
    try:
        yield engine
    finally:
        await engine.really_stop()
        # Sockets close in callbacks of the loop.
        await asyncio.sleep(0)
