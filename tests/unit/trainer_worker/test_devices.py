"""Two processes over gloo train what one process trains, however they share the model."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.support.pairs import Processes, alone, same
from tests.unit.trainer_worker.support import merge

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("default")]
needs_deepspeed = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="deepspeed is not installed"
)
SHARDINGS: dict[str, dict[str, Any]] = {
    "replicated": {},
    "ddp": {"ddp": {}},
    "fsdp": {"fsdp": {}},
    "fsdp_offloaded": {"fsdp": {"cpu_offload": True, "reshard_after_forward": False}},
    "zero1": {"zero": {"stage": 1}},
    "zero2": {"zero": {"offload_optimizer": True}},
    "zero3": {"zero": {"stage": 3, "offload_parameters": True}},
}
# What make soak tells apart further.
LONG = {"fsdp_offloaded"}


def choices(*long: str) -> list[Any]:
    """The ways of sharing; some of them only in a soak, or where DeepSpeed is."""
    return [
        pytest.param(
            name,
            marks=[
                *([needs_deepspeed] if name.startswith("zero") else []),
                *([pytest.mark.soak] if name in LONG | set(long) else []),
            ],
        )
        for name in SHARDINGS
    ]


def job_of(small: dict[str, Any], sharding: str, method: str) -> dict[str, Any]:
    """The job with a method, shared so."""
    if method == "full":
        small = {**small, "method": {"full": {}}, "output": {"base": "made"}}
    return merge(small, {"resources": {"sharding": SHARDINGS[sharding]}})


@pytest.mark.parametrize("sharding", choices())
def test_both_train_the_adapter_that_one_trains(
    two: Processes, small: dict[str, Any], tmp_path: Path, sharding: str
) -> None:
    job = job_of(small, sharding, "lora")
    same(two.train(job, tmp_path / "two"), alone(job, tmp_path / "one"))


@pytest.mark.parametrize("sharding", choices("replicated", "ddp"))
def test_both_train_the_whole_model_that_one_trains(
    two: Processes, small: dict[str, Any], tmp_path: Path, sharding: str
) -> None:
    job = job_of(small, sharding, "full")
    same(two.train(job, tmp_path / "two"), alone(job, tmp_path / "one"))


def test_memory_that_runs_out_in_one_of_them_loses_nothing(
    two: Processes, small: dict[str, Any], tmp_path: Path
) -> None:
    both = two.train(small, tmp_path / "two", room=(0, 2))
    same(both, alone(small, tmp_path / "one"))
    assert both[0].log.count("Memory ran out") + both[1].log.count("Memory ran out") == 1
