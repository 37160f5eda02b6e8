"""An engine for bench/lora.py, in a process of its own: answers lines {"adapters": n, "streams": m} with its speed.

Offline, so that nothing but the engine is measured. With --lora it takes adapters of the folder, one per slot.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from services.inference.engines.vllm_cpu import EXECUTOR, as_without_lora

STREAMS = 64
PROMPT_TOKENS = 24
_CPU_WORKER = "services.inference.engines.vllm_cpu_worker.GraftCpuWorker"


def main() -> None:
    """Reads lines from standard input until it ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("--lora", type=Path, help="folder of adapter folders")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--compiled", action="store_true", help="with LoRA, too")
    parser.add_argument("--max-tokens", type=int, default=128)
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM writes to standard output, too.
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    folders = sorted(options.lora.iterdir()) if options.lora else []
    lora = {"enable_lora": True, "max_loras": len(folders), "max_lora_rank": options.rank}
    with as_without_lora(wanted=options.compiled):
        engine = LLM(
            model=str(options.base),
            max_model_len=1024,
            max_num_seqs=STREAMS,
            enable_prefix_caching=False,
            generation_config="vllm",
            worker_cls=_CPU_WORKER,
            distributed_executor_backend=EXECUTOR,
            seed=0,
            **(lora if folders else {}),
        )
    requests = [
        LoRARequest(folder.name, number, str(folder)) for number, folder in enumerate(folders, 1)
    ]
    for request in requests:
        engine.llm_engine.add_lora(request)
    params = SamplingParams(
        temperature=0, max_tokens=options.max_tokens, ignore_eos=True, detokenize=False
    )
    prompts = [
        {
            "prompt_token_ids": [
                3 + (7 * number + 11 * place) % 900 for place in range(PROMPT_TOKENS)
            ]
        }
        for number in range(STREAMS)
    ]
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        count, streams = asked["adapters"], asked["streams"]
        # Every adapter and the base in turns.
        mixture = [None, *requests[:count]]
        chosen = [mixture[number % len(mixture)] for number in range(streams)]
        start_s = time.perf_counter()
        outputs = engine.generate(
            prompts[:streams], params, lora_request=chosen if folders else None, use_tqdm=False
        )
        took_s = time.perf_counter() - start_s
        tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
        print(json.dumps({"tokens_per_s": tokens / took_s}), file=answers, flush=True)


if __name__ == "__main__":
    main()
