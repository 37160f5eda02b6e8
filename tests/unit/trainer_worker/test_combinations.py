"""What methods and objectives say of each other is so: what works trains, and what does not is refused before."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from graft.errors import GraftError, Reason
from graft.spec_file import spec_from_dict

from services.trainer.methods import METHODS
from services.trainer.objectives import OBJECTIVES
from services.trainer.spec import parse_spec
from tests.unit.trainer_worker.support import COLOURS, Outcome, attempt, merge
from tests.unit.trainer_worker.test_results import comparing_rows

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("default")]
Change = dict[str, Any]
STEPS = 3
# What a tiny base has room for.
SETTINGS: dict[str, Change] = {
    **{kind: {"rank": 4} for kind in ("lora", "rslora", "lora_plus", "dora", "pissa", "qlora")},
    "adalora": {"target_rank": 4, "initial_rank": 6, "warmup_ratio": 0.3},
}
# They train as LoRA does, but for a scale or a learning rate.
RELATIVES = {"rslora", "lora_plus"}
# Trained with every objective elsewhere.
PROVEN = {"lora"}
# Whose trainers are one with another's: with these the kinds of model are enough.
KINDS = {"full", "adalora", "prompt_tuning", "prefix_tuning", "bottleneck"}
MEMORY: dict[str, Change] = {
    "nf4": {"base": {"quantization": "nf4"}},
    "int8": {"base": {"quantization": "int8"}},
    "gradient_checkpointing": {"hyperparameters": {"gradient_checkpointing": True}},
    "packing": {"hyperparameters": {"packing": True}},
}


def claims(kind: str, memory: str) -> bool:
    info = METHODS[kind].info
    if memory in ("gradient_checkpointing", "packing"):
        return bool(getattr(info, memory))
    return memory in info.quantizations


def trained_pairs() -> list[tuple[str, str]]:
    """Pairs that are said to work; all of DPO's, and those with another kind of model of the others."""
    return [
        (method, objective)
        for objective, one in OBJECTIVES.items()
        for method in METHODS
        if objective != "sft"
        and method not in RELATIVES | PROVEN | set(one.info.refused_methods)
        and (objective == "dpo" or method in KINDS)
    ]


@pytest.fixture(scope="module")
def make_spec(
    tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Change]:
    """A small job by method and objective, whose every step has all rows."""
    folder = tmp_path_factory.mktemp("combinations")

    def write(name: str, rows: list[Change]) -> Path:
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        return path

    def some(name: str, text: str) -> Path:
        path = folder / f"{name}.jsonl"
        path.write_text("".join(text.splitlines(keepends=True)[:8]), "utf-8")
        return path

    answers = [{"instruction": f"{c} {n}", "output": c} for n, c in enumerate(COLOURS * 2)]
    tasks = write("answers", answers)
    pairs = some("pairs", comparing_rows(kto=False))
    data = {
        "sft": tasks,
        "distillation": tasks,
        "cpt": write("texts", [{"text": f"{c} is a colour"} for c in COLOURS * 2]),
        "grpo": write("prompts", [{"prompt": f"{c} {n}"} for n, c in enumerate(COLOURS)]),
        "dpo": pairs,
        "orpo": pairs,
        "reward": pairs,
        "kto": some("labels", comparing_rows(kto=True)),
    }
    settings = {
        "distillation": {"teacher": str(tiny_base)},
        "grpo": {
            "rewards": [{"length": {"max_tokens": 2}}],
            "generations": 4,
            "max_completion_tokens": 3,
            "beta": 0.1,
        },
    }

    def make(method: str, objective: str = "sft") -> Change:
        return {
            "base": {"source": str(tiny_base)},
            "dataset": {"path": str(data[objective])},
            "method": {method: SETTINGS.get(method, {})},
            "objective": {objective: settings.get(objective, {})},
            "hyperparameters": {
                "max_steps": STEPS,
                "micro_batch_size": 8,
                "learning_rate": 0.003,
                "max_length_tokens": 256,
            },
            "resources": {"cpu_threads": 1},
            "output": {"base" if METHODS[method].info.makes_base else "adapter": "bot"},
            "seed": 7,
        }

    return make


@pytest.fixture(scope="module")
def outcome_of(
    make_spec: Callable[..., Change], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Outcome]:
    """Trains a method, alone or with a way to save memory; each once."""

    @cache
    def train(method: str, *memory: str) -> Outcome:
        spec = make_spec(method)
        for one in memory:
            spec = merge(spec, MEMORY[one])
        return attempt(spec, tmp_path_factory.mktemp(method) / "work")

    return train


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("method", [kind for kind in METHODS if kind not in RELATIVES])
def test_what_saves_memory_works_or_is_refused(
    method: str, memory: str, make_spec: Callable[..., Change], outcome_of: Callable[..., Outcome]
) -> None:
    if not claims(method, memory):
        field = {"nf4": "base.quantization", "int8": "base.quantization"}.get(
            memory, f"hyperparameters.{memory}"
        )
        assert_refused(merge(make_spec(method), MEMORY[memory]), field)
        return
    outcome = outcome_of(method, memory)
    assert outcome.code == 0, outcome.message
    plain = outcome_of(method).losses
    # Quantization changes the base; all else must change nothing.
    tolerance = 1.0 if memory in ("nf4", "int8") else 1e-3
    assert outcome.losses == pytest.approx(plain, abs=tolerance)
    assert outcome.losses[-1] < outcome.losses[0]


def test_packing_learns_the_same_on_a_4_bit_base(outcome_of: Callable[..., Outcome]) -> None:
    packed, plain = outcome_of("lora", "nf4", "packing"), outcome_of("lora", "nf4")
    assert packed.losses == pytest.approx(plain.losses, abs=1e-3)


@pytest.mark.parametrize(("method", "objective"), trained_pairs())
def test_a_method_trains_with_an_objective(
    method: str, objective: str, make_spec: Callable[..., Change], tmp_path: Path
) -> None:
    outcome = attempt(make_spec(method, objective), tmp_path / "work")
    assert outcome.code == 0, outcome.message
    assert len(outcome.losses) >= STEPS
    assert any((outcome.work_dir / "result").glob("*.safetensors"))


@pytest.mark.parametrize(
    ("method", "objective"),
    [(m, o) for o, one in OBJECTIVES.items() for m in one.info.refused_methods],
)
def test_a_method_that_an_objective_cannot_use_is_refused(
    method: str, objective: str, make_spec: Callable[..., Change]
) -> None:
    error = assert_refused(make_spec(method, objective), "method")
    assert OBJECTIVES[objective].info.refused_methods[method] in error.message
    assert error.next_step.startswith("Use method lora, or objective sft")


@pytest.mark.parametrize(
    ("objective", "changes", "field", "works"),
    [
        ("dpo", {"hyperparameters": {"packing": True}}, "hyperparameters.packing", "like length"),
        ("grpo", {"hyperparameters": {"packing": True}}, "hyperparameters.packing", "like length"),
        ("kto", {"dataset": {"streaming": True}}, "dataset.streaming", "max_rows"),
        (
            "sft",
            {"dataset": {"streaming": True}, "hyperparameters": {"max_steps": 0}},
            "hyperparameters.max_steps",
            "Set hyperparameters.max_steps",
        ),
        ("dpo", {"dataset": {"loss_on": "everything"}}, "dataset.loss_on", "objective sft"),
    ],
)
def test_what_an_objective_cannot_do_is_refused_with_what_works(
    objective: str, changes: Change, field: str, works: str, make_spec: Callable[..., Change]
) -> None:
    assert works in assert_refused(merge(make_spec("lora", objective), changes), field).next_step


def assert_refused(spec: Change, field: str) -> GraftError:
    with pytest.raises(GraftError) as caught:
        parse_spec(spec_from_dict(spec))
    error = caught.value
    assert (error.reason, error.metadata["field"]) == (Reason.INVALID_SPEC, field)
    assert error.next_step != f"Change {field} in the job's spec."
    return error
