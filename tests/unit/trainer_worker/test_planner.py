"""The plan's counts and memory: exact numbers of the real method, and measures that lower memory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from services.trainer.convert import spec_from_json
from services.trainer.plan.accelerators import find_accelerator
from services.trainer.plan.advice import cheapest_changes
from services.trainer.plan.domain import DataFigures
from services.trainer.run.plan import Planner
from services.trainer.spec import JobSpec

pytestmark = pytest.mark.training
DATA = DataFigures(100, 30_000, 512, 0.5, 100, 400, 300.0)
QWEN = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 896,
    "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
    "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True, "dtype": "bfloat16",
}  # fmt: skip


@pytest.fixture
def qwen(tmp_path: Path, tiny_base: Path) -> Path:
    """Qwen2.5-0.5B without its numbers."""
    shutil.copytree(tiny_base, tmp_path / "qwen", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "qwen/config.json").write_text(json.dumps(QWEN))
    return tmp_path / "qwen"


def job(base: Path, method: str = "lora", **hyper: Any) -> JobSpec:
    output = {"base" if method == "full" else "adapter": "bot"}
    spec = {"base": {"source": str(base)}, "dataset": {"path": "x"}, "method": {method: {}}}
    return spec_from_json(json.dumps({**spec, "hyperparameters": hyper, "output": output}))


def test_the_numbers_of_qwen_are_exact(qwen: Path) -> None:
    planner = Planner(job(qwen), find_accelerator("h100"), DATA, 0)
    assert planner.parameters(job(qwen)) == (8_798_208, 502_830_976)


def test_every_measure_lowers_memory(qwen: Path) -> None:
    planner = Planner(job(qwen), find_accelerator("T4"), DATA, 0)
    usual = planner.memory(job(qwen)).total_bytes
    for changed in (
        job(qwen, gradient_checkpointing=True),
        job(qwen, micro_batch_size=4),
        job(qwen, optimizer="adamw_8bit"),
        job(qwen, "qlora"),
        job(qwen, max_length_tokens=256),
    ):
        assert planner.memory(changed).total_bytes < usual


def test_the_first_change_that_is_enough_is_advised(qwen: Path) -> None:
    spec = job(qwen)
    planner = Planner(spec, find_accelerator("T4"), DATA, 0)
    (change,) = cheapest_changes(spec, 8 * 1024**3, planner.memory)
    assert change.fits
    assert change.fields == ("hyperparameters.gradient_checkpointing = true",)
