"""`graft plan` and `graft recommend` as people and scripts see them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from graft.spec_file import spec_from_dict

from services.trainer.spec import parse_spec
from tests.support.stack import Result

Graft = Callable[..., Result]
_PARTS = ("weights", "adapter", "gradients", "optimizer", "activations", "overhead")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "rows.jsonl"
    rows = [
        {"prompt": f"question {number}", "completion": "yes " * (1 + number % 40)}
        for number in range(60)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_people_see_parameters_time_memory_as_bars_and_the_verdict(
    graft: Graft, rows: Path
) -> None:
    seen = graft("plan", rows, "--rank", 4)
    assert seen.code == 0, seen.err
    assert "trained of" in seen.out
    assert "60 rows" in seen.out
    assert "tokens/s (tried here)" in seen.out
    assert all(part in seen.out for part in _PARTS)
    assert "█" in seen.out
    assert "The probe's peak was" in seen.out
    assert seen.out.rstrip().endswith("it fits")


def test_scripts_get_the_plan_for_another_card(graft: Graft, rows: Path) -> None:
    plan = graft("plan", rows, "--accelerator", "h100", "--json").json()
    assert plan["hardware"]["name"] == "H100"
    assert plan["hardware"]["memory_bytes"] == 80 * 1024**3
    assert plan["fits"] is True
    assert plan["time"]["source"] == "table"
    memory = plan["memory"]
    assert memory["total_bytes"] == sum(memory[f"{part}_bytes"] for part in _PARTS)
    assert plan["measured_peak_bytes"] == 0


def test_a_job_that_does_not_fit_says_what_makes_it_fit(
    graft: Graft, rows: Path, tmp_path: Path
) -> None:
    base = _large_base(tmp_path / "large")
    seen = graft("plan", rows, "--base", base, "--accelerator", "RTX 4090", "--dtype", "bfloat16")
    assert seen.code == 1, seen.out + seen.err
    assert "it does not fit; it does with" in seen.out


@pytest.mark.soak  # In short for people, and by the planner itself: trainer_worker/test_planner.py.
def test_scripts_get_what_makes_a_job_fit(graft: Graft, rows: Path, tmp_path: Path) -> None:
    base = _large_base(tmp_path / "large")
    plan = graft(
        "plan", rows, "--base", base, "--accelerator", "RTX4090", "--dtype", "bfloat16", "--json"
    )
    assert plan.code == 1
    changes = plan.json()["changes"]
    assert changes[-1]["fits"] is True
    assert changes[-1]["memory"]["total_bytes"] <= 24 * 1024**3
    settings = {field for change in changes for field in change["settings"]}
    assert all(one.startswith(("hyperparameters.", "base.", "method")) for one in settings)


def test_a_recommendation_is_a_file_that_train_takes(
    graft: Graft, rows: Path, tmp_path: Path
) -> None:
    path = tmp_path / "job.yaml"
    seen = graft("recommend", rows, "--adapter", "bot", "--accelerator", "L4", "-o", path)
    assert seen.code == 0, seen.err
    assert "why" in seen.out
    assert f"graft train -f {path}" in seen.out
    spec = parse_spec(spec_from_dict(yaml.safe_load(path.read_text())))
    assert spec.output.adapter == "bot"
    assert spec.method.kind in ("lora", "qlora")
    assert "arXiv" in path.read_text()


def test_an_unknown_card_is_refused_with_those_that_are_known(graft: Graft, rows: Path) -> None:
    seen = graft("plan", rows, "--accelerator", "Z80")
    assert seen.code == 2
    assert "Z80" in seen.err
    assert "H100" in seen.err


def test_a_row_that_cannot_be_read_is_named(graft: Graft, rows: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(rows.read_text() + '{"prompt": 1, "completion": "x"}\n')
    seen = graft("plan", bad, "--no-probe")
    assert seen.code == 2
    assert "bad.jsonl, row 61" in seen.err


def _large_base(folder: Path) -> Path:
    """Config of 13B numbers in few, wide layers, without weights, with the tokenizer of the tiny base."""
    from tests.support.models import make_base

    make_base(folder)
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    sizes = {
        "hidden_size": 16384,
        "intermediate_size": 45056,
        "num_hidden_layers": 4,
        "num_attention_heads": 128,
        "num_key_value_heads": 128,
        "head_dim": 128,
        "vocab_size": 32000,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config | sizes))
    return folder
