"""Adapters of each kind, trained by our trainer in this process on a tiny base, and what transformers make of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.unit.trainer_worker.support import COLOURS, attempt

# What the job's method says, and a learning rate at which a few steps change answers.
METHODS: dict[str, tuple[dict[str, Any], float]] = {
    "lora": ({"lora": {"rank": 8}}, 0.02),
    "dora": ({"dora": {"rank": 8}}, 0.02),
    "ia3": ({"ia3": {}}, 0.5),
}


def write_task(path: Path) -> Path:
    """Questions and answers, few and short."""
    rows = [
        {"instruction": COLOURS[n % 4] * (1 + n % 3), "output": f"I like {COLOURS[n % 4]}"}
        for n in range(16)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def train(
    kind: str, base: Path, task: Path, folder: Path, registry: str = "", steps: int = 6
) -> Path:
    """Trains it, and commits it to the registry as the first version of an adapter of that name."""
    method, rate = METHODS[kind]
    spec = {
        "base": {"source": str(base)},
        "dataset": {"path": str(task)},
        "method": method,
        "hyperparameters": {
            "max_steps": steps, "learning_rate": rate, "micro_batch_size": 8,
        },
        "resources": {"cpu_threads": 1},
        "output": {"adapter": kind},
        "seed": 7,
    }  # fmt: skip
    job = {"GRAFT_WORKER_JOB": f"namespaces/default/jobs/{kind}"}
    outcome = attempt(spec, folder, registry, job)
    assert outcome.code == 0, outcome.message
    return outcome.work_dir / "result"


def next_token_logprobs(base: Path, adapter: Path | None, ids: list[int]) -> Any:
    """Of transformers and PEFT in bfloat16, after each token of a text: [tokens, vocabulary], in float32."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
