"""Several CUDA devices over NCCL train what one trains. One device shows less: that each way runs on it at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.unit.trainer_worker.support import ROOT, attempt, merge

pytestmark = [pytest.mark.training, pytest.mark.gpu, pytest.mark.filterwarnings("default")]
SHARDINGS: dict[str, dict[str, Any]] = {
    "replicated": {},
    "ddp": {"ddp": {}},
    "fsdp": {"fsdp": {"compute_dtype": "float32"}},
    "fsdp_offloaded": {"fsdp": {"compute_dtype": "float32", "cpu_offload": True}},
}
STEPS = 6


def job(base: Path, colours: Path, method: str, sharding: str) -> dict[str, Any]:
    return {
        "base": {"source": str(base)},
        "dataset": {"path": str(colours)},
        "method": {method: {}},
        "hyperparameters": {
            "max_steps": STEPS,
            "learning_rate": 1e-4,
            "micro_batch_size": 4,
            "precision": "fp32",
        },
        "resources": {"sharding": SHARDINGS[sharding]},
        "output": {"base": "made"} if method == "full" else {"adapter": "bot"},
        "seed": 7,
    }


def run_team(spec: dict[str, Any], folder: Path, processes: int) -> Path:
    """Trains with so many processes; the result's folder."""
    folder.mkdir()
    path = folder / "spec.json"
    path.write_text(json.dumps(spec), "utf-8")
    command = [sys.executable, "-m", "services.trainer.run.torchrun", "--standalone"]
    done = subprocess.run(
        [*command, f"--nproc-per-node={processes}", str(path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'sdk'}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "spec-work" / "result"


@pytest.fixture
def devices() -> int:
    """How many there are; a comparison needs two."""
    count = torch.cuda.device_count()
    if count < 2:
        pytest.skip(f"Here is {count} CUDA device; what several do is not shown")
    return 2


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("method", ["lora", "full"])
def test_two_devices_train_what_one_trains(
    base: Path, colours: Path, tmp_path: Path, devices: int, method: str, sharding: str
) -> None:
    spec = job(base, colours, method, sharding)
    ours = read(run_team(spec, tmp_path / "both", devices))
    doubled = {"hyperparameters": {"gradient_accumulation_steps": devices}}
    one = attempt(merge(spec, doubled), tmp_path / "one")
    assert one.code == 0, one.message
    theirs = read(one.work_dir / "result")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        difference = (tensor.float() - theirs[name].float()).norm()
        assert difference <= 0.02 * theirs[name].float().norm() + 1e-5, name


def read(result: Path) -> dict[str, torch.Tensor]:
    (path,) = result.glob("*.safetensors")
    tensors: dict[str, torch.Tensor] = load_file(path)
    return tensors
