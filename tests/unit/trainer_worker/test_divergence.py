"""A loss or gradient that is not a number stops the training, names the rows it comes from, and spoils nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer

from services.trainer.run.checkpoints import CheckpointStore, Keep
from services.trainer.run.trainers.sft import SupervisedTrainer
from tests.support.models import make_base
from tests.unit.trainer_worker.support import COLOURS, Outcome, attempt, merge

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("default")]
Train = Callable[..., Outcome]
BAD_ROW, BAD_TEXT = 17, "Ω≈Ω"


def row_of(kind: str, number: int) -> dict[str, Any]:
    right, wrong = COLOURS[number % 4], COLOURS[(number + 1) % 4]
    prompt = BAD_TEXT if number == BAD_ROW else f"{right * (1 + number % 5)}"
    match kind:
        case "kto":
            return {"prompt": prompt, "completion": right, "label": number % 2 == 0}
        case "dpo":
            return {"prompt": prompt, "chosen": right, "rejected": wrong}
        case "grpo":
            return {"prompt": prompt}
        case _:
            return {"prompt": prompt, "completion": f"I like {right}"}


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose embeddings of one row's characters alone are not numbers."""
    folder = make_base(tmp_path_factory.mktemp("poisoned") / "base")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    tensors = dict(load_file(folder / "model.safetensors"))
    embedded = tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = embedded.copy()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "".join(json.dumps(row_of("sft", n)) for n in range(24) if n != BAD_ROW)
    usual = set(tokenizer(text)["input_ids"])
    only_there = [i for i in tokenizer(BAD_TEXT)["input_ids"] if i not in usual]
    assert only_there
    embedded[only_there] = np.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def teach(poisoned: Path, tmp_path: Path) -> Train:
    def run(kind: str = "sft", settings: dict[str, Any] | None = None, **hyper: Any) -> Outcome:
        data = tmp_path / "rows.jsonl"
        data.write_text("".join(json.dumps(row_of(kind, n)) + "\n" for n in range(24)), "utf-8")
        spec = {
            "base": {"source": str(poisoned)},
            "dataset": {"path": str(data)},
            "method": {"lora": {"rank": 4}},
            "objective": {kind: settings or {}},
            "hyperparameters": {"learning_rate": 0.005, "micro_batch_size": 4, "epochs": 3},
            "checkpointing": {"every_steps": 1},
            "resources": {"cpu_threads": 1},
            "output": {"adapter": "bot"},
            "seed": 7,
        }
        return attempt(merge(spec, {"hyperparameters": hyper}), tmp_path / "work")

    return run


@pytest.mark.parametrize(
    ("kind", "hyper"),
    [
        ("sft", {"group_by_length": True}),
        ("sft", {"group_by_length": False, "gradient_accumulation_steps": 3}),
        ("sft", {"packing": True, "max_length_tokens": 96, "micro_batch_size": 2}),
        ("dpo", {"group_by_length": True}),
        ("kto", {}),
    ],
)
def test_the_very_row_is_named_with_step_and_learning_rate(
    teach: Train, kind: str, hyper: dict[str, Any]
) -> None:
    outcome = teach(kind, **hyper)
    step = len(outcome.losses) + 1
    assert outcome.code == 64
    assert (
        f"The loss is not finite at step {step} (rows.jsonl, row {BAD_ROW + 1})" in outcome.message
    )
    assert "with a learning rate of 0.00" in outcome.message
    assert "Look at these rows; else lower hyperparameters.learning_rate" in outcome.message
    assert not (outcome.work_dir / "result").exists()


def test_the_last_good_checkpoint_stays_usable_and_is_named(teach: Train) -> None:
    outcome = teach("sft", group_by_length=False)
    done = len(outcome.losses)
    assert done > 0
    assert f"the checkpoint of step {done} is kept" in outcome.message
    manifest = json.loads(
        next((outcome.work_dir / "checkpoints").glob("*/manifest.json")).read_text()
    )
    store = CheckpointStore(outcome.work_dir / "checkpoints", Keep(2), manifest["run_key"], print)
    last = store.last_good()
    assert last is not None
    assert last.step == done


def test_a_prompt_that_no_answer_can_be_sampled_to_is_named(teach: Train) -> None:
    reward = {"regex": {"pattern": "e"}}
    settings = {"rewards": [reward], "generations": 4, "max_completion_tokens": 4}
    outcome = teach("grpo", settings, learning_rate=0.001, max_steps=24, micro_batch_size=16)
    assert outcome.code == 64
    where = f"is not finite at step {len(outcome.losses) + 1} (rows.jsonl, row {BAD_ROW + 1})"
    assert where in outcome.message


def test_a_gradient_that_is_no_number_names_its_row_before_it_changes_anything(
    teach: Train, monkeypatch: pytest.MonkeyPatch, poisoned: Path
) -> None:
    tensors = load_file(poisoned / "model.safetensors")["model.embed_tokens.weight"]
    bad = int(np.flatnonzero(np.isnan(tensors).any(axis=1))[0])
    real = SupervisedTrainer.batch_loss

    def steep(self: Any, model: Any, inputs: Any, count: Any) -> Any:
        is_bad = bool((inputs["input_ids"] == bad).any())
        inputs["input_ids"] = torch.where(inputs["input_ids"] > 0, inputs["input_ids"] % 40 + 40, 0)
        trained = next(one for one in model.parameters() if one.requires_grad)
        loss = real(self, model, inputs, count)
        return loss + torch.sqrt((trained * 0).sum()) if is_bad else loss

    monkeypatch.setattr(SupervisedTrainer, "batch_loss", steep)
    outcome = teach("sft", gradient_accumulation_steps=2)
    step = len(outcome.losses) + 1
    assert (
        f"The gradient is not finite at step {step} (rows.jsonl, row {BAD_ROW + 1})"
        in outcome.message
    )
    assert all(np.isfinite(outcome.losses))
