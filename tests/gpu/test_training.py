"""The worker on a device: it learns, goes on from a checkpoint, and its results load elsewhere with the same logits."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from bench.gpu.architectures import device, storage_dtype
from services.trainer.run import training
from services.trainer.run.trainers.common import without_dropout
from tests.unit.trainer_worker.support import Outcome, attempt

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("default")]
PROMPT = [[1, 200, 17, 512, 33, 900, 4, 5]]
EVERY = 8
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"method": {"lora": {"rank": 8}}, "rate": 2e-3},
    "qlora": {"method": {"qlora": {"rank": 8}}, "rate": 2e-3},
    "full": {"method": {"full": {}}, "rate": 1e-4},
}
# Nats per token that the loss falls to, of what it begins with.
PART_LEFT = {"tiny": 0.98, "Qwen2.5-0.5B": 0.7}


def spec(base: Path, colours: Path, name: str) -> dict[str, Any]:
    return {
        "base": {"source": str(base)},
        "dataset": {"path": str(colours)},
        "method": METHODS[name]["method"],
        "hyperparameters": {
            "max_steps": 2 * EVERY,
            "learning_rate": METHODS[name]["rate"],
            "micro_batch_size": 4,
        },
        "checkpointing": {"every_steps": EVERY, "keep": 2},
        "output": {"base": "made"} if name == "full" else {"adapter": "bot"},
        "seed": 7,
    }


@pytest.fixture(scope="module", params=METHODS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def trained(
    name: str, base: Path, colours: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Outcome, torch.Tensor]:
    """A method's result, and the logits that the trained model gave before it went."""
    save, logits = training.Training._save, []

    def save_and_look(self: Any, method: Any, model: Any, *further: Any) -> Any:
        logits.append(logits_of(model))
        return save(self, method, model, *further)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Training, "_save", save_and_look)
        outcome = attempt(spec(base, colours, name), tmp_path_factory.mktemp("method") / "work")
    assert outcome.code == 0, outcome.message
    return outcome, logits[0]


@torch.no_grad()
def logits_of(model: Any) -> torch.Tensor:
    with without_dropout(model):
        logits: torch.Tensor = model(input_ids=torch.tensor(PROMPT, device=device())).logits
    return logits.float().cpu()


def test_it_learns(trained: tuple[Outcome, torch.Tensor], base: Path, architecture: Any) -> None:
    losses = trained[0].losses
    assert losses[-1] < PART_LEFT[architecture.name] * losses[0]


def test_its_result_loads_with_plain_libraries_and_gives_the_same_logits(
    trained: tuple[Outcome, torch.Tensor], name: str, base: Path
) -> None:
    outcome, logits = trained
    result = outcome.work_dir / "result"
    fresh = load_elsewhere(result, name, base)
    # A whole model is trained in float32 and stored as its base is.
    most = 0.03 if name == "full" and storage_dtype() is torch.bfloat16 else 0.005
    assert (logits_of(fresh) - logits).abs().max() < most * logits.abs().max()
    del fresh
    if name != "full":
        untrained = AutoModelForCausalLM.from_pretrained(base, dtype=storage_dtype()).to(device())
        assert (logits_of(untrained) - logits).abs().max() > 0.01 * logits.abs().max()


def load_elsewhere(result: Path, name: str, base: Path) -> Any:
    options: dict[str, Any] = {"dtype": storage_dtype()}
    if name == "full":
        return AutoModelForCausalLM.from_pretrained(result, **options).to(device())
    if name == "qlora":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=storage_dtype(),
        )
        options["device_map"] = {"": device()}
    model = AutoModelForCausalLM.from_pretrained(base, **options)
    return PeftModel.from_pretrained(model if name == "qlora" else model.to(device()), result)


def test_going_on_from_a_checkpoint_ends_where_an_undisturbed_run_does(
    trained: tuple[Outcome, torch.Tensor], name: str, base: Path, colours: Path, tmp_path: Path
) -> None:
    whole, step = trained[0], f"step-{EVERY:09d}"
    work = tmp_path / "work"
    shutil.copytree(whole.work_dir / "checkpoints" / step, work / "checkpoints" / step)
    resumed = attempt(spec(base, colours, name), work)
    assert resumed.code == 0, resumed.message
    assert f"Going on from the checkpoint of step {EVERY}." in resumed.log
    # Some kernels of CUDA add in an order that changes from run to run.
    assert resumed.losses == pytest.approx(whole.losses[EVERY:], rel=0.02)
    weights = "model.safetensors" if name == "full" else "adapter_model.safetensors"
    ours, theirs = (load_file(one.work_dir / "result" / weights) for one in (resumed, whole))
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        difference = (tensor.float() - theirs[key].float()).norm()
        assert difference <= 0.05 * theirs[key].float().norm() + 1e-6, key
