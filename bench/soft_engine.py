"""An engine for bench/soft_prompts.py, in a process of its own: answers each line {"adapters": n} with its speed.

It is the service's engine behind its seam. With --soft it holds a soft prompt; {"adapters": 0} asks the base
alone, 1 the soft prompt alone, and 2 both in turns.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import sys
import time
from pathlib import Path

from services.inference.engines.base import EngineAdapter, Sampling
from services.inference.engines.vllm import VllmEngine
from services.inference.engines.vllm_arguments import VllmOptions

STREAMS = 64
PROMPT_TOKENS = 24
_numbers = itertools.count(1)


async def measure(engine: VllmEngine, mixture: list[EngineAdapter | None], tokens: int) -> float:
    """Tokens per second of STREAMS requests at once."""
    sampling = Sampling(max_tokens=tokens, temperature=0, ignore_eos=True)

    async def one(number: int) -> int:
        ids = [3 + (7 * number + 11 * place) % 900 for place in range(PROMPT_TOKENS)]
        adapter = mixture[number % len(mixture)]
        answer = engine.generate(f"r{next(_numbers)}", ids, sampling, adapter, stream=True)
        return sum([len(delta.token_ids) async for delta in answer])

    start_s = time.perf_counter()
    found = await asyncio.gather(*(one(number) for number in range(STREAMS)))
    return sum(found) / (time.perf_counter() - start_s)


async def run(options: argparse.Namespace) -> None:
    """Reads lines from standard input until it ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM writes to standard output, too.
    engine = VllmEngine(
        VllmOptions(
            base=options.base,
            max_adapters=0,
            max_lora_rank=8,
            max_model_len=1024,
            max_num_seqs=STREAMS,
            dtype="auto",
            quantization=None,
            gpu_memory_utilization=0.9,
            cpu_kv_cache_gib=1,
            enforce_eager=False,
            enable_prefix_caching=False,
            seed=0,
            trust_remote_code=False,
            soft_prompts=options.soft is not None,
        )
    )
    await engine.start()
    mixtures: list[list[EngineAdapter | None]] = [[None]]
    if options.soft is not None:
        soft = EngineAdapter(1, "soft", options.soft)
        await engine.load(soft)
        mixtures += [[soft], [None, soft]]
    print("ready", file=answers, flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        speed = await measure(engine, mixtures[json.loads(line)["adapters"]], options.max_tokens)
        print(json.dumps({"tokens_per_s": speed}), file=answers, flush=True)
    await engine.stop()


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("--soft", type=Path, help="folder of a soft prompt")
    parser.add_argument("--max-tokens", type=int, default=128)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
