"""What a spec says of evaluation and trackers is checked before anything runs, and named where it is wrong."""

from __future__ import annotations

from typing import Any

import pytest
from graft.errors import GraftError, Reason
from graft.spec_file import spec_from_dict

from services.trainer.run.trackers import build
from services.trainer.spec import JobSpec, parse_spec
from services.trainer.spec.evaluation import Answers, EarlyStopping

HELD_OUT = {"path": "data.jsonl", "eval_fraction": 0.1}
REGRESSION = {**HELD_OUT, "regression_sources": [{"path": "old.jsonl"}]}


def spec_with(**changes: Any) -> JobSpec:
    smallest = {
        "base": {"source": "models/tiny"},
        "dataset": HELD_OUT,
        "output": {"adapter": "bot", "alias": "production"},
    }
    return parse_spec(spec_from_dict({**smallest, **changes}))


def test_nothing_is_measured_that_is_not_asked_for() -> None:
    evaluation = spec_with().evaluation
    assert not evaluation.measures
    assert (evaluation.metrics, evaluation.gate, evaluation.best_metric) == ((), (), "")
    assert not evaluation.best_is_highest


def test_what_is_left_out_takes_the_contracts_defaults() -> None:
    evaluation = spec_with(evaluation={"early_stopping": {}}).evaluation
    assert evaluation.measures
    assert evaluation.early_stopping == EarlyStopping(patience=3, min_improvement=0.0)
    assert (evaluation.best_metric, evaluation.best_is_highest) == ("loss", False)
    assert evaluation.answers == Answers(100, 128, 8, 5)
    assert spec_with(evaluation={"answers": {"samples": 0}}).evaluation.answers.samples == 0


def test_figures_of_a_gate_have_the_names_of_the_lineage() -> None:
    evaluation = spec_with(
        dataset=REGRESSION,
        evaluation={
            "metrics": ["rouge_l"],
            "best_metric": "rouge_l",
            "regression": {"limit": 0.02},
            "gate": {
                "conditions": [
                    "rouge_l >= 0.4",
                    "eval_loss <= @production + 0.01",
                    "approvals >= 1",
                ]
            },
        },
    ).evaluation
    assert evaluation.alias_conditions == (
        "eval_rouge_l >= 0.4",
        "eval_loss <= @production + 0.01",
        "approvals >= 1",
        "regression <= 0.02",
    )
    assert evaluation.generates_while_training
    assert evaluation.best_is_highest


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("evaluation.metrics[1]", {"evaluation": {"metrics": ["bleu", "beu"]}}),
        ("evaluation.metrics[1]", {"evaluation": {"metrics": ["bleu", "bleu"]}}),
        ("evaluation.metrics[0]", {"evaluation": {"metrics": ["loss"]}}),
        ("evaluation.metrics", {"dataset": {"path": "d"}, "evaluation": {"metrics": ["bleu"]}}),
        ("evaluation.early_stopping", {"dataset": {"path": "d"}, "evaluation": {"early_stopping": {}}}),
        ("evaluation.early_stopping.patience", {"evaluation": {"early_stopping": {"patience": -1}}}),
        ("evaluation.best_metric", {"evaluation": {"best_metric": "rouge_l"}}),
        ("evaluation.answers.samples", {"evaluation": {"answers": {"samples": 51}}}),
        ("evaluation.regression", {"evaluation": {"regression": {"limit": 0.1}}}),
        ("evaluation.regression.metric", {"dataset": REGRESSION, "evaluation": {"regression": {"metric": "x"}}}),
        ("evaluation.gate", {"output": {"adapter": "bot"}, "evaluation": {"gate": {"conditions": ["loss < 1"]}}}),
        ("evaluation.gate.conditions[0]", {"evaluation": {"gate": {"conditions": ["loss is low"]}}}),
        ("evaluation.gate.conditions[0]", {"evaluation": {"gate": {"conditions": ["bleu > 3"]}}}),
        ("evaluation.gate.conditions[0]", {"evaluation": {"gate": {"conditions": ["regression < 3"]}}}),
        ("evaluation.metrics[0]", {"objective": {"dpo": {}}, "evaluation": {"metrics": ["bleu"]}}),
        ("dataset.regression_sources[0].weight", {"dataset": {"path": "d", "regression_sources": [{"path": "o", "weight": 1}]}}),
        ("reporting.mlflow.tracking_uri", {"reporting": {"mlflow": {"tracking_uri": "https://ann:secret@host"}}}),
        ("reporting.mlflow.tracking_uri", {"reporting": {"mlflow": {"tracking_uri": "ftp://host"}}}),
        ("reporting.wandb.mode", {"reporting": {"wandb": {"mode": "disabled"}}}),
        ("reporting.wandb.project", {"reporting": {"wandb": {"project": "a\nb"}}}),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(GraftError) as raised:
        spec_with(**changes)
    assert raised.value.reason is Reason.INVALID_SPEC
    assert raised.value.metadata["field"] == field
    assert field in raised.value.message
    assert raised.value.next_step
    assert "secret" not in str(raised.value)


def test_a_tracker_without_its_package_is_refused_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(build, "find_spec", lambda package: None)
    with pytest.raises(GraftError, match="needs the Python package wandb") as raised:
        build.check_packages(spec_with(reporting={"wandb": {}}).reporting)
    assert "pip install 'graft-adapters[wandb]'" in raised.value.next_step
    build.check_packages(spec_with().reporting)
