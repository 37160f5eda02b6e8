"""Every method of the LoRA family, and full fine-tuning: learns, is saved, loads elsewhere, goes on exactly."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from google.protobuf.json_format import ParseDict
from graft.bases import read_base
from graft.digests import digest_file
from graft.names import base_name
from graft.registry.v1 import registry_service_pb2 as pb
from graft.trainer.v1.job_spec_pb2 import MethodSpec
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch_file
from safetensors.torch import save_file as save_torch_file
from transformers import AutoModelForCausalLM

from services.trainer.methods import METHODS, Setting
from services.trainer.run import training
from services.trainer.run.fused import fuse_lora
from services.trainer.run.trainers.common import without_dropout
from tests.support.registry import registry_calls, running_registry
from tests.unit.trainer_worker.support import Outcome, attempt, merge

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("default")]
Train = Callable[..., Outcome]
Change = dict[str, Any]
PROMPT = [[1, 200, 17, 512, 33, 900, 4, 5]]
EVERY, KEPT = 20, 5  # Steps between two checkpoints, and how many are kept.
WEIGHTS = "model.safetensors"
BAR = 0.05  # Nats per token; untrained, the tiny base has about 7.
LOGITS = 2e-5  # Largest difference of a logit, of which the largest are about 20.


@dataclass
class Case:
    """A method, how it is trained here, and how its base is loaded elsewhere."""

    method: Change
    hyperparameters: Change = field(default_factory=dict)
    base: Change = field(default_factory=dict)
    loaded: Change = field(default_factory=dict)


FOUR_BITS = {"load_in_4bit": True, "bnb_4bit_compute_dtype": "float32"}
CASES = {
    "lora": Case({"lora": {"rank": 8, "dropout": 0.1}}),
    "attention alone": Case({"lora": {"rank": 8, "target_modules": ["auto"]}}, {"epochs": 6}),
    "rslora": Case({"rslora": {"rank": 8}}, {"learning_rate": 0.002}),
    "lora_plus": Case({"lora_plus": {"rank": 8}}, {"learning_rate": 0.001}),
    "lora_plus in 8 bits": Case(
        {"lora_plus": {"rank": 16}}, {"learning_rate": 0.001, "optimizer": "adamw_8bit"}
    ),
    "dora": Case({"dora": {"rank": 8, "dropout": 0.1}}),
    "pissa": Case({"pissa": {"rank": 8}}),
    "pissa, fast": Case({"pissa": {"rank": 8, "svd_iterations": 4, "dropout": 0.1}}),
    "adalora": Case({"adalora": {"target_rank": 4}}, {"epochs": 6, "learning_rate": 0.02}),
    "qlora": Case(
        {"qlora": {"rank": 8}},
        {"optimizer": "paged_adamw_8bit", "gradient_checkpointing": True},
        loaded=FOUR_BITS | {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    ),
    "fp4": Case(
        {"qlora": {"rank": 8}},
        {"optimizer": "adamw_8bit"},
        {"quantization": "fp4", "double_quantization": False},
        FOUR_BITS | {"bnb_4bit_quant_type": "fp4"},
    ),
    "int8": Case(
        {"qlora": {"rank": 8}},
        {"gradient_checkpointing": True},
        {"quantization": "int8"},
        {"load_in_8bit": True},
    ),
    "dora on nf4": Case(
        {"dora": {"rank": 8}},
        base={"quantization": "nf4"},
        loaded=FOUR_BITS | {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    ),
    "full": Case({"full": {}}, {"learning_rate": 0.003}),
    "full but for the embeddings": Case(
        {"full": {"frozen_modules": ["embed_tokens"]}}, {"learning_rate": 0.003}
    ),
}


def changes(case: Case) -> Change:
    """What of the fixture's spec a case changes."""
    makes_base = "full" in case.method
    return {
        "method": case.method,
        "hyperparameters": {"epochs": 4} | case.hyperparameters,
        "base": case.base,
        "output": {"base": "made"} if makes_base else {"adapter": "bot"},
    }


@pytest.fixture(scope="module")
def module_spec(tiny_base: Path, task: Path) -> Change:
    return {
        "base": {"source": str(tiny_base)},
        "dataset": {"path": str(task)},
        "hyperparameters": {"learning_rate": 0.005, "micro_batch_size": 4},
        "checkpointing": {"every_steps": EVERY, "keep": KEPT},
        "resources": {"cpu_threads": 1},
        "seed": 7,
    }


@pytest.fixture(scope="module")
def trained(module_spec: Change, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """Every case, trained once; beside each result the logits that the trained model gives."""
    outcomes = {}
    save = training.Training._save

    def save_and_look(self: Any, method: Any, model: Any, *further: Any) -> Any:
        result = save(self, method, model, *further)
        with without_dropout(model), torch.no_grad():
            logits = model(input_ids=torch.tensor(PROMPT)).logits
        np.save(self._settings.work_dir / "logits.npy", logits.float().numpy())
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Training, "_save", save_and_look)
        for name, case in CASES.items():
            spec = merge(module_spec, changes(case))
            folder = tmp_path_factory.mktemp("method")
            outcomes[name] = attempt(spec, folder / "work")
    return outcomes


@pytest.fixture(scope="module")
def differences(
    trained: dict[str, Outcome], tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, float]:
    """How far the logits of each result are, loaded in one fresh process, from those of the trained model."""
    cases = {
        name: {
            "base": str(tiny_base),
            "result": str(outcome.work_dir / "result"),
            "logits": str(outcome.work_dir / "logits.npy"),
            "ids": PROMPT,
            "quantization": CASES[name].loaded,
        }
        for name, outcome in trained.items()
        if outcome.code == 0
    }
    path = tmp_path_factory.mktemp("fresh") / "cases.json"
    path.write_text(json.dumps(cases), "utf-8")
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("fresh_logits.py")), str(path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_method_learns_the_task(trained: dict[str, Outcome], name: str) -> None:
    outcome = trained[name]
    assert outcome.code == 0, outcome.message
    assert outcome.losses[-1] < BAR


@pytest.mark.parametrize("name", CASES)
def test_a_result_gives_the_same_logits_in_a_fresh_process(
    differences: dict[str, float], name: str
) -> None:
    assert differences[name] < LOGITS


@pytest.mark.parametrize("name", ["lora_plus in 8 bits", "dora", "pissa", "adalora", "full"])
def test_going_on_from_a_checkpoint_ends_in_the_same_bytes(
    trained: dict[str, Outcome], module_spec: Change, tmp_path: Path, name: str
) -> None:
    whole = trained[name]
    step = f"step-{EVERY:09d}"
    work = tmp_path / "work"
    shutil.copytree(whole.work_dir / "checkpoints" / step, work / "checkpoints" / step)
    resumed = attempt(merge(module_spec, changes(CASES[name])), work)
    assert resumed.code == 0, resumed.message
    assert f"Going on from the checkpoint of step {EVERY}." in resumed.log
    assert resumed.losses == whole.losses[EVERY:]
    assert digests(resumed) == digests(whole)


def digests(outcome: Outcome) -> dict[str, str]:
    """The digests of a result's files."""
    result = outcome.work_dir / "result"
    names = [path.name for path in result.iterdir() if path.name != "commit_request.json"]
    return {name: digest_file(result / name) for name in names}


def test_pissas_result_is_a_plain_lora_of_twice_the_rank(trained: dict[str, Outcome]) -> None:
    config, tensors = saved(trained["pissa"])
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (16, 16.0, True)
    assert {min(tensor.shape) for tensor in tensors.values()} == {16}


def test_adaloras_result_is_a_plain_lora_with_the_rank_that_is_left(
    trained: dict[str, Outcome],
) -> None:
    config, tensors = saved(trained["adalora"])
    assert (config["peft_type"], config["r"]) == ("LORA", config["lora_alpha"])
    down = {name: value for name, value in tensors.items() if "lora_A" in name}
    left = [int((np.abs(value).sum(axis=1) > 0).sum()) for value in down.values()]
    # 4 on average, of the 6 that each began with, and not the same everywhere.
    assert sum(left) <= 4 * len(left)
    assert max(left) == config["r"] > min(left)


def test_dora_learns_magnitudes(trained: dict[str, Outcome], tiny_base: Path) -> None:
    config, tensors = saved(trained["dora"])
    assert config["use_dora"] is True
    weights = load_file(tiny_base / "model.safetensors")
    learned = {name: one for name, one in tensors.items() if "lora_magnitude_vector" in name}
    assert len(learned) == 14
    for name, magnitude in learned.items():
        path = name.removeprefix("base_model.model.").removesuffix(".lora_magnitude_vector")
        before = np.linalg.norm(weights[f"{path}.weight"], axis=1)
        assert 1e-3 < np.abs(magnitude - before).max() < 1.0


def test_lora_plus_learns_b_faster_and_decays_all_of_it(tiny_base: Path) -> None:
    method = method_of({"loraPlus": {"rank": 4, "learningRateRatio": 8}})
    model = method.apply(AutoModelForCausalLM.from_pretrained(tiny_base))
    arguments = {"lr": 0.01, "weight_decay": 0.1, "betas": (0.9, 0.95)}
    optimizer = method.optimizer(model, torch.optim.AdamW, arguments)
    rates = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            rates[parameter] = (group["lr"], group["weight_decay"], group["betas"])
    assert len(rates) == 2 * 14
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = 0.08 if "lora_B" in name else 0.01
            assert rates[parameter] == (pytest.approx(rate), 0.1, (0.9, 0.95))


def test_adaloras_penalty_is_pefts_whatever_the_loss_goes_through(tiny_base: Path) -> None:
    method = method_of({"adalora": {"targetRank": 4, "orthogonalityWeight": 0.7}})
    model = method.apply(AutoModelForCausalLM.from_pretrained(tiny_base))
    ids = torch.tensor(PROMPT)
    plain = model(input_ids=ids, labels=ids).loss
    model.peft_config["default"].orth_reg_weight = 0.7
    theirs = model(input_ids=ids, labels=ids).loss - plain
    torch.testing.assert_close(method.extra_loss(model), theirs, rtol=1e-4, atol=1e-5)
    assert float(theirs.detach()) > 1.0


def test_only_plain_lora_takes_the_fused_pass(tiny_base: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    assert fuse_lora(method_of({"lora": {"rank": 4}}).apply(copy.deepcopy(base))) == 14
    assert fuse_lora(method_of({"dora": {"rank": 4}}).apply(copy.deepcopy(base))) == 0
    assert fuse_lora(method_of({"adalora": {"targetRank": 4}}).apply(base)) == 0


def method_of(given: Change) -> Any:
    """A method with settings as a spec has them, in a run of ten steps."""
    message = ParseDict(given, MethodSpec())
    kind = str(message.WhichOneof("kind"))
    config = METHODS[kind].parse(getattr(message, kind))
    return METHODS[kind].make(config, Setting("tiny", "CAUSAL_LM", 10, False, None, 0))


@pytest.mark.parametrize("name", ["qlora", "fp4", "int8", "dora on nf4"])
def test_adapters_of_quantized_bases_are_kept_in_float32(
    trained: dict[str, Outcome], name: str
) -> None:
    _, tensors = saved(trained[name])
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float32)}


def test_full_fine_tuning_leaves_a_base_again(trained: dict[str, Outcome], tiny_base: Path) -> None:
    result = trained["full"].work_dir / "result"
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert digest_file(result / name) == digest_file(tiny_base / name)
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_base, result))
    # The head is tied to the embeddings, and is not written a second time.
    assert after.keys() == before.keys()
    assert all((after[name] != before[name]).any() for name in before)


def test_frozen_modules_are_as_they_were(trained: dict[str, Outcome], tiny_base: Path) -> None:
    outcome = trained["full but for the embeddings"]
    result = outcome.work_dir / "result"
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_base, result))
    unchanged = {name for name in before if (after[name] == before[name]).all()}
    assert unchanged == {"model.embed_tokens.weight"}
    started = next(event["started"] for event in outcome.events if "started" in event)
    embeddings = before["model.embed_tokens.weight"].size
    whole = int(started["total_parameters"])
    assert whole == sum(tensor.size for tensor in before.values())
    assert int(started["trainable_parameters"]) == whole - embeddings


def test_a_base_stored_in_16_bits_is_trained_in_float32_and_saved_in_16_bits(
    train: Train, tiny_base: Path, tmp_path: Path
) -> None:
    base = tmp_path / "half"
    shutil.copytree(tiny_base, base)
    weights = {name: torch.tensor(one) for name, one in load_file(base / WEIGHTS).items()}
    halves = {name: one.bfloat16() for name, one in weights.items()}
    save_torch_file(halves, base / WEIGHTS, metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text()) | {"dtype": "bfloat16"}
    (base / "config.json").write_text(json.dumps(config))
    outcome = train(
        base={"source": str(base)},
        method={"lora": None, "full": {}},
        # Steps that 8 bits of mantissa would round away.
        hyperparameters={"max_steps": 20, "learning_rate": 1e-4},
        output={"adapter": None, "base": "made"},
    )
    assert outcome.code == 0, outcome.message
    after = load_torch_file(outcome.work_dir / "result" / WEIGHTS)
    assert {one.dtype for one in after.values()} == {torch.bfloat16}
    assert after.keys() == halves.keys()
    assert all((after[name] != halves[name]).any() for name in halves if "_proj" in name)


async def test_a_fully_tuned_model_becomes_a_version_of_a_base(
    train: Train, tiny_base: Path, tmp_path: Path
) -> None:
    changed = {
        "method": {"lora": None, "full": {}},
        "hyperparameters": {"max_steps": 2},
        "output": {"adapter": None, "base": "made"},
    }
    made, origin = base_name("default", "made"), base_name("default", "tiny")
    async with (
        running_registry(tmp_path / "registry") as server,
        registry_calls(server.address) as calls,
    ):
        outcome = await asyncio.to_thread(train, registry=server.address, **changed)
        assert outcome.code == 0, outcome.message
        assert outcome.finished["version"] == f"{made}/versions/1"
        version = await calls.stub.GetVersion(pb.GetVersionRequest(name=f"{made}/versions/1"))
        recorded = await calls.stub.GetBase(pb.GetBaseRequest(name=origin))
        again = await asyncio.to_thread(train, registry=server.address, **changed)
        assert again.finished["version"] == version.name
        assert not again.losses
        children = []
        for number, parent in ((2, "work"), (3, "job2")):
            # Trained on what was made before, under its name: the base as recorded, then a version of it.
            base = {"source": str(tmp_path / parent / "result"), "name": "made"}
            child = await asyncio.to_thread(
                train,
                f"job{number}",
                registry=server.address,
                environment={"GRAFT_WORKER_JOB": f"namespaces/default/jobs/j{number}"},
                **changed | {"base": base},
            )
            assert child.code == 0, child.message
            name = f"{made}/versions/{number}"
            children.append(await calls.stub.GetVersion(pb.GetVersionRequest(name=name)))
    parents = [list(child.manifest.lineage.parent_versions) for child in children]
    assert parents == [[f"{made}/versions/1"], [f"{made}/versions/2"]]
    manifest = version.manifest
    assert (manifest.kind, manifest.method) == (pb.VERSION_KIND_BASE, "full")
    assert (
        manifest.fingerprint.digest
        == read_base(outcome.work_dir / "result", made).fingerprint.digest
    )
    assert list(manifest.lineage.sources) == [f"{origin} {recorded.fingerprint.digest}"]
    assert (manifest.lineage.data_rows, manifest.lineage.metrics["steps"]) == (48, 2)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"method": {"lora": {"rank": 0}}}, ("method.lora.rank is 0", "1 to 512")),
        (
            {"method": {"lora": {"rank": 33}}},
            (
                "method.lora.rank is 33",
                "self_attn.k_proj has 64 inputs and 32 outputs",
                "at most 32",
            ),
        ),
        ({"method": {"rslora": {"rank": 513}}}, ("method.rslora.rank is 513",)),
        ({"method": {"pissa": {"rank": 257}}}, ("method.pissa.rank is 257", "1 to 256")),
        (
            {"method": {"pissa": {}}, "base": {"quantization": "nf4"}},
            ("it must be none with PiSSA", "method qlora"),
        ),
        (
            {"method": {"full": {}}, "base": {"quantization": "int8"}},
            ("it must be none with full fine-tuning",),
        ),
        (
            {"method": {"qlora": {}}, "base": {"quantization": "none"}},
            ("base.quantization is 'none'", "nf4, fp4 or int8", "method lora"),
        ),
        (
            {"method": {"adalora": {"target_rank": 8, "initial_rank": 8}}},
            ("method.adalora.initial_rank is 8", "above target_rank"),
        ),
        (
            {"method": {"adalora": {"target_rank": 30}}},
            ("method.adalora.initial_rank is 45", "k_proj"),
        ),
        (
            {"method": {"adalora": {}}, "hyperparameters": {"max_steps": 1}},
            ("too few optimizer steps for it: 1", "or use lora"),
        ),
        (
            {"method": {"adalora": {"warmup_ratio": 0.6, "final_ratio": 0.5}}},
            ("method.adalora.final_ratio is 0.5",),
        ),
        (
            {"method": {"lora_plus": {"learning_rate_ratio": 0.5}}},
            ("method.lora_plus.learning_rate_ratio is 0.5", "B learns faster"),
        ),
        (
            {"method": {"dora": {"target_modules": ["w_proj"]}}},
            ("no linear layer named w_proj", "Use some of down_proj"),
        ),
        (
            {"method": {"lora": {"target_modules": ["auto", "q_proj"]}}},
            ("method.lora.target_modules[0]", "nothing beside it"),
        ),
        (
            {"method": {"full": {"frozen_modules": ["embeddings"]}}},
            ("'embeddings'", "embed_tokens"),
        ),
        (
            {"method": {"full": {"frozen_modules": ["model"]}}},
            ("leaves nothing to train",),
        ),
        (
            {"method": {"full": {}}, "output": {"adapter": "bot"}},
            ("output.base", "the base's name"),
        ),
        (
            {"method": {"lora": {}}, "output": {"adapter": "bot", "base": "made"}},
            ("output.base is 'made'", "left out"),
        ),
    ],
)
def test_what_cannot_work_is_refused_with_the_nearest_thing_that_does(
    module_spec: Change, tmp_path: Path, changed: Change, words: tuple[str, ...]
) -> None:
    usual = {"base": "made"} if "full" in changed["method"] else {"adapter": "bot"}
    outcome = attempt(merge(module_spec, {"output": usual} | changed), tmp_path / "work")
    assert outcome.code == 64, outcome.message
    for word in words:
        assert word in outcome.message
    assert not (outcome.work_dir / "result").exists()


def saved(outcome: Outcome) -> tuple[Change, dict[str, Any]]:
    """An adapter's configuration and tensors."""
    result = outcome.work_dir / "result"
    config: Change = json.loads((result / "adapter_config.json").read_text())
    return config, load_file(result / "adapter_model.safetensors")
