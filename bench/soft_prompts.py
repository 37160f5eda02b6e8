"""Soft prompts beside the base on a CPU, and what it costs the base that they can be served at all.

64 requests at once on the example base; the soft prompt has 20 virtual tokens. The engines take turns.
"""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from bench.harness import Report, compare
from bench.lora import EngineProcess
from bench.processes import REPOSITORY
from bench.soft_engine import STREAMS

VIRTUAL_TOKENS = 20
MAX_TOKENS = 128
GOAL = 0.8


def make_soft_prompt(folder: Path, base: Path) -> Path:
    """A soft prompt of random embeddings."""
    config = json.loads((base / "config.json").read_text())
    folder.mkdir()
    table = np.random.default_rng(0).normal(0, 0.5, (VIRTUAL_TOKENS, config["hidden_size"]))
    save_file({"prompt_embeddings": table.astype(np.float32)}, folder / "adapter_model.safetensors")
    said = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": VIRTUAL_TOKENS}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    return folder


def run(*, short: bool = False, base: Path = REPOSITORY / "examples/base") -> Report:
    """Starts an engine that serves no soft prompts and one that does."""
    with tempfile.TemporaryDirectory(prefix="graft-bench-") as temporary, ExitStack() as stack:
        folder = Path(temporary)
        common = [str(base), "--max-tokens", str(MAX_TOKENS)]
        soft = [*common, "--soft", str(make_soft_prompt(folder / "soft", base))]

        def start(name: str, arguments: list[str]) -> EngineProcess:
            log = folder / f"{name}.log"
            engine = EngineProcess(arguments, {}, log, module="bench.soft_engine")
            stack.callback(engine.close)
            return engine

        plain, ours = start("plain", common), start("soft", soft)
        report = compare(
            "soft_prompts",
            {
                "base": partial(plain.measure, 0),
                "base, soft prompts on": partial(ours.measure, 0),
                "soft prompt": partial(ours.measure, 1),
                "base and soft prompt": partial(ours.measure, 2),
            },
            rounds=2 if short else 9,
            warm_up_rounds=1 if short else 2,
            settings={
                "streams": STREAMS,
                "max_tokens": MAX_TOKENS,
                "virtual_tokens": VIRTUAL_TOKENS,
                "cores": os.cpu_count(),
            },
        )
    report.ratios.clear()
    for who in ("base, soft prompts on", "soft prompt", "base and soft prompt"):
        report.ratio(who, "base", "tokens_per_s")
    reached = report.ratios["soft prompt / base"]["tokens_per_s"].median
    report.goal(
        "tokens/s of a soft prompt against the base", f">= {GOAL}", reached, reached >= GOAL
    )
    return report
