"""What hyperparameters do: curves as transformers draws them, decay where it belongs, noise while training alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from graft.errors import GraftError, Reason
from graft.spec_file import spec_from_dict
from safetensors.numpy import load_file
from transformers import get_scheduler

from services.trainer.run import precision, training
from services.trainer.run.exits import PreemptedError
from services.trainer.run.trainers.common import without_dropout
from services.trainer.spec import parse_spec
from tests.unit.trainer_worker.support import Outcome

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("default")]
Train = Callable[..., Outcome]
SHORT = {"max_steps": 8, "micro_batch_size": 4}


@pytest.fixture
def trainer_of(train: Train, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The trainer of a job as it is before its first step."""

    def make(**changes: Any) -> Any:
        found: list[Any] = []

        def take(self: Any, trainer: Any, store: Any) -> None:
            found.append(trainer)
            raise PreemptedError("taken")

        with monkeypatch.context() as patch:
            patch.setattr(training.Training, "_fit", take)
            outcome = train(**changes)
        assert found, outcome.message
        return found[0]

    return make


@pytest.mark.parametrize(
    ("given", "theirs", "warmup", "options"),
    [
        ({"schedule": "linear", "warmup_steps": 3}, "linear", 3, {}),
        pytest.param(
            {"schedule": "cosine", "warmup_ratio": 0.2}, "cosine", 2, {}, marks=pytest.mark.soak
        ),
        ({"schedule": "constant", "warmup_steps": 2}, "constant_with_warmup", 2, {}),
        pytest.param(
            {"schedule": "constant"}, "constant_with_warmup", 0, {}, marks=pytest.mark.soak
        ),
        (
            {"schedule": "cosine", "min_learning_rate": 0.001, "warmup_steps": 1},
            "cosine_with_min_lr",
            1,
            {"min_lr": 0.001},
        ),
    ],
)
def test_the_learning_rate_follows_transformers_curve(
    train: Train, given: dict[str, Any], theirs: str, warmup: int, options: dict[str, float]
) -> None:
    outcome = train(hyperparameters={**SHORT, **given})
    assert outcome.code == 0, outcome.message
    ours = [e["metrics"].get("learning_rate", 0.0) for e in outcome.events if "metrics" in e]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.005)
    scheduler = get_scheduler(theirs, optimizer, warmup, 8, scheduler_specific_kwargs=options)
    expected = []
    for _ in range(8):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert ours == pytest.approx(expected)


@pytest.mark.parametrize("method", ["full", "lora", "lora_plus"])
def test_weight_decay_leaves_norms_and_biases_alone(
    trainer_of: Callable[..., Any], spec: dict[str, Any], method: str
) -> None:
    del spec["method"]["lora"]
    spec["method"][method] = {}
    if method == "full":
        spec["output"] = {"base": "bot"}
    trainer = trainer_of(hyperparameters={"weight_decay": 0.1})
    trainer.create_optimizer()
    names = {id(one): name for name, one in trainer.model.named_parameters()}
    decayed, left = set[str](), set[str]()
    for group in trainer.optimizer.param_groups:
        (decayed if group["weight_decay"] else left).update(names[id(p)] for p in group["params"])
    assert decayed
    assert not [name for name in decayed if "norm" in name or name.endswith("bias")]
    assert all("norm" in name for name in left)
    assert bool(left) == (method == "full")


def test_noise_changes_the_training_but_neither_evaluation_nor_what_is_saved(
    trainer_of: Callable[..., Any], train: Train
) -> None:
    plain: dict[str, Any] = {"method": {"lora": {"dropout": 0}}, "dataset": {"eval_fraction": 0.25}}
    trainer = trainer_of(hyperparameters={"neftune_alpha": 5, **SHORT}, **plain)
    from transformers.integrations.neftune import activate_neftune

    handle = activate_neftune(trainer.model, 5.0)
    trainer.model.train()
    ids = torch.arange(10, 30)[None]
    noisy = [trainer.model(input_ids=ids).logits for _ in range(2)]
    assert not torch.equal(noisy[0], noisy[1])
    with without_dropout(trainer.model):
        quiet = [trainer.model(input_ids=ids).logits for _ in range(2)]
    handle.remove()
    with without_dropout(trainer.model):
        assert torch.equal(quiet[0], trainer.model(input_ids=ids).logits)
    assert torch.equal(quiet[0], quiet[1])
    noise = {**SHORT, "neftune_alpha": 5}
    outcome = train("noise", hyperparameters=noise, **plain)
    usual = train("usual", hyperparameters=SHORT, **plain)
    assert outcome.losses != usual.losses
    names = [
        set(load_file(one.work_dir / "result/adapter_model.safetensors"))
        for one in (outcome, usual)
    ]
    assert names[0] == names[1]


@pytest.mark.soak
def test_a_run_with_noise_goes_on_to_the_same_bits(train: Train) -> None:
    noise = {**SHORT, "neftune_alpha": 5}
    whole = train(hyperparameters=noise)
    digest = whole.weights_digest
    shutil.rmtree(whole.work_dir / "result")
    shutil.rmtree(whole.work_dir / "checkpoints/step-000000008")
    resumed = train(hyperparameters=noise)
    assert "Going on from the checkpoint of step 5." in resumed.log
    assert resumed.weights_digest == digest


def test_bf16_trains_close_to_fp32_and_keeps_what_is_trained_in_float32(train: Train) -> None:
    whole = train("fp32", hyperparameters={**SHORT, "precision": "fp32"})
    half = train(
        "bf16", hyperparameters={**SHORT, "precision": "bf16"}, dataset={"eval_fraction": 0.25}
    )
    assert half.code == 0, half.message
    assert half.losses[0] == pytest.approx(whole.losses[0], rel=0.1)
    assert half.losses[0] != whole.losses[0]
    tensors = load_file(half.work_dir / "result" / "adapter_model.safetensors")
    assert {str(one.dtype) for one in tensors.values()} == {"float32"}


@pytest.mark.soak
def test_compiled_layers_train_the_same_and_are_saved_under_the_same_names(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without a compiler's time: what is traced, and under which names, is the same.
    monkeypatch.setattr(precision, "_BACKEND", "eager")
    plain: dict[str, Any] = {"method": {"lora": {"dropout": 0}}}
    usual = train("usual", hyperparameters={**SHORT, "max_steps": 2}, **plain)
    outcome = train(
        "compiled", hyperparameters={**SHORT, "max_steps": 2, "torch_compile": True}, **plain
    )
    assert outcome.code == 0, outcome.message
    assert outcome.losses == pytest.approx(usual.losses, rel=1e-4)
    folders = [one.work_dir / "result/adapter_model.safetensors" for one in (outcome, usual)]
    assert set(load_file(folders[0])) == set(load_file(folders[1]))


@pytest.mark.soak
def test_layers_are_compiled_by_the_real_compiler(train: Train) -> None:
    outcome = train("compiled", hyperparameters={**SHORT, "torch_compile": True})
    usual = train("usual", hyperparameters=SHORT)
    assert outcome.code == 0, outcome.message
    assert outcome.losses[0] == pytest.approx(usual.losses[0], rel=1e-3)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"precision": "fp16"}, ("'fp16', which needs an accelerator", 'Use "bf16" or "fp32"')),
        ({"kernels": "liger"}, ("'liger', which needs an accelerator", 'on a CPU "none"')),
    ],
)
def test_what_a_cpu_does_not_have_is_refused_before_anything_is_loaded(
    train: Train, given: dict[str, str], words: tuple[str, ...]
) -> None:
    outcome = train(hyperparameters=given)
    assert outcome.code == 64
    for one in words:
        assert one in outcome.message


def test_without_a_compiler_compiled_layers_are_refused(
    train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    outcome = train(hyperparameters={"torch_compile": True})
    assert outcome.code == 64
    assert "needs a C++ compiler, and none of g++, c++, clang++" in outcome.message
    assert "apt-get install g++" in outcome.message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"warmup_steps": 5, "warmup_ratio": 0.1}, "left out where warmup_ratio is given"),
        ({"warmup_steps": 5, "max_steps": 4}, "at most max_steps"),
        ({"warmup_steps": -1}, "0 to"),
        ({"min_learning_rate": 1e-5}, 'schedule "cosine"'),
        ({"min_learning_rate": 1.0, "schedule": "cosine"}, "below the learning rate"),
        ({"precision": "int4"}, "auto, fp32, bf16 or fp16"),
        ({"kernels": "magic"}, "none or liger"),
        ({"neftune_alpha": -1}, "0 to 1000"),
        ({"neftune_alpha": float("nan")}, "must be a number"),
    ],
)
def test_numbers_that_cannot_be_are_refused(
    spec: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    spec["hyperparameters"] = changes
    with pytest.raises(GraftError, match="hyperparameters") as refused:
        parse_spec(spec_from_dict(spec))
    assert refused.value.reason is Reason.INVALID_SPEC
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"objective": {"dpo": {}}},
            "direct preference optimization: the reference would be given noise",
        ),
        ({"method": {"prompt_tuning": {}}}, "its learned embeddings would be given noise"),
    ],
)
def test_noise_is_refused_where_it_would_be_learned(
    spec: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    spec["hyperparameters"] = {"neftune_alpha": 5}
    with pytest.raises(GraftError, match="neftune_alpha") as refused:
        parse_spec(spec_from_dict(spec | changes))
    assert words in str(refused.value)
