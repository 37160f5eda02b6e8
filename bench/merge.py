"""What merging a QLoRA adapter costs: our merge beside the usual ways, as relative RMS of logits on held-out rows.

Each round trains an adapter of its own on the examples' base in NF4, by the worker as a process. Then each contender
makes a folder, and that folder's logits, computed in float32, are compared with those of the model that was trained:
the base in NF4 with the adapter beside it. "Naive" are the two ways of most recipes: peft's merge_and_unload() on
the NF4 model, and on the base in its original precision. Ours is kept in bfloat16, as the base is stored, unless it says
something else.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from graft.results import Lineage, Version
from graft.trainer.v1.conversion_pb2 import ProofSpec
from graft.trainer.v1.model_jobs_pb2 import MergeSpec

from bench.harness import Measurement, Report, compare
from bench.processes import REPOSITORY
from services.trainer.run.bases import open_base
from services.trainer.run.model_jobs.pulled import Pulled
from services.trainer.spec import BaseSpec

_MOST_ERROR = 0.005
_FIGURE = "relative_rms"
_BASE, _DATA = REPOSITORY / "examples/base", REPOSITORY / "examples/support"
_ROWS = 16
_STORED = "naive: into the original base"
_PACKED = "naive: into NF4"


def run(short: bool = False) -> Report:
    """Three adapters, one in a short run."""
    with tempfile.TemporaryDirectory(prefix="graft-bench-") as folder:
        merges = _Merges(Path(folder), steps=4 if short else 60)
        report = compare(
            "merge",
            {
                "graft": lambda: merges.ours("auto"),
                "graft, float16": lambda: merges.ours("float16"),
                "graft, float32": lambda: merges.ours("float32"),
                _STORED: lambda: merges.naive(quantized=False),
                _PACKED: lambda: merges.naive(quantized=True),
            },
            rounds=1 if short else 3,
            settings={
                "base": "examples/base in NF4",
                "steps": merges.steps,
                "compared_in": "float32",
            },
        )
    error = report.figures["graft"][_FIGURE].median
    reached = error <= _MOST_ERROR
    report.goal(
        "merge error of a QLoRA adapter, relative RMS", f"at most {_MOST_ERROR}", error, reached
    )
    return report


class _Merges:
    """Trains an adapter a round, and merges it in each way.

    Args:
        folder: for everything.
        steps: of each training.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        self.steps = steps
        self._folder = folder
        self._numbers: Iterator[int] = count()
        self._adapters: dict[int, Path] = {}
        self._turns: dict[str, int] = {}
        self._rows = _held_out_rows()

    def ours(self, dtype: str) -> Measurement:
        """What a merge job makes, and its own proof says of it."""
        from services.trainer.run.model_jobs.held_out import HeldOut
        from services.trainer.run.model_jobs.making import Maker
        from services.trainer.spec.recipe import parse_recipe

        adapter, spec = self._turn(dtype)
        version = Pulled(_version(adapter), adapter, open_base(spec, "default"), spec)
        proof = ProofSpec(max_relative_rms=10)  # What it is shall be reported, whatever it is.
        recipe = parse_recipe(MergeSpec(version="bot:1", output_base="merged", proof=proof))
        rows = HeldOut(self._rows, "examples/support/eval_v1.jsonl")
        maker = Maker(recipe, [version], rows, self._folder, lambda _: None, lambda _: None)
        metrics = maker.model(self._new(), dtype).metrics
        return {
            _FIGURE: metrics["logits_difference"],
            "largest": metrics["logits_largest_difference"],
            "top1_agreement": metrics["logits_top1_agreement"],
        }

    def naive(self, *, quantized: bool) -> Measurement:
        """What a recipe of three lines makes; in NF4 it stays NF4."""
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        from services.trainer.run.models import load_model

        adapter, spec = self._turn(f"naive {quantized}")
        target = self._new()
        if quantized:
            model = load_model(_BASE, spec)
        else:
            model = AutoModelForCausalLM.from_pretrained(_BASE, dtype=torch.bfloat16)
        PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().save_pretrained(target)
        del model
        return self._measure(adapter, spec, target)

    def _measure(self, adapter: Path, spec: Any, target: Path) -> Measurement:
        import torch
        from transformers import AutoModelForCausalLM

        from services.trainer.run.model_jobs.assembling import assembled, in_float32
        from services.trainer.run.model_jobs.logits import distance, logits_of
        from services.trainer.run.models import keep_layout

        gc.collect()
        rows = self._rows
        known = logits_of(assembled(_BASE, spec, adapter), rows)
        model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
        keep_layout(model)
        in_float32(model)
        found = distance(logits_of(model, rows), known)
        return {
            _FIGURE: found.relative_rms,
            "largest": found.largest,
            "top1_agreement": found.top1_agreement,
        }

    def _turn(self, who: str) -> tuple[Path, Any]:
        """The adapter of this contender's round, trained when the first one needs it."""
        number = self._turns.get(who, 0)
        self._turns[who] = number + 1
        if number not in self._adapters:
            self._adapters[number] = self._train(number)
        return self._adapters[number], BaseSpec(str(_BASE), "base", "nf4", "auto")

    def _train(self, seed: int) -> Path:
        work = self._folder / f"train-{seed}"
        work.mkdir()
        spec = {
            "base": {"source": str(_BASE)},
            "dataset": {"path": str(_DATA / "train_v1.jsonl")},
            "method": {"qlora": {"rank": 16}},
            "hyperparameters": {"max_steps": self.steps, "learning_rate": 1e-3},
            "output": {"adapter": "bot"},
            "seed": seed,
        }
        (work / "spec.json").write_text(json.dumps(spec), "utf-8")
        environment = {
            **os.environ,
            "GRAFT_WORKER_DIR": str(work),
            "PYTHONPATH": f"{REPOSITORY / 'sdk'}{os.pathsep}{REPOSITORY}",
        }
        command = [sys.executable, "-m", "services.trainer.run", str(work / "spec.json")]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        return work / "result"

    def _new(self) -> Path:
        return self._folder / f"merged-{next(self._numbers)}"


def _held_out_rows() -> list[list[int]]:
    """The first held-out conversations as token ids."""
    from services.trainer.tokens import load_tokenizer

    tokenizer = load_tokenizer(_BASE)
    lines = (_DATA / "eval_v1.jsonl").read_text("utf-8").splitlines()[:_ROWS]
    texts = (
        tokenizer.apply_chat_template(json.loads(line)["messages"], tokenize=False)
        for line in lines
    )
    return [list(tokenizer(text)["input_ids"]) for text in texts]


def _version(adapter: Path) -> Version:
    """The trained adapter as the registry would have it."""
    return Version(
        name=f"namespaces/default/adapters/bot/versions/{adapter.parent.name.rpartition('-')[2]}",
        number=1, digest="", base="", base_fingerprint="", peft_type="LORA", rank=16, alpha=32.0,
        target_modules=(), files=(), lineage=Lineage(None, 0, {}, "", 0, 0, {}, {}), checks=(),
        parameters=0, create_time=None,
    )  # fmt: skip
