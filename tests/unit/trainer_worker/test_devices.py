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
CHOICES = [
    pytest.param(name, marks=needs_deepspeed if name.startswith("zero") else ())
    for name in SHARDINGS
]


@pytest.mark.parametrize("sharding", CHOICES)
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
