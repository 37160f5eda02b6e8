"""The plan's counts and memory: exact numbers of the real method, and measures that lower memory."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from graft.trainer.v1 import job_spec_pb2, plan_pb2

from bench import plan as bench
from services.trainer.convert import spec_from_json
from services.trainer.formats.cleaning import CleaningReport
from services.trainer.objectives import OBJECTIVES
from services.trainer.plan.accelerators import find_accelerator
from services.trainer.plan.advice import cheapest_changes
from services.trainer.plan.domain import DataFigures, Hardware
from services.trainer.plan.recommend import recommend
from services.trainer.run.data import Data
from services.trainer.run.plan import Planner, plan_prepared
from services.trainer.spec import JobSpec, parse_spec

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


@pytest.fixture
def large(qwen: Path) -> Path:
    """Qwen2.5-7B without its numbers."""
    sizes = {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    }
    (qwen / "config.json").write_text(json.dumps(QWEN | sizes))
    return qwen


@pytest.fixture
def slim(qwen: Path) -> Path:
    """Four layers of it."""
    (qwen / "config.json").write_text(json.dumps(QWEN | {"num_hidden_layers": 4}))
    return qwen


def job(
    base: Path, method: str = "lora", objective: dict[str, Any] | None = None, **hyper: Any
) -> JobSpec:
    output = {"base" if method == "full" else "adapter": "bot"}
    spec = {"base": {"source": str(base)}, "dataset": {"path": "x"}, "method": {method: {}}}
    spec |= {"hyperparameters": hyper, "output": output, "objective": objective or {"sft": {}}}
    return spec_from_json(json.dumps(spec))


def advice(base: Path, card: Hardware, data: DataFigures, **spec: Any) -> plan_pb2.Recommendation:
    asked = {
        "base": {"source": str(base)},
        "dataset": {"path": "x"},
        "output": {"adapter": "bot"},
    }
    given = ParseDict(asked | spec, job_spec_pb2.JobSpec())
    return recommend(given, data, card, lambda one, of: Planner(one, card, of, 0).memory(one))


def test_the_numbers_of_qwen_are_exact(qwen: Path) -> None:
    planner = Planner(job(qwen), find_accelerator("h100"), DATA, 0)
    assert planner.parameters(job(qwen)) == (8_798_208, 502_830_976)


def test_every_measure_lowers_memory(slim: Path) -> None:
    planner = Planner(job(slim), find_accelerator("T4"), DATA, 0)
    usual = planner.memory(job(slim)).total_bytes
    for changed in (
        job(slim, gradient_checkpointing=True),
        job(slim, micro_batch_size=4),
        job(slim, optimizer="adamw_8bit"),
        job(slim, "qlora"),
        job(slim, max_length_tokens=256),
    ):
        assert planner.memory(changed).total_bytes < usual


def test_the_first_change_that_is_enough_is_advised(qwen: Path) -> None:
    spec = job(qwen)
    planner = Planner(spec, find_accelerator("T4"), DATA, 0)
    (change,) = cheapest_changes(spec, 8 * 1024**3, planner.memory)
    assert change.fits
    assert change.fields == ("hyperparameters.gradient_checkpointing = true",)


def test_a_7b_on_24_gb_is_advised_step_by_step_to_what_fits(large: Path) -> None:
    spec, card = job(large), find_accelerator("RTX4090")
    planner = Planner(spec, card, DATA, 0)
    assert planner.memory(spec).total_bytes > card.memory_bytes
    changes = cheapest_changes(spec, card.memory_bytes, planner.memory)
    assert changes[-1].fits
    assert changes[-1].memory.total_bytes <= card.memory_bytes
    totals = [one.memory.total_bytes for one in changes]
    assert totals == sorted(totals, reverse=True)


@pytest.mark.parametrize(("method", "copies"), [("lora", 0), ("full", 1)])
def test_a_reference_is_counted_where_the_base_cannot_be_turned_back_to(
    qwen: Path, method: str, copies: int
) -> None:
    card = find_accelerator("h100")
    spec, plain = job(qwen, method, {"dpo": {}}), job(qwen, method)
    weights = [Planner(one, card, DATA, 0).memory(one).weights_bytes for one in (spec, plain)]
    base_bytes = 494_032_768 * 2
    assert weights[0] - weights[1] == copies * base_bytes


def test_a_teacher_is_counted(qwen: Path, tiny_base: Path) -> None:
    card = find_accelerator("h100")
    spec, plain = job(qwen, "lora", {"distillation": {"teacher": str(qwen)}}), job(qwen)
    weights = [Planner(one, card, DATA, 0).memory(one).weights_bytes for one in (spec, plain)]
    assert weights[0] - weights[1] == 494_032_768 * 2


def test_this_base_this_card_this_much_data(slim: Path) -> None:
    card = find_accelerator("H100")
    roomy = advice(slim, card, DATA)
    assert roomy.spec.method.WhichOneof("kind") == "lora"
    base_bytes = Planner(job(slim), card, DATA, 0).memory(job(slim)).weights_bytes
    tight = advice(slim, replace(card, memory_bytes=int(1.1 * base_bytes)), DATA)
    assert tight.spec.method.WhichOneof("kind") == "qlora"
    for found in (roomy, tight):
        chosen = {one.field: one for one in found.choices}
        method = chosen["method"]
        assert "GiB of" in method.why
        assert "arXiv" in method.source
        hyper = found.spec.hyperparameters
        # 95 of 100 rows have at most 400 tokens.
        assert hyper.max_length_tokens == 448
        assert hyper.micro_batch_size * hyper.gradient_accumulation_steps == 16
        assert all(one.why and one.source for one in found.choices)


def test_more_rows_get_a_larger_rank_and_fewer_passes(slim: Path) -> None:
    card = find_accelerator("H100")
    few = advice(slim, card, DATA).spec
    many = advice(slim, card, replace(DATA, rows=50_000)).spec
    assert many.method.lora.rank > few.method.lora.rank
    assert many.hyperparameters.epochs < few.hyperparameters.epochs


def test_whoever_wants_a_base_is_advised_full_fine_tuning(slim: Path) -> None:
    found = advice(
        slim, find_accelerator("H100"), DATA, output={"base": "made"}, method={"full": {}}
    )
    assert found.spec.method.WhichOneof("kind") == "full"
    assert "a base is asked for" in next(c.why for c in found.choices if c.field == "method")
    parse_spec(found.spec)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_every_objective_is_advised_a_spec_that_is_valid(slim: Path, kind: str) -> None:
    needs: dict[str, dict[str, Any]] = {
        "grpo": {"rewards": [{"length": {"max_tokens": 100}}]},
        "distillation": {"teacher": str(slim)},
    }
    objective = {kind: needs.get(kind, {})}
    found = advice(slim, find_accelerator("L4"), DATA, objective=objective)
    assert parse_spec(found.spec).objective.kind == kind


def test_the_plan_of_memory_is_near_what_a_worker_takes(tmp_path: Path) -> None:
    (point,) = (one for one in bench.GRID if one.name == "full 256x4 8x256")
    measured = bench.measure(replace(point, steps=2), tmp_path, probe=False)
    # The grid of `make bench` is held to 15 %.
    assert measured["predicted_mb"] == pytest.approx(measured["measured_mb"], rel=0.2)


def test_a_step_of_several_processes_takes_a_batch_of_each(slim: Path) -> None:
    card = find_accelerator("h100")
    alone = job(slim, micro_batch_size=4, epochs=2)
    resources = replace(alone.resources, nodes=2, processes_per_node=2)
    several = replace(alone, resources=resources)
    rows = Data([], [], "", "", (), CleaningReport())
    one, four = (
        plan_prepared(spec, card, rows, DATA, lambda _: None, None) for spec in (alone, several)
    )
    assert (one.total_steps, four.total_steps) == (2 * 25, 2 * 7)
    assert four.memory == one.memory
    assert four.tokens_per_second == 4 * one.tokens_per_second
    assert four.seconds == pytest.approx(one.seconds / 4, rel=0.01)
    assert any("4 processes" in note for note in four.notes)
