"""Two processes over gloo train what one process trains, however they share the model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.pairs import Processes
from tests.unit.trainer_worker.support import Outcome, attempt, merge

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("default")]
# The last step of an epoch has fewer batches than there are processes.
ROWS = 36
SHARDINGS: dict[str, dict[str, Any]] = {
    "replicated": {},
    "ddp": {"ddp": {}},
    "fsdp": {"fsdp": {}},
    "fsdp_offloaded": {"fsdp": {"cpu_offload": True, "reshard_after_forward": False}},
    "zero1": {"zero": {"stage": 1}},
    "zero2": {"zero": {"offload_optimizer": True}},
    "zero3": {"zero": {"stage": 3, "offload_parameters": True}},
}
PREFERENCES = {"lora": {"rank": 4, "dropout": 0.0}}


@pytest.fixture(scope="module")
def two() -> Iterator[Processes]:
    processes = Processes(2, os.environ.get("PYTHONPATH_MORE", ""))
    yield processes
    processes.close()


@pytest.fixture
def small(spec: dict[str, Any]) -> dict[str, Any]:
    """A job without dropout, which is another in each process."""
    changes: dict[str, Any] = {
        "method": {"lora": {"dropout": 0.0}},
        "dataset": {"max_rows": ROWS},
        "hyperparameters": {"epochs": 2, "max_grad_norm": 0.5},
        "checkpointing": {"every_steps": 100},
    }
    return merge(spec, changes)


def weights(outcome: Outcome) -> Any:
    from safetensors.numpy import load_file

    (path,) = (outcome.work_dir / "result").glob("*.safetensors")
    tensors = load_file(path)
    return np.concatenate([tensors[name].ravel() for name in sorted(tensors)])


def alone(spec: dict[str, Any], work_dir: Path) -> Outcome:
    """The job in one process, with as many rows per step."""
    outcome = attempt(
        merge(spec, {"hyperparameters": {"gradient_accumulation_steps": 2}}), work_dir
    )
    assert outcome.code == 0, outcome.message
    return outcome


def same(both: list[Outcome], one: Outcome) -> None:
    assert [outcome.code for outcome in both] == [0, 0], both[0].message + both[1].message
    assert both[0].losses == pytest.approx(one.losses, rel=1e-4)
    norms = [
        [e["metrics"]["grad_norm"] for e in o.events if "metrics" in e] for o in (both[0], one)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    assert weights(both[0]) == pytest.approx(weights(one), rel=1e-3, abs=2e-5)


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("method", ["lora", "full"])
def test_both_train_what_one_trains(
    two: Processes, small: dict[str, Any], tmp_path: Path, sharding: str, method: str
) -> None:
    if method == "full":
        small = {**small, "method": {"full": {}}, "output": {"base": "made"}}
    one = alone(small, tmp_path / "one")
    both = two.train(
        merge(small, {"resources": {"sharding": SHARDINGS[sharding]}}), tmp_path / "two"
    )
    same(both, one)
