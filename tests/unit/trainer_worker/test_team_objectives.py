"""Every objective and loading that several processes train gives what one process gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.models import make_base
from tests.support.pairs import Processes, alone, same
from tests.unit.trainer_worker.support import Outcome, merge
from tests.unit.trainer_worker.test_comparing import rows_of, write

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("default")]
FSDP: dict[str, Any] = {"resources": {"sharding": {"fsdp": {}}}}
# Of 14 rows in batches of 4, the last step has one of two rows and one of none.
COMPARED = 14
LOADINGS: dict[str, dict[str, Any]] = {
    "packed": {"hyperparameters": {"packing": True, "max_length_tokens": 64}},
    "accumulated": {"hyperparameters": {"gradient_accumulation_steps": 2}},
    "adalora": {
        "method": {"adalora": {"target_rank": 2, "initial_rank": 4}},
        "hyperparameters": {"epochs": 3},
    },
    "streamed": {"dataset": {"streaming": True}, "hyperparameters": {"max_steps": 6}},
    "evaluated": {"dataset": {"eval_fraction": 0.2}},
}


def soaked(*names: str) -> list[Any]:
    """What only make soak looks at."""
    return [pytest.param(name, marks=pytest.mark.soak) for name in names]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("teacher") / "teacher", layers=1, seed=5)


def compared(spec: dict[str, Any], kind: str, folder: Path) -> dict[str, Any]:
    """A job of an objective that compares answers."""
    changes: dict[str, Any] = {
        "dataset": {"path": str(write(folder / "rows.jsonl", rows_of(kind, COMPARED)))},
        "objective": {kind: {}},
        "hyperparameters": {"learning_rate": 0.002},
    }
    return merge(spec, changes)


@pytest.mark.parametrize("kind", ["kto", *soaked("dpo", "orpo", "reward")])
def test_two_compare_answers_as_one_does(
    two: Processes, small: dict[str, Any], tmp_path: Path, kind: str
) -> None:
    job = compared(small, kind, tmp_path)
    same(two.train(job, tmp_path / "two"), alone(job, tmp_path / "one"))


@pytest.mark.parametrize("kind", ["dpo", *soaked("distillation")])
def test_two_that_share_parameters_learn_from_a_reference_as_one_does(
    two: Processes, small: dict[str, Any], tmp_path: Path, teacher: Path, kind: str
) -> None:
    if kind == "dpo":
        job = compared(small, kind, tmp_path)
    else:
        job = merge(small, {"objective": {"distillation": {"teacher": str(teacher)}}})
    same(two.train(merge(job, FSDP), tmp_path / "two"), alone(job, tmp_path / "one"))


@pytest.mark.soak
def test_two_distil_as_one_does(
    two: Processes, small: dict[str, Any], tmp_path: Path, teacher: Path
) -> None:
    job = merge(small, {"objective": {"distillation": {"teacher": str(teacher)}}})
    same(two.train(job, tmp_path / "two"), alone(job, tmp_path / "one"))


@pytest.mark.parametrize(
    "loading", ["adalora", "streamed", *soaked("packed", "accumulated", "evaluated")]
)
def test_two_take_their_rows_as_one_does(
    two: Processes, small: dict[str, Any], tmp_path: Path, loading: str
) -> None:
    job = merge(small, LOADINGS[loading])
    if "adalora" in job["method"]:
        job["method"] = LOADINGS[loading]["method"]
    both, one = two.train(job, tmp_path / "two"), alone(job, tmp_path / "one")
    same(both, one)
    assert figures(both[0]) == pytest.approx(figures(one), rel=1e-4)


@pytest.mark.parametrize("loading", ["accumulated", "evaluated", *soaked("packed")])
def test_two_that_share_parameters_take_their_rows_as_one_does(
    two: Processes, small: dict[str, Any], tmp_path: Path, loading: str
) -> None:
    job = merge(small, LOADINGS[loading])
    both, one = two.train(merge(job, FSDP), tmp_path / "two"), alone(job, tmp_path / "one")
    same(both, one)
    assert figures(both[0]) == pytest.approx(figures(one), rel=1e-4)


def figures(outcome: Outcome) -> list[float]:
    """Of what is counted and of the evaluation."""
    last = [event["metrics"] for event in outcome.events if "metrics" in event][-1]
    return [float(last["tokens"]), float(last.get("evalLoss", last.get("eval_loss", 0.0)))]
