"""The worker trains, saves and refuses; in this process, on the real libraries."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from services.trainer.run.trainers import sft
from tests.unit.trainer_worker.support import Outcome

pytestmark = [
    pytest.mark.training,
    # The libraries' own warnings are not ours to mend.
    pytest.mark.filterwarnings("default"),
]
Train = Callable[..., Outcome]
ALL_MODULES = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def test_the_worker_learns_the_task_and_leaves_a_peft_folder(train: Train) -> None:
    outcome = train(hyperparameters={"epochs": 4})
    assert outcome.code == 0, outcome.message
    assert outcome.losses[-1] < 0.05
    folder = outcome.work_dir / "result"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"
    assert config["target_modules"] == ALL_MODULES
    assert (config["r"], config["lora_alpha"]) == (8, 16.0)
    tensors = load_file(folder / "adapter_model.safetensors")
    assert len(tensors) == 2 * 2 * len(ALL_MODULES)
    assert all(np.isfinite(tensor).all() for tensor in tensors.values())
    assert str(outcome.work_dir) not in (folder / "adapter_config.json").read_text()


def test_what_happens_is_reported_in_order(train: Train) -> None:
    outcome = train(dataset={"eval_fraction": 0.25}, hyperparameters={"epochs": 2})
    kinds = [next(k for k in e if k != "report_number") for e in outcome.events]
    assert [int(e["report_number"]) for e in outcome.events] == list(range(1, len(kinds) + 1))
    assert kinds.index("started") < kinds.index("metrics") < kinds.index("checkpoint_step")
    assert kinds.index("checkpoint_step") < kinds.index("finalizing") < kinds.index("finished")
    figures = [e["metrics"] for e in outcome.events if "metrics" in e]
    assert int(figures[0]["total_steps"]) == 2 * 9  # 36 rows in batches of 4.
    evaluated = [f for f in figures if "eval_loss" in f]
    assert [int(f["step"]) for f in evaluated] == [9, 18]
    assert evaluated[1]["eval_loss"] < evaluated[0]["eval_loss"]
    assert all(f["tokens_per_second"] > 0 and f["grad_norm"] > 0 for f in figures)


def test_qlora_learns_on_a_4_bit_base(train: Train) -> None:
    outcome = train(
        base={"quantization": "nf4"},
        hyperparameters={
            "epochs": 4,
            "optimizer": "paged_adamw_8bit",
            "gradient_checkpointing": True,
        },
    )
    assert outcome.code == 0, outcome.message
    assert outcome.losses[-1] < 0.05
    tensors = load_file(outcome.work_dir / "result" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float32)}


def test_packing_learns_with_fewer_sequences(train: Train) -> None:
    outcome = train(
        hyperparameters={
            "epochs": 8,
            "packing": True,
            "max_length_tokens": 128,
            "micro_batch_size": 1,
        }
    )
    assert outcome.code == 0, outcome.message
    started = next(e["started"] for e in outcome.events if "started" in e)
    assert int(started["total_steps"]) < 8 * 48 / 2
    assert outcome.losses[-1] < 0.05


def test_accumulated_batches_train_as_one_large_batch_does(train: Train) -> None:
    # One batch of all rows, and the same rows in batches of 8: the mean is over tokens, not batches.
    plain = {"method": {"lora": {"dropout": 0}}}
    large = train("a", hyperparameters={"micro_batch_size": 48, "max_steps": 3}, **plain)
    accumulated = {"micro_batch_size": 8, "gradient_accumulation_steps": 6, "max_steps": 3}
    small = train("b", hyperparameters=accumulated, **plain)
    assert small.losses == pytest.approx(large.losses, rel=1e-4)


def test_packed_rows_do_not_see_each_other(train: Train) -> None:
    plain = {"method": {"lora": {"dropout": 0}}}
    apart = train("a", hyperparameters={"micro_batch_size": 48, "max_steps": 3}, **plain)
    packed = {"micro_batch_size": 48, "packing": True, "max_length_tokens": 200, "max_steps": 3}
    together = train("b", hyperparameters=packed, **plain)
    assert together.losses == pytest.approx(apart.losses, rel=1e-4)


def test_trls_own_head_gives_the_same_losses(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: dict[str, Any] = {
        "dataset": {"eval_fraction": 0.25},
        "hyperparameters": {"max_steps": 4, "gradient_accumulation_steps": 2},
    }
    ours = train("a", **changes)
    monkeypatch.setattr(sft, "has_plain_head", lambda _: False)
    theirs = train("b", **changes)
    assert theirs.code == 0, theirs.message
    assert theirs.losses == pytest.approx(ours.losses, rel=1e-4)


def test_a_base_with_nan_weights_stops_before_anything_is_committed(
    train: Train, tiny_base: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "nan"
    shutil.copytree(tiny_base, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = np.full_like(tensors["model.norm.weight"], np.nan)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    outcome = train(base={"source": str(folder)})
    assert outcome.code == 64
    assert "The loss is not finite at step 1 (colours.jsonl, row " in outcome.message
    assert not (outcome.work_dir / "result").exists()


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        (
            {"method": {"lora": {"target_modules": ["q_proj", "w_proj"]}}},
            64,
            ("no linear layer named w_proj", "Use some of down_proj"),
        ),
        ({"method": {"lora": {"target_modules": ["lm_head"]}}}, 64, ("named lm_head",)),
        ({"base": {"source": "/no/such/model"}}, 64, ("no such folder", "base.source")),
        ({"dataset": {"path": "/no/such/data.jsonl"}}, 65, ("no file or folder",)),
        (
            {"hyperparameters": {"max_length_tokens": 4}},
            65,
            ("No row has anything to learn", "cuts off their whole answer", "colours.jsonl, row 1"),
        ),
        ({"dataset": {"eval_fraction": 0.01}}, 65, ("holds out 0",)),
        ({"method": {"lora": {"rank": 1000}}}, 64, ("method.lora.rank is 1000",)),
    ],
)
def test_what_cannot_work_ends_with_its_code_and_a_next_step(
    train: Train, changes: dict[str, Any], code: int, words: tuple[str, ...]
) -> None:
    outcome = train(**changes)
    assert outcome.code == code, outcome.message
    for word in words:
        assert word in outcome.message
    assert not (outcome.work_dir / "result").exists()


def test_one_row_is_trained_on_and_can_hold_nothing_out(train: Train, tmp_path: Path) -> None:
    one = tmp_path / "one.jsonl"
    one.write_text('{"prompt": "Which colour?", "completion": "red"}\n')
    alone = train("alone", dataset={"path": str(one)}, hyperparameters={"max_steps": 2})
    assert alone.code == 0, alone.message
    split = train("split", dataset={"path": str(one), "eval_fraction": 0.1})
    assert split.code == 65
    assert "holds out 0" in split.message


@pytest.mark.parametrize(("text", "words"), [("", "is empty"), ("\n\n", "no rows")])
def test_a_set_without_rows_is_refused(train: Train, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "none.jsonl").write_text(text)
    outcome = train(dataset={"path": str(tmp_path / "none.jsonl")})
    assert outcome.code == 65
    assert (
        f"none.jsonl {words}" in outcome.message or f"none.jsonl holds {words}" in outcome.message
    )


def test_rows_of_another_format_in_the_middle_are_named(train: Train, tmp_path: Path) -> None:
    rows = ['{"prompt": "Which colour?", "completion": "red"}'] * 6
    rows[3] = '{"instruction": "Which colour?", "output": "red"}'
    (tmp_path / "mixed.jsonl").write_text("\n".join(rows))
    outcome = train(dataset={"path": str(tmp_path / "mixed.jsonl")})
    assert outcome.code == 65
    assert "mixed.jsonl, row 4" in outcome.message
    assert not (outcome.work_dir / "result").exists()


def test_a_pickled_base_is_refused(train: Train, tiny_base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_bytes((tiny_base / "config.json").read_bytes())
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    outcome = train(base={"source": str(folder)})
    assert outcome.code == 64
    assert "pickles (.bin), which can run code" in outcome.message


def test_rows_that_are_too_long_are_cut_and_counted(train: Train) -> None:
    outcome = train(hyperparameters={"max_length_tokens": 24, "max_steps": 1})
    assert outcome.code == 0, outcome.message
    assert "are longer than 24 tokens and were cut at the end (colours.jsonl, row " in outcome.log


def test_a_finished_result_is_not_trained_again(train: Train) -> None:
    first = train(hyperparameters={"max_steps": 2})
    again = train(hyperparameters={"max_steps": 2})
    assert first.losses
    assert again.code == 0
    assert not again.losses
    assert again.weights_digest == first.weights_digest
